"""What a file is, by its content and not its name; what the header of a picture says, nothing decoded."""

import importlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from PIL.Image import Exif
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

# Of damaged EXIF and the like, for each picture; not `catch_warnings`, which is not for threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

ORIENTATION = 0x0112  # EXIF tag
PNG = b"\x89PNG\r\n\x1a\n"

# What the files of each kind begin with, and the Pillow plugin and its class that read it.
KINDS = {
  "JPEG": (rb"\xff\xd8", "JpegImagePlugin.JpegImageFile"),
  "PNG": (rb"\x89PNG\r\n\x1a\n", "PngImagePlugin.PngImageFile"),
  "BMP": (rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BmpImagePlugin.BmpImageFile"),
  "TIFF": (rb"II[*+]\0|MM\0[*+]", "TiffImagePlugin.TiffImageFile"),
  "WebP": (rb"RIFF.{4}WEBPVP8", "WebPImagePlugin.WebPImageFile"),
  "GIF": (rb"GIF8[79]a", "GifImagePlugin.GifImageFile"),
  "JPEG 2000": (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "Jpeg2KImagePlugin.Jpeg2KImageFile"),
  "AVIF": (rb".{4}ftyp(avi[fs]|mi[fa][1f].{0,40}avif)", "AvifImagePlugin.AvifImageFile"),
  "HEIC": (rb".{4}ftyp(hei[cxms]|hev[cxms]|m[is]f1)", ""),
  "PNM": (rb"P[1-6]\s+[\d#]", "PpmImagePlugin.PpmImageFile"),
  "Photoshop": (rb"8BPS\0\x01", "PsdImagePlugin.PsdImageFile"),
  "QOI": (rb"qoif", "QoiImagePlugin.QoiImageFile"),
  "PCX": (rb"\n[\0\x02\x03\x05][\0\x01][\x01\x02\x04\x08]", "PcxImagePlugin.PcxImageFile"),
  "SGI": (rb"\x01\xda[\0\x01][\x01\x02]", "SgiImagePlugin.SgiImageFile"),
  "Sun raster": (rb"\x59\xa6\x6a\x95", "SunImagePlugin.SunImageFile"),
  "DDS": (rb"DDS ", "DdsImagePlugin.DdsImageFile"),
  "ICO": (rb"\0\0\x01\0[^\0]\0", "IcoImagePlugin.IcoImageFile"),
  "ICNS": (rb"icns", "IcnsImagePlugin.IcnsImageFile"),
  # Has no signature: an id, colour table or not, coding, the table's place; size; bits, direction.
  "TGA": (
    rb".(\0[\x02\x03\x0a\x0b]\0{5}|\x01[\x01\x09].{4}[\x0f\x10\x18\x20]).{8}[\x08\x10\x18\x20][\0-\x3f]",
    "TgaImagePlugin.TgaImageFile",
  ),
}
HEAD = 64  # bytes that tell the kind
SUFFIXES = set(
  ".jpg .jpeg .jpe .jfif .png .apng .bmp .dib .tif .tiff .webp .gif .jp2 .j2k .jpx .avif .heic .heif .hif "
  ".ppm .pgm .pbm .pnm .psd .qoi .pcx .sgi .ras .dds .ico .icns .tga".split()
)  # a file of such a name that is no picture is damaged, not of another kind

VIDEO = "a video"  # MP4 and MOV, AVI, MKV and WebM
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"}

OTHERS = {
  "an empty file": rb"\Z",
  "a macOS companion (._NAME) of the file that was meant": rb"\0\x05\x16[\0\x07]",
  "a Git LFS pointer: get the file itself by `git lfs pull`": rb"version https://git-lfs",
  "an HTML page, as a failed download leaves it": rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)",
  "an SVG or XML file": rb"(\xef\xbb\xbf)?\s*<(\?xml|svg|!)",
  "a PDF document": rb"%PDF",
  "a ZIP archive": rb"PK\x03\x04",
  "a compressed file (gzip)": rb"\x1f\x8b",
  "a camera's raw file": rb".{4}ftypcrx |FUJIFILMCCD-RAW|IIR[OS]|IIU\0",
  "a DICOM file": rb".{128}DICM",
  "sound without pictures": rb".{4}ftypM4[AB]|RIFF.{4}WAVE",
  VIDEO: rb".{4}(ftyp|mdat)|\0.{3}(moov|wide|free|skip)|RIFF.{4}AVI |\x1aE\xdf\xa3",
  "a Radiance HDR picture, of floats": rb"#\?R",
  "an OpenEXR picture, of floats": rb"v/1\x01",
  "a PFM picture, of floats": rb"P[fF]\s",
  "a NumPy array": rb"\x93NUMPY",
  "zeros only": rb"\0+\Z",
  "text": rb"([\t\n\r\f -~]|[\xc2-\xf4][\x80-\xbf]*)+\Z",
}


