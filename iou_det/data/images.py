"""Pictures: the one way from files of any kind to RGB pixels. See docs/data.md for what is taken, and how."""

import ctypes
import os
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import PIL
from jaxtyping import UInt8
from PIL.Image import DECODERS
from PIL.Image import Image as PillowImage
from simplejpeg import decode_jpeg

from iou_det.data.headers import (
  Header,
  damage,
  kind_of,
  open_by_pillow,
  other_kind,
  png_of_pixels,
  read_header,
)
from iou_det.errors import UserError
from iou_det.storage import local_path

if "OPENCV_LOG_LEVEL" not in os.environ:  # a damaged picture is named by us, in one line
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
for library in (
  Path(PIL.__file__).parents[1].glob("pillow.libs/libtiff*")
):  # of the wheel, used by Pillow alone
  ctypes.CDLL(str(library)).TIFFSetErrorHandler(None)

COLOUR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# Not to RGB at once: OpenCV 5.0.0 then takes wrong numbers out of a TIFF of 16 bits.
DEEP = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
DEEP_BY_OPENCV = ("PNG", "TIFF", "JPEG 2000", "PNM")  # where Pillow has 8 bits alone, or for grey alone
DEPTHS = (8, 10, 12, 14, 16)  # bits that a picture can be full scale of

# Of a picture that is no even surface, a byte of the file holds far fewer pixels. A header that claims more
# is wrong, and believing it costs gigabytes where the pixels are more than MANY.
MANY, IN_A_BYTE = 2**26, 512
SLOW = 2**23  # pixels that a decoder written in Python has in ten seconds

LIMIT = "OPENCV_IO_MAX_IMAGE_"  # variables that OpenCV reads
PIXELS = f"{LIMIT}PIXELS"
ROWS_OF = 2**24  # pixels that are converted at once

Image = np.ndarray | str | os.PathLike[str]  # pixels, or the path of a file


class Unreadable(Exception):
  """What is wrong with the bytes of an image file, in words that can stand behind its name and a colon."""


class Picture(NamedTuple):
  """A decoded image file."""

  pixels: UInt8[np.ndarray, "h w 3"]  # RGB
  header: Header
  turned: bool  # by its EXIF orientation
  largest: int  # value before it was scaled, where the file has more than 8 bits; or 0
  warning: str  # of the decoder, that takes it nevertheless; or ""


def open_picture(data: bytes, exif: str = "apply", size: tuple[int, int] | None = None) -> Picture:
  """The pixels of an image file, or an `Unreadable`; for any number of threads.

  Args:
    exif: see `turned`.
    size: annotated height and width.
  """
  header = checked_header(data)
  try:
    stored, warning = decode(data, header)
    pixels, largest = eight_bits(stored)
    # OpenCV and Pillow both turn a TIFF, and cannot be told not to.
    now, wanted = header.kind == "TIFF", turned(header, exif, size)
    if stored.shape[:2] != (header.shown if now else header[:2]):
      found, said = stored.shape[:2], header.shown if now else header[:2]
      raise Unreadable(
        f"has {found[1]}x{found[0]} pixels, its header says {said[1]}x{said[0]}: it is damaged"
      )
    if now != wanted and header.orientation != 1:
      back = {6: 8, 8: 6}.get(header.orientation, header.orientation)
      pixels = turn(pixels, back if now else header.orientation)
  except MemoryError:
    raise Unreadable(f"there is no memory for its {header.width}x{header.height} pixels") from None
  return Picture(pixels, header, wanted and header.orientation != 1, largest, warning)


def checked_header(data: bytes) -> Header:
  """The header, after everything that can be known before room is made for the pixels."""
  kind = kind_of(data)
  if not kind:
    raise Unreadable(f"no picture, but {other_kind(data)}")
  if kind == "HEIC" and not find_spec("pillow_heif"):
    raise Unreadable("a HEIC picture, which needs pillow-heif: pip install -e '.[heif]'")
  if what := damage(data, kind):
    raise Unreadable(what)
  header = read_header(data)
  if header is None:
    raise Unreadable(f"a damaged {kind} file: its header cannot be read")
  number, shown = header.height * header.width, f"{header.width}x{header.height}"
  sides = (f"{LIMIT}WIDTH", header.width, 2**20), (f"{LIMIT}HEIGHT", header.height, 2**20)
  for variable, value, most in ((PIXELS, number, 2**30), *sides):
    given = os.environ.get(variable, "")
    limit = int(given) if given.isdecimal() else most
    if value > limit:
      raise Unreadable(
        f"its header says {shown} pixels, above OpenCV's limit of {limit}; make it smaller, or set the "
        f"environment variable {variable}={value}"
      )
  if number > max(MANY, IN_A_BYTE * len(data)) and PIXELS not in os.environ:
    raise Unreadable(
      f"its header says {shown} pixels, for which {len(data)} bytes are too few: it is damaged, or empty; if "
      f"it is right, set the environment variable {PIXELS}={number}"
    )
  if header.channels > 4:
    raise Unreadable(
      f"has {header.channels} channels of {header.bits} bits; give 1 to 4: grey or RGB, or with alpha"
    )
  return header


