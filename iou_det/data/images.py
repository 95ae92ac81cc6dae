"""What an encoded JPEG or PNG says about itself, and whether all of it is there."""

import contextlib
import os
import re
import struct
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np

# Boxes refer to the pixels as stored: no rotation by EXIF.
DECODE_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

JPEG = b"\xff\xd8"
PNG = b"\x89PNG\r\n\x1a\n"
SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame: size and channels
SOS, EOI, APP1 = 0xDA, 0xD9, 0xE1
# In a scan's data ff is followed by 00 (a stuffed byte), d0-d7 (restart) or ff (fill), or it begins a marker.
SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


class Header(NamedTuple):
  """Facts from the header of an image file."""

  height: int  # pixels as stored
  width: int
  channels: int  # 1 grey, 3 colour, 4 CMYK (JPEG) or with alpha (PNG: 2 or 4)
  orientation: int  # EXIF: 1 upright, 5-8 height and width are exchanged for viewing


def read_header(data: bytes) -> Header | None:
  """The header of a JPEG or PNG; None if it is neither, or ends before its size."""
  if data.startswith(PNG) and len(data) >= 26:
    width, height, _, color = struct.unpack(">IIBB", data[16:26])
    return Header(height, width, {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(color, 3), 1)
  orientation = 1
  for marker, payload in jpeg_segments(data):
    if marker == APP1 and payload[:6] == b"Exif\0\0":
      orientation = exif_orientation(payload[6:])
    if marker in SOF and len(payload) >= 6:
      height, width, channels = struct.unpack(">HHB", payload[1:6])
      return Header(height, width, channels, orientation)
  return None


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
  """(marker, content) of each segment of a JPEG up to its end marker, or to where the data stop."""
  at = 2 if data.startswith(JPEG) else len(data)
  while True:
    at = data.find(b"\xff", at)  # like libjpeg, over stray bytes between segments
    if at < 0 or at + 2 > len(data):
      return
    marker = data[at + 1]
    at += 1 if marker == 0xFF else 2
    if marker == EOI:
      yield marker, b""
      return
    if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD7:  # no segment follows
      continue
    if at + 2 > len(data):
      return
    (length,) = struct.unpack(">H", data[at : at + 2])
    yield marker, data[at + 2 : at + length]
    at += length
    if marker == SOS:
      end = SCAN_END.search(data, at)
      if end is None:
        return
      at = end.start()


def exif_orientation(tiff: bytes) -> int:
  """The orientation tag of an EXIF block, 1 (upright) if it has none."""
  order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
  if order is None or len(tiff) < 8:
    return 1
  (at,) = struct.unpack(order + "I", tiff[4:8])
  (count,) = struct.unpack(order + "H", tiff[at : at + 2].ljust(2, b"\0"))
  for entry in range(at + 2, at + 2 + 12 * count, 12):
    if entry + 10 > len(tiff):
      break
    tag, _, _, value = struct.unpack(order + "HHIH", tiff[entry : entry + 10])
    if tag == 0x0112:
      return value if 1 <= value <= 8 else 1
  return 1


def is_truncated_jpeg(data: bytes) -> bool:
  """Whether a JPEG ends before its end marker; some decoders fill up such a file in grey without a word."""
  if not data.startswith(JPEG) or data.endswith(b"\xff\xd9"):  # nearly all files end with the marker
    return False
  return not any(marker == EOI for marker, _ in jpeg_segments(data))


def decode(data: bytes) -> np.ndarray | None:
  """RGB pixels as stored, or None. OpenCV fills up what is missing of some damaged files: see `check`."""
  return cv2.imdecode(np.frombuffer(data, np.uint8), DECODE_FLAGS) if data else None


def check(data: bytes, height: int, width: int, messages: BinaryIO) -> tuple[str, list[str]]:
  """What is wrong with an image file, and what is remarkable about it.

  A truncated JPEG is found by its missing end marker (older OpenCV decodes it, grey where data are missing);
  if an end marker stands behind the gap, by what the decoder says on standard error.

  Args:
    data: the encoded image.
    height, width: pixels, as the annotations have them.
    messages: scratch file, see `scratch_file`.

  Returns:
    ("" or what is wrong, traits).
  """
  header = read_header(data)
  if not data:
    return "the file is empty", []
  if not data.startswith((JPEG, PNG)):
    return f"not a JPEG or PNG file (it begins with {data[:4].hex(' ')})", []
  if is_truncated_jpeg(data):
    return f"truncated JPEG: no end marker in {len(data)} bytes", []
  with standard_error_to(messages):
    pixels = decode(data)
  messages.seek(0)
  said = " ".join(messages.read().decode(errors="replace").split())
  if "remature end" in said:
    return f"truncated or damaged JPEG: the decoder says {said!r}", []
  if pixels is None or header is None:
    return "cannot be decoded" + (f": the decoder says {said!r}" if said else ""), []
  if pixels.shape[:2] != (height, width):
    what = f"has {pixels.shape[1]}x{pixels.shape[0]} pixels, its annotation says {width}x{height}"
    if header.orientation >= 5 and pixels.shape[:2] == (width, height):
      what += (
        f" (EXIF orientation {header.orientation} turns it by 90 degrees for viewing, but boxes must refer "
        "to the pixels as stored: store it upright)"
      )
    return what, []
  traits = {
    "grey images": header.channels in (1, 2),
    "CMYK images": header.channels == 4 and data.startswith(JPEG),
    "images with an alpha channel (ignored)": header.channels in (2, 4) and data.startswith(PNG),
    "EXIF-rotated images (boxes refer to the pixels as stored)": header.orientation != 1,
    "images with decoder warnings": bool(said),
  }
  return "", [trait for trait, holds in traits.items() if holds]


def scratch_file() -> BinaryIO:
  """Where `check` collects what the decoder says."""
  return tempfile.TemporaryFile()


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