class Header(NamedTuple):
  """Facts from the header of an image file."""

  height: int  # pixels as stored
  width: int
  channels: int  # 1 grey, 2 grey with alpha, 3 colour, 4 with alpha or CMYK
  orientation: int = 1  # EXIF: 1 upright, 2-8 turned or mirrored for viewing
  kind: str = "JPEG"
  bits: int = 8  # of a number; at least so many
  pages: bool = False  # more than one, of which the first is read

  @property
  def shown(self) -> tuple[int, int]:
    """Height and width as a viewer shows it."""
    return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def kind_of(data: bytes) -> str:
  """The kind of an image file, a key of KINDS, by its first HEAD bytes; "" if it is none."""
  return next((kind for kind, (begin, _) in KINDS.items() if re.match(begin, data[:HEAD], re.DOTALL)), "")


def other_kind(data: bytes) -> str:
  """What a file is that is no picture, in words."""
  kinds = (what for what, begin in OTHERS.items() if re.match(begin, data[:512], re.DOTALL))
  return next(kinds, "of no kind that is known here")


def read_header(data: bytes) -> Header | None:
  """The header of a picture of any kind, by as much of its begin as holds it; None if it cannot be read."""
  kind = kind_of(data)
  try:
    header = READERS.get(kind, pillow_header)(data) if kind else None
    good = header and all(type(v) is int and v > 0 for v in (*header[:4], header.bits))  # not of a lying TIFF
  # Whatever foreign code raises at bytes without sense: it has eleven kinds of errors.
  except Exception:
    return None
  return header._replace(kind=kind) if header and good else None


def open_by_pillow(data: bytes, kind: str) -> ImageFile:
  """Not by Pillow's `Image.open`: that refuses pictures of many pixels, and tries other kinds."""
  if kind == "HEIC":
    factory = importlib.import_module("pillow_heif").HeifImageFile
  else:
    module, name = KINDS[kind][1].split(".")
    factory = getattr(importlib.import_module(f"PIL.{module}"), name)
  return factory(io.BytesIO(data))


# Width, height and largest value, with comments between them.
PNM_NUMBERS = re.compile(rb"P[2356](?:(?:\s|#[^\n]*\n)+(\d{1,9})){3}")


def pillow_header(data: bytes) -> Header:
  kind = kind_of(data)
  with open_by_pillow(data, kind) as image:
    bits = 32 if image.mode == "F" else 16 if image.mode.startswith("I") else 8
    if kind == "JPEG 2000":
      at = data.index(b"\xff\x4f\xff\x51")
      bits = (data[at + 42] & 127) + 1
    if kind == "PNM" and (numbers := PNM_NUMBERS.match(data)):
      bits = max(bits, int(numbers[1]).bit_length())
    channels = 3 if image.mode in ("P", "PA") else len(image.getbands())
    block = image.info.get("exif", b"") if kind == "AVIF" else b""  # pillow-heif turns HEIC itself
    pages = bool(getattr(image, "is_animated", False)) and kind != "Photoshop"  # has layers, not pages
    return Header(image.height, image.width, channels, exif_orientation(block), kind, bits, pages)


def exif_orientation(block: bytes) -> int:
  """The orientation tag of an EXIF block, 1 (upright) if it has none."""
  exif = Exif()
  try:
    exif.load(block)
    value = exif.get(ORIENTATION)
  except Exception:  # as in `read_header`
    return 1
  return value if isinstance(value, int) and 1 <= value <= 8 else 1


MARKER = re.compile(rb"\xff+([^\xff\0])", re.DOTALL)  # what stands before it is skipped, as libjpeg does


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
  """Marker, begin and end of the content of each segment up to the scan."""
  place = 2
  while marker := MARKER.search(data, place):
    code, place = marker[1][0], marker.end()
    if code == 0x01 or 0xD0 <= code <= 0xD7:
      continue
    if code == 0xD9 or place + 2 > len(data):
      return
    end = place + max(2, int.from_bytes(data[place : place + 2], "big"))
    yield code, place + 2, end
    if code == 0xDA:
      return
    place = end


def jpeg_header(data: bytes) -> Header | None:
  orientation = 1
  for code, begin, end in jpeg_segments(data):
    if code == 0xE1 and data.startswith(b"Exif\0\0", begin) and orientation == 1:
      orientation = exif_orientation(data[begin:end])
    if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
      bits, height, width, channels = struct.unpack_from(">BHHB", data, begin)
      return Header(height, width, channels, orientation, bits=bits)
  return None


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
  """Name, begin and end of the content of each chunk, of which the last may be cut off."""
  place = len(PNG)
  while place + 8 <= len(data):
    begin = place + 8
    end = begin + int.from_bytes(data[place : place + 4], "big")
    yield data[place + 4 : begin], begin, end
    place = end + 4  # behind a checksum