def turned(header: Header, exif: str, size: tuple[int, int] | None) -> bool:
  """Whether a picture is turned as its EXIF orientation says.

  Args:
    exif: "apply"; "ignore"; "auto": not if the annotated `size` (height, width) is that of the stored picture
      and not that of the turned one.
  """
  return exif == "apply" or (exif == "auto" and (size != header[:2] or size == header.shown))


def turn(pixels: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "h2 w2 3"]:
  """As a viewer shows a picture of this EXIF orientation."""
  if orientation >= 5:
    pixels = cv2.transpose(pixels)
  axis = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
  return pixels if axis is None else cv2.flip(pixels, axis)


def decode(data: bytes, header: Header) -> tuple[np.ndarray, str]:
  """RGB of any depth, as stored, a TIFF as shown; and what a decoder warns of. An alpha channel is left out.

  By decoders that write nothing to the terminal, and refuse what is damaged.
  """
  kind, pixels = header.kind, None
  if kind == "JPEG":
    return jpeg(data, header)
  if kind == "PNG":
    data = png_of_pixels(data)
  if header.bits > 8 and kind in DEEP_BY_OPENCV and not data.startswith((b"P2", b"P3")):  # not of texts
    pixels = opencv(data, DEEP)
    pixels = pixels if pixels is None else pixels[..., ::-1]
  elif kind == "PNG":
    pixels = opencv(data, COLOUR)
  if pixels is None and kind == "PNG":
    raise Unreadable("a PNG file that cannot be decoded")
  # The others by Pillow, which is right about more of what there is in them.
  return pillow(data, header) if pixels is None else pixels, ""


def jpeg(data: bytes, header: Header) -> tuple[UInt8[np.ndarray, "h w 3"], str]:
  try:
    return decode_jpeg(data, "RGB"), ""
  except ValueError as error:
    warning = str(error)
  if "remature end" in warning:  # what is lacking would be filled up in grey
    raise Unreadable(f"truncated or damaged JPEG: the decoder says {warning!r}")
  # Not by the same without `strict`, which fills up at errors too. Pillow knows more samplings of colours.
  return pillow(data, header), "" if warning.startswith("tj") else warning


def opencv(data: bytes, flags: int) -> np.ndarray | None:
  try:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  except cv2.error as error:
    if error.code == cv2.Error.STS_NO_MEM:
      raise MemoryError from None
    return None


def pillow(data: bytes, header: Header) -> np.ndarray:
  try:
    image = open_by_pillow(data, header.kind)
  except Exception as error:  # of forms that it does not know OpenCV takes some for others
    raise Unreadable(f"a {header.kind} file that cannot be decoded ({error})") from None
  if image.tile and image.tile[0][0] in DECODERS and image.width * image.height > SLOW:
    raise Unreadable(
      f"a {header.kind} file of {image.width}x{image.height} pixels, which are read too slowly above {SLOW}; "
      "store it as PNG"
    )
  try:
    with image:
      deep = image.mode == "F" or image.mode.startswith("I")
      pixels = np.asarray(image) if deep else colours(image)
  except MemoryError:
    raise
  except Exception as error:  # whatever it raises at bytes without sense
    raise Unreadable(f"a {header.kind} file that cannot be decoded ({error})") from None
  if header.kind == "TIFF" and header.bits > 8 and not deep:
    raise Unreadable(
      f"a TIFF file of {header.channels} channels of {header.bits} bits that cannot be decoded"
    )
  if header.kind == "PNM" and deep:  # 16 bits in 32
    pixels = pixels.astype(np.uint16)
  return np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels


