"""Image files: found and read; what a JPEG or PNG says about itself, and whether all of it is there."""

import contextlib
import io
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL.Image import Exif
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from iou_det.errors import UserError
from iou_det.storage import local_path

# Boxes refer to the pixels as stored: no rotation by EXIF.
DECODE_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

JPEG = b"\xff\xd8"
PNG = b"\x89PNG\r\n\x1a\n"
SUFFIXES = (".jpg", ".jpeg", ".png")
ORIENTATION = 0x0112  # EXIF tag

Image = np.ndarray | str | os.PathLike[str]  # pixels, or the path of a file


def image_files(arguments: Sequence[str]) -> list[Path]:
  """Files, and for folders their JPEG and PNG files by name; one that is none, or cut off, is refused."""
  files: list[Path] = []
  for path in [local_path(argument, "image") for argument in arguments]:
    if path.is_dir():
      inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
      if not inside:
        raise UserError(f"{path}: the folder has no {', '.join(SUFFIXES)} files")
      files += inside
    else:
      files.append(path)
  for path in files:  # at once, by what costs little: the pixels are decoded one time, when their turn comes
    read_encoded(path)
  return files


def read_encoded(path: Path) -> bytes:
  """A JPEG or PNG file; a JPEG has to have its end."""
  if not path.is_file():
    raise UserError(
      f"{path}: a folder, not a file" if path.is_dir() else f"{path}: there is no such file or folder"
    )
  if path.suffix.lower() not in SUFFIXES:
    raise UserError(f"{path}: not one of {', '.join(SUFFIXES)}")
  data = path.read_bytes()
  if is_truncated_jpeg(data):
    raise UserError(
      f"{path}: truncated JPEG ({len(data)} bytes, no end marker); get it again or leave it out"
    )
  if open_header(data) is None:
    raise UserError(f"{path}: not a readable JPEG or PNG image")
  return data


def read_image(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w 3"]:
  """RGB pixels of a JPEG or PNG file as stored: EXIF rotation is not applied, an alpha channel ignored."""
  pixels = decode(read_encoded(local_path(path, "image")))
  if pixels is None:
    raise UserError(f"{path}: not a readable JPEG or PNG image")
  return pixels


def as_pixels(image: Image, name: str = "the image") -> UInt8[np.ndarray, "h w 3"]:
  """RGB pixels of an array or file: grey becomes three equal channels, an alpha channel is left out.

  Args:
    image: uint8 [height, width, 3], [height, width], [height, width, 1] or [height, width, 4]; or the path of
      a JPEG or PNG file.
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


class Header(NamedTuple):
  """Facts from the header of an image file."""

  height: int  # pixels as stored
  width: int
  channels: int  # 1 grey, 3 colour, 4 CMYK (JPEG) or with alpha (PNG: 2 or 4)
  orientation: int = 1  # EXIF: 1 upright, 5-8 height and width are exchanged for viewing


def open_header(data: bytes) -> JpegImageFile | PngImageFile | None:
  """Pillow's view of the header of a JPEG or PNG, nothing decoded; None if it cannot be read."""
  # Not by Pillow's `Image.open`: that refuses images of many pixels.
  kind = PngImageFile if data.startswith(PNG) else JpegImageFile
  try:
    return kind(io.BytesIO(data))
  except (SyntaxError, OSError, ValueError, struct.error):
    return None


def read_header(data: bytes) -> Header | None:
  """The header of a JPEG or PNG; None if it is neither, or damaged."""
  with warnings.catch_warnings(action="ignore"):  # Pillow's, of damaged EXIF
    image = open_header(data)
    if image is None:
      return None
    exif = image.info.get("exif", b"") if isinstance(image, JpegImageFile) else b""
    orientation = exif_orientation(exif)
  channels = 3 if image.mode == "P" else len(image.getbands())
  return Header(image.height, image.width, channels, orientation)


def exif_orientation(block: bytes) -> int:
  """The orientation tag of an EXIF block, 1 (upright) if it has none."""
  exif = Exif()
  try:
    exif.load(block)
    value = exif.get(ORIENTATION)
  except (SyntaxError, OSError, ValueError, struct.error):
    return 1
  return value if isinstance(value, int) and 1 <= value <= 8 else 1


def is_truncated_jpeg(data: bytes) -> bool:
  """Whether a JPEG ends before its end marker; some decoders fill up such a file in grey without a word."""
  if not data.startswith(JPEG) or data.endswith(b"\xff\xd9"):  # nearly all files end with the marker
    return False
  image = open_header(data)  # read up to the scan: the end marker of a thumbnail in the header does not count
  rest = image.fp.read() if image and image.fp else data
  return b"\xff\xd9" not in rest


def decode(data: bytes) -> np.ndarray | None:
  """RGB pixels as stored, or None. OpenCV fills up what is missing of some damaged files: see `check`."""
  return cv2.imdecode(np.frombuffer(data, np.uint8), DECODE_FLAGS) if data else None


def check(data: bytes, height: int, width: int, messages: BinaryIO) -> tuple[str, dict[str, bool]]:
  """What is wrong with an image file ("" if nothing), and which remarkable traits it has.

  A truncated JPEG is found by its missing end marker (older OpenCV decodes it, grey where data are missing);
  if an end marker stands behind the gap, by what the decoder says on standard error.

  Args:
    height, width: pixels, as the annotations have them.
    messages: scratch file for what the decoder says.
  """
  if not data:
    return "the file is empty", {}
  if not data.startswith((JPEG, PNG)):
    return f"not a JPEG or PNG file (it begins with {data[:4].hex(' ')})", {}
  if is_truncated_jpeg(data):
    return f"truncated JPEG: no end marker in {len(data)} bytes", {}
  with standard_error_to(messages):
    pixels = decode(data)
  messages.seek(0)
  said = " ".join(messages.read().decode(errors="replace").split())
  if "remature end" in said:
    return f"truncated or damaged JPEG: the decoder says {said!r}", {}
  if pixels is None:
    return "cannot be decoded" + (f": the decoder says {said!r}" if said else ""), {}
  header = read_header(data) or Header(*pixels.shape)  # OpenCV forgives some that Pillow does not
  if pixels.shape[:2] != (height, width):
    what = f"has {pixels.shape[1]}x{pixels.shape[0]} pixels, its annotation says {width}x{height}"
    if header.orientation >= 5 and pixels.shape[:2] == (width, height):
      what += (
        f" (EXIF orientation {header.orientation} turns it by 90 degrees for viewing, but boxes must refer "
        "to the pixels as stored: store it upright)"
      )
    return what, {}
  jpeg = data.startswith(JPEG)
  return "", {
    "grey images": header.channels in (1, 2),
    "CMYK images": header.channels == 4 and jpeg,
    "images with an alpha channel (ignored)": header.channels in (2, 4) and not jpeg,
    "EXIF-rotated images (boxes refer to the pixels as stored)": header.orientation != 1,
    "images with decoder warnings": bool(said),
  }


@contextlib.contextmanager
def standard_error_to(file: BinaryIO) -> Iterator[None]:
  """Sends file descriptor 2, where C libraries write, to an emptied file; for one thread at a time."""
  file.seek(0)
  file.truncate()
  saved = os.dup(2)
  os.dup2(file.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)
