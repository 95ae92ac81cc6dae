"""Damaged image files are found, whole ones are not suspected."""

import io
import struct
import tempfile
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from iou_det.data import images as image_files
from iou_det.data.images import check, exif_orientation, read_header
from tests.data.coco_files import picture

JPEG = picture(48, 64)
PNG = picture(48, 64, extension=".png")
TRANSPARENT = cv2.imencode(".png", np.zeros((48, 64, 4), np.uint8))[1].tobytes()


def smooth(mode="RGB", size=(64, 48), **save):
  """A JPEG written by another library."""
  ramp = np.add.outer(np.arange(size[1]), np.arange(size[0])).astype(np.uint8)
  out = io.BytesIO()
  Image.fromarray(ramp).convert(mode).save(out, "JPEG", **save)
  return out.getvalue()


def with_orientation(value, order="<"):
  """EXIF block with an orientation tag."""
  head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
  return b"Exif\0\0" + head + struct.pack(order + "HHHIHHI", 1, 0x0112, 3, 1, value, 0, 0)


def problem(data, height=48, width=64):
  """What is wrong, and the traits that the file has."""
  with tempfile.TemporaryFile() as messages:
    what, traits = check(data, height, width, messages)
  return what, [trait for trait, holds in traits.items() if holds]


WHOLE = {
  "jpeg": (JPEG, []),
  "png": (PNG, []),
  "progressive": (smooth(progressive=True), []),
  "restarts": (smooth(restart_marker_blocks=3), []),
  "trailing_bytes": (JPEG + b"appended by a camera", []),
  "grey": (smooth("L"), ["grey images"]),
  "cmyk": (smooth("CMYK"), ["CMYK images"]),
  "exif": (smooth(exif=with_orientation(3)), ["EXIF-rotated images (boxes refer to the pixels as stored)"]),
  "exif_upright": (smooth(exif=with_orientation(1)), []),
  "exif_motorola": (
    smooth(exif=with_orientation(6, ">")),
    ["EXIF-rotated images (boxes refer to the pixels as stored)"],
  ),
  "alpha": (TRANSPARENT, ["images with an alpha channel (ignored)"]),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_pass_with_their_traits(name):
  data, traits = WHOLE[name]
  assert problem(data) == ("", traits)
  assert read_header(data)[:2] == (48, 64)


def test_a_thumbnail_inside_does_not_count_as_the_end():
  block = b"\xff\xe1" + struct.pack(">H", 2 + len(JPEG)) + JPEG  # a whole JPEG in an APP1 segment
  data = JPEG[:2] + block + JPEG[2:]
  assert problem(data) == ("", [])
  assert "truncated" in problem(data[:-2])[0]


@pytest.mark.parametrize("cut", [0.02, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("data", [JPEG, smooth(progressive=True)], ids=["baseline", "progressive"])
def test_truncated_jpegs_are_found_even_if_opencv_decodes_them(data, cut, monkeypatch):
  part = data[: int(len(data) * cut)]
  assert problem(part)[0]
  # OpenCV 4 fills up what is missing.
  monkeypatch.setattr(image_files, "decode", lambda data: np.zeros((48, 64, 3), np.uint8))
  assert "truncated JPEG: no end marker" in problem(part)[0]


def test_a_gap_before_the_end_marker_is_found_by_what_the_decoder_says(capfd):
  data = JPEG[: len(JPEG) // 2] + b"\xff\xd9"
  assert image_files.decode(data) is not None
  assert "premature end" in capfd.readouterr().err  # the decoder only warns
  assert "truncated or damaged JPEG: the decoder says" in problem(data)[0]
  assert capfd.readouterr().err == ""  # and not past `check`


def test_harmless_warnings_are_counted():
  at = JPEG.rindex(b"\xff\xd9")
  assert problem(JPEG[:at] + b"\0\0\0\0\0\0\0\0" + JPEG[at:]) == ("", ["images with decoder warnings"])


@pytest.mark.parametrize("data", [JPEG, PNG], ids=["jpeg", "png"])
def test_the_header_of_a_huge_image_is_read_without_a_word(data, recwarn):
  side = 60_000  # 3.6 gigapixels; Pillow's `Image.open` refuses more than 0.18
  if data == JPEG:
    at = data.index(b"\xff\xc0") + 5
    huge = data[:at] + struct.pack(">HH", side, side) + data[at + 4 :]
  else:
    header = data[12:16] + struct.pack(">II", side, side) + data[24:29]
    huge = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
  assert read_header(huge) == (side, side, 3, 1) and not recwarn.list


@pytest.mark.parametrize("cut", [0.01, 0.5, 0.99])
def test_truncated_pngs_are_found(cut):
  assert "cannot be decoded" in problem(PNG[: int(len(PNG) * cut)])[0]


def test_other_files_and_sizes_are_refused():
  assert problem(b"") == ("the file is empty", [])
  assert "not a JPEG or PNG file (it begins with 47 49 46 38)" in problem(b"GIF89a....")[0]
  assert "has 64x48 pixels, its annotation says 64x47" in problem(JPEG, 47, 64)[0]
  turned = problem(smooth(exif=with_orientation(6)), 64, 48)[0]
  assert "its annotation says 48x64 (EXIF orientation 6 turns it by 90 degrees" in turned
  assert "EXIF" not in problem(JPEG, 64, 48)[0]


def test_stray_bytes_between_segments_are_a_warning():
  at = JPEG.index(b"\xff\xdb")
  data = JPEG[:at] + b"\0\1\2" + JPEG[at:]
  assert read_header(data) == read_header(JPEG) == (48, 64, 3, 1)
  assert problem(data) == ("", ["images with decoder warnings"])


@given(st.binary(max_size=64), st.integers(0, len(JPEG)), st.sampled_from([JPEG, PNG, b"\xff\xd8", b"\x89P"]))
def test_headers_of_damaged_files_never_fail(noise, at, data):
  read_header(data[:at] + noise + data[at + len(noise) :])
  assert image_files.exif_orientation(noise) in range(1, 9)


def test_a_broken_exif_block_is_no_orientation():
  for block in (b"", b"II*\0", b"II*\0\xff\xff\xff\x7f", b"XX*\0\x08\0\0\0", with_orientation(77)[6:]):
    assert exif_orientation(block) == 1


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("channels", [1, 3])
def test_decoded_pixels_are_red_green_blue(extension, channels):
  pixels = np.zeros((20, 30, channels), np.uint8)
  pixels[..., 0], pixels[..., -1] = 30, 200  # OpenCV writes blue, green, red; a grey image is all 200
  data = cv2.imencode(extension, pixels)[1].tobytes()
  with Image.open(io.BytesIO(data)) as other:
    expected = np.asarray(other.convert("RGB"))
  np.testing.assert_allclose(image_files.decode(data).astype(int), expected, atol=2)