def png_whole(data: bytes, begin: int, end: int) -> bool:
  """Whether a chunk is all there and of the right checksum, by the begin and end of its content."""
  return zlib.crc32(memoryview(data)[begin - 4 : end]).to_bytes(4, "big") == data[end : end + 4]


def png_of_pixels(data: bytes) -> bytes:
  """A PNG without the chunks that its pixels do not need.

  Of these OpenCV's reader refuses a file for some, and prints what it finds wrong; that of animated pictures
  (acTL) gives black where data are lacking.
  """
  needed = [data[:33]]  # with the IHDR chunk
  for name, begin, end in png_chunks(data):
    first_palette = name == b"PLTE" and data[25] == 3 and len(needed) == 1
    if first_palette or name in (b"IDAT", b"IEND"):
      needed.append(data[begin - 8 : end + 4])
    if name == b"IEND":
      break
  return b"".join(needed)


PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type


def png_header(data: bytes) -> Header | None:
  size, name, width, height, bits, colour, *ways, interlaced = struct.unpack_from(
    ">I4sIIBBBBB", data, len(PNG)
  )
  if name != b"IHDR" or size != 13 or bits not in PNG_BITS[colour] or any(ways) or interlaced > 1:
    return None
  orientation, pages = 1, False
  for name, begin, end in png_chunks(data):
    if name == b"eXIf" and png_whole(data, begin, end):
      orientation = exif_orientation(data[begin:end])
    elif name == b"acTL":
      pages = data[begin : begin + 4] > b"\0\0\0\1"
  channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}[colour]
  return Header(height, width, channels, orientation, bits=bits, pages=pages)


def damage(data: bytes, kind: str) -> str:
  """What is wrong with a JPEG or PNG that a decoder would not say in words, or not at all; "" if nothing."""
  if kind == "JPEG" and not data.endswith(b"\xff\xd9"):  # nearly all files end with the marker
    # The end marker of a thumbnail in the header does not count.
    ends = [end for code, _, end in jpeg_segments(data) if code == 0xDA]
    if data.find(b"\xff\xd9", ends[0] if ends else 0) < 0:
      return f"truncated JPEG: no end marker in {len(data)} bytes"
  if kind == "PNG":
    for name, begin, end in png_chunks(data):
      if end + 4 > len(data):
        break
      if name in (b"IHDR", b"PLTE", b"IDAT") and not png_whole(data, begin, end):
        return f"damaged PNG: wrong checksum of its {name.decode()} chunk at byte {begin - 8}"
      if name == b"IEND":
        return ""
    return f"truncated PNG: no end chunk in {len(data)} bytes"
  return ""


def webp_header(data: bytes) -> Header | None:
  # Not by Pillow: its reader makes room for two pictures at once.
  what = data[12:16]
  if what == b"VP8 ":
    width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return Header(height, width, 3)
  if what == b"VP8L":
    packed = int.from_bytes(data[21:25], "little")
    return Header((packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1, 4 if packed >> 28 & 1 else 3)
  width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
  orientation, flags, place = 1, data[20], 30
  while flags & 0x08 and place + 8 <= len(data):
    size = int.from_bytes(data[place + 4 : place + 8], "little")
    if data.startswith(b"EXIF", place):
      orientation = exif_orientation(data[place + 8 : place + 8 + size])
    place += 8 + size + size % 2
  return Header(height, width, 4 if flags & 0x10 else 3, orientation, pages=bool(flags & 0x02))


def tiff_header(data: bytes) -> Header | None:
  # Not by Pillow's reader, which knows some combinations of channels and bits alone.
  file = io.BytesIO(data)
  tags: Any = ImageFileDirectory_v2(file.read(16 if data[2:3] == b"+" or data[3:4] == b"+" else 8))
  file.seek(tags.next)
  tags.load(file)
  orientation, channels = tags.get(ORIENTATION, 1), tags.get(277, 1)
  orientation = orientation if orientation in range(1, 9) else 1
  bits = tags.get(258, (1,))[:channels]
  if len(set(bits)) != 1:  # no decoder is right about it
    return None
  return Header(tags[257], tags[256], channels, orientation, bits=bits[0], pages=bool(tags.next))


READERS = {"JPEG": jpeg_header, "PNG": png_header, "WebP": webp_header, "TIFF": tiff_header}