def colours(image: PillowImage) -> UInt8[np.ndarray, "h w 3"]:
  """RGB, made in parts: as a whole, the picture would be in memory up to four times."""
  image.load()  # which may change its size
  if image.mode == "RGB" and image.width * image.height <= ROWS_OF:
    return np.array(image)
  pixels = np.empty((image.height, image.width, 3), np.uint8)
  rows = max(1, ROWS_OF // image.width)
  for y in range(0, image.height, rows):
    part = image.crop((0, y, image.width, min(y + rows, image.height)))
    pixels[y : y + rows] = np.asarray(part.convert("RGB"))
  return pixels


def depth_of(largest: int) -> int:
  """The bits that a picture with this largest value is full scale of."""
  return next(bits for bits in DEPTHS if largest < 2**bits)


def eight_bits(pixels: np.ndarray) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
  """The upper 8 of the bits that the largest value needs; and that value, 0 if 8 bits were given."""
  if pixels.dtype == np.uint8:
    return pixels, 0
  largest = np.fmax.reduce(pixels, axis=None)
  if pixels.dtype != np.uint16:
    raise Unreadable(
      f"has {pixels.dtype} values up to {largest}; what these mean is not known here: store it with 8 or 16 "
      "bits a channel"
    )
  return (pixels >> (depth_of(int(largest)) - 8)).astype(np.uint8), int(largest)


def size_problem(picture: Picture, exif: str, size: tuple[int, int]) -> str:
  """Says where a picture is not of the annotated size (height, width); "" if it is."""
  height, width = picture.pixels.shape[:2]
  if (height, width) == size:
    return ""
  what = f"has {width}x{height} pixels, its annotation says {size[1]}x{size[0]}"
  if (width, height) == size and picture.header.orientation >= 5:
    other = "ignore" if picture.turned else "apply"
    what += (
      f" (EXIF orientation {picture.header.orientation} and exif={exif}; its size is right with exif={other})"
    )
  return what


def printable(path: str | os.PathLike[str]) -> str:
  """A path as text that can be written as UTF-8; bytes of other encodings as \\xNN."""
  return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_picture(path: str | os.PathLike[str], exif: str = "apply") -> Picture:
  """A picture file of any kind; a UserError names one that cannot be read."""
  file = local_path(path, "image")
  try:
    return open_picture(file.read_bytes(), exif)
  except FileNotFoundError:
    raise UserError(f"{printable(path)}: there is no such file") from None
  except IsADirectoryError:
    raise UserError(f"{printable(path)}: a folder, not a file") from None
  except OSError as error:
    raise UserError(f"{printable(path)}: cannot be read ({error.strerror or error})") from None
  except Unreadable as error:
    raise UserError(f"{printable(path)}: {error}") from None


def read_image(path: str | os.PathLike[str], exif: str = "apply") -> UInt8[np.ndarray, "h w 3"]:
  """RGB pixels of a picture file, turned as its EXIF orientation says, or (`exif` "ignore") as stored."""
  return read_picture(path, exif).pixels


def as_pixels(image: Image, name: str = "the image") -> UInt8[np.ndarray, "h w 3"]:
  """RGB pixels of an array or file: grey becomes three equal channels, an alpha channel is left out.

  Args:
    image: uint8 [height, width, 3], [height, width], [height, width, 1] or [height, width, 4]; or the path of
      a picture file: see `read_image`.
    name: of the image in messages.
  """
  if isinstance(image, (str, os.PathLike)):
    return read_image(image)
  if not hasattr(image, "ndim"):  # numpy would make numbers of a palette, or of four inks
    raise UserError(
      f"{name} is a {type(image).__name__}; give an array, a file's path, or a list of these (a PIL image: "
      'np.asarray(image.convert("RGB")))'
    )
  pixels = np.asarray(image)
  if pixels.dtype != np.uint8:
    raise UserError(
      f"{name} has {pixels.dtype} values; give RGB as uint8 from 0 to 255: floats up to 1 times 255, 16 "
      "bits // 257"
    )
  if pixels.ndim == 2:
    pixels = pixels[..., None]
  if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or not pixels.size:
    raise UserError(
      f"{name} has the shape {np.shape(image)}; give [height, width, 3] (RGB), [height, width] (grey) or "
      "[height, width, 4] (alpha is left out), 1x1 or larger; several images as a list"
    )
  return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels[..., :3]


def check(data: bytes, size: tuple[int, int], exif: str = "auto") -> tuple[str, dict[str, str | None]]:
  """What is wrong with an image file ("" if nothing), and its remarkable traits; read as training reads it.

  Args:
    size: annotated height and width.
    exif: see `turned`.

  Returns:
    Problem, and by trait what is to be said of it behind the file's name, None if the file does not have it.
  """
  try:
    picture = open_picture(data, exif, size)
  except Unreadable as error:
    return str(error), {}
  if problem := size_problem(picture, exif, size):
    return problem, {}
  header = picture.header
  exif_says = header.orientation != 1
  untold = exif == "auto" and header[:2] == header.shown
  traits = {
    "grey images": header.channels in (1, 2),
    "CMYK images": header.channels == 4 and header.kind == "JPEG",
    "images with an alpha channel (ignored)": header.channels in (2, 4) and header.kind != "JPEG",
    "images turned by EXIF": picture.turned and not untold,
    "images turned by EXIF whose size does not tell": picture.turned and untold,
    "images whose EXIF orientation is ignored: annotated as stored": exif_says and not picture.turned,
    "images with decoder warnings": bool(picture.warning),
  }
  found: dict[str, str | None] = {trait: "" if holds else None for trait, holds in traits.items()}
  if header.kind not in ("JPEG", "PNG"):
    found[f"{header.kind} images"] = ""
  if header.pages:
    found["images of more than one page (the first is taken)"] = ""
  if picture.largest:
    found[f"16-bit images, taken as {depth_of(picture.largest)} bits"] = f" (largest value {picture.largest})"
  return "", found
