"""Damaged image files are found, whole ones are not suspected; every reader gets the same pixels."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from simplejpeg import decode_jpeg

from iou_det.data import images as image_files
from iou_det.data.headers import Header, exif_orientation, read_header
from iou_det.data.images import Unreadable, check, open_picture
from iou_det.data.pipeline import decode_image
from iou_det.data.source import Record
from iou_det.errors import UserError
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


def problem(data, height=48, width=64, exif="auto"):
  """What is wrong, and the traits that the file has with what is said of them."""
  what, traits = check(data, (height, width), exif)
  return what, [trait + said for trait, said in traits.items() if said is not None]


WHOLE = {
  "jpeg": (JPEG, []),
  "png": (PNG, []),
  "progressive": (smooth(progressive=True), []),
  "restarts": (smooth(restart_marker_blocks=3), []),
  "trailing_bytes": (JPEG + b"appended by a camera", []),
  "grey": (smooth("L"), ["grey images"]),
  "cmyk": (smooth("CMYK"), ["CMYK images"]),
  "exif": (smooth(exif=with_orientation(3)), ["images turned by EXIF whose size does not tell"]),
  "exif_upright": (smooth(exif=with_orientation(1)), []),
  "exif_motorola": (
    smooth(exif=with_orientation(6, ">")),
    ["images whose EXIF orientation is ignored: annotated as stored"],
  ),
  "alpha": (TRANSPARENT, ["images with an alpha channel (ignored)"]),
}


y, x = np.mgrid[:40, :60]
COLOURS = np.stack([x * 4, y * 6, (x + y) * 2], -1).astype(np.uint8)


def record(data, size, exif="auto"):
  none = np.zeros(0, np.int64)
  return Record(7, "a.jpg", data, *size, np.zeros((0, 4)), none, none.astype(bool), none * 1.0, none, exif)


def saved(kind, image=COLOURS, **options):
  out = io.BytesIO()
  (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, kind, **options)
  return out.getvalue()


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
  monkeypatch.setattr(image_files, "decode", lambda data, header: (np.zeros((48, 64, 3), np.uint8), ""))
  assert "truncated JPEG: no end marker" in problem(part)[0]


def by_all_readers(data, capfd, size=(48, 64)):
  """What is wrong, by `check`; the others must say the same, and the decoders nothing."""
  what = problem(data, *size)[0]
  for read in (open_picture, lambda data: decode_image(record(data, size))):
    with pytest.raises((Unreadable, UserError)) as why:
      read(data)
    assert what and what in str(why.value)
  assert capfd.readouterr().err == ""
  return what


def test_a_gap_before_the_end_marker_is_found_by_what_the_decoder_says(capfd):
  lower = bytearray(JPEG)
  struct.pack_into(">H", lower, JPEG.index(b"\xff\xc0") + 5, 480)  # more rows than there are
  for data in (JPEG[: len(JPEG) // 2] + b"\xff\xd9", smooth("CMYK")[:-90] + b"\xff\xd9", bytes(lower)):
    size = (480, 64) if data == lower else (48, 64)
    assert "truncated or damaged JPEG: the decoder says" in by_all_readers(data, capfd, size)


def test_samplings_that_one_decoder_does_not_know_are_read_by_another(capfd):
  # In an even grey picture all blocks are alike, so that it may be said to have other ones.
  data = bytearray(saved("JPEG", Image.new("RGB", (48, 48), (128, 128, 128)), subsampling=0, optimize=True))
  data[data.index(b"\xff\xc0") + 11] = 0x31
  with pytest.raises(ValueError, match="subsampling"):
    decode_jpeg(bytes(data))
  np.testing.assert_array_equal(open_picture(bytes(data)).pixels, np.full((48, 48, 3), 128))
  assert capfd.readouterr().err == ""


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
  assert read_header(huge)[:4] == (side, side, 3, 1) and not recwarn.list


@pytest.mark.parametrize("cut", [0.01, 0.5, 0.99])
def test_truncated_pngs_are_found(cut):
  assert "truncated PNG" in problem(PNG[: int(len(PNG) * cut)])[0]


def chunk(name, data):
  return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_pngs_are_refused_for_chunks_that_make_pixels_and_not_for_others(capfd):
  spoilt = bytearray(PNG)
  spoilt[PNG.index(b"IDAT") + 50] ^= 1
  assert "damaged PNG: wrong checksum of its IDAT chunk at byte 33" in by_all_readers(bytes(spoilt), capfd)
  for colour, bits, ways in [(1, 8, b"\0\0\0"), (2, 4, b"\0\0\0"), (2, 8, b"\1\0\0"), (2, 8, b"\0\0\2")]:
    head = chunk(b"IHDR", struct.pack(">IIBB", 64, 48, bits, colour) + ways)
    assert "its header cannot be read" in by_all_readers(PNG[:8] + head + PNG[33:], capfd)
  expected = open_picture(PNG).pixels
  wrong = chunk(b"tEXt", b"a\0b")[:-1] + b"?"
  for more in (
    chunk(b"PLTE", b"abcd"),
    chunk(b"gAMA", b"") * 2,
    wrong,
    chunk(b"acTL", struct.pack(">II", 9, 0)),
  ):
    np.testing.assert_array_equal(open_picture(PNG[:33] + more + PNG[33:]).pixels, expected)
  assert capfd.readouterr().err == ""


def test_an_animated_png_of_too_few_pixels_is_refused():
  data = saved("PNG", save_all=True, append_images=[Image.fromarray(255 - COLOURS)])
  at = data.index(b"IDAT")
  size = struct.unpack(">I", data[at - 4 : at])[0]
  rows = zlib.decompress(data[at + 4 : at + 4 + size])
  data = data[: at - 4] + chunk(b"IDAT", zlib.compress(rows[: len(rows) // 2])) + data[at + 8 + size :]
  assert "a PNG file that cannot be decoded" in problem(data, 40, 60)[0]


def test_spoilt_data_of_a_webp_are_not_taken(capfd):
  noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
  data = bytearray(saved("WEBP", noise, lossless=True))
  data[200:2000] = b"\xff" * 1800
  assert "a WebP file that cannot be decoded" in by_all_readers(bytes(data), capfd, (40, 60))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "jpeg"])
def test_spoilt_data_of_a_tiff_are_refused_without_a_word_of_the_decoder(compression, capfd):
  data = bytearray(saved("TIFF", compression=compression))
  at = data.index(b"\xff\xda") if compression == "jpeg" else 8
  data[at : at + 40] = b"\xff" * 40
  assert "a TIFF file that cannot be decoded" in by_all_readers(bytes(data), capfd, (40, 60))


@pytest.mark.parametrize("mode", ["CMYK", "RGBA"])
@pytest.mark.parametrize("tag", [258, 259])
def test_a_tiff_of_four_channels_with_a_wrong_byte_in_its_header_is_refused(mode, tag, capfd):
  image = Image.fromarray(COLOURS).convert(mode)
  if mode == "RGBA":
    image.putalpha(Image.fromarray(COLOURS[..., 0]))
  data = bytearray(saved("TIFF", image))
  at = data.index(struct.pack("<HH", tag, 3)) + 8
  if tag == 259:
    data[at] = 0  # a compression that OpenCV takes for none
  else:
    data[struct.unpack_from("<I", data, at)[0] + 1] = 64  # bits of the first channel
  said = "a damaged TIFF" if tag == 258 else "cannot be decoded"
  assert said in by_all_readers(bytes(data), capfd, (40, 60))


def test_pictures_that_would_take_minutes_are_refused():
  data = b"qoif" + struct.pack(">IIBB", 4000, 3000, 3, 0) + bytes(100_000)
  assert "a QOI file of 4000x3000 pixels, which are read too slowly" in problem(data, 3000, 4000)[0]


def test_other_files_and_sizes_are_refused():
  assert problem(b"") == ("no picture, but an empty file", [])
  assert "a damaged GIF file: its header cannot be read" in problem(b"GIF89a....")[0]
  assert "has 64x48 pixels, its annotation says 64x47" in problem(JPEG, 47, 64)[0]
  turned = smooth(exif=with_orientation(6))
  assert problem(turned, 64, 48) == ("", ["images turned by EXIF"])
  assert (
    "says 48x64 (EXIF orientation 6 and exif=ignore; its size is right with exif=apply)"
    in problem(turned, 64, 48, "ignore")[0]
  )
  assert (
    "(EXIF orientation 6 and exif=apply; its size is right with exif=ignore)"
    in problem(turned, exif="apply")[0]
  )
  assert "EXIF" not in problem(JPEG, 64, 48)[0]


def test_stray_bytes_between_segments_are_a_warning():
  at = JPEG.index(b"\xff\xdb")
  data = JPEG[:at] + b"\0\1\2" + JPEG[at:]
  assert read_header(data) == read_header(JPEG) == Header(48, 64, 3)
  assert problem(data) == ("", ["images with decoder warnings"])


@given(st.binary(max_size=64), st.integers(0, len(JPEG)), st.sampled_from([JPEG, PNG, b"\xff\xd8", b"\x89P"]))
def test_headers_of_damaged_files_never_fail(noise, at, data):
  read_header(data[:at] + noise + data[at + len(noise) :])
  assert exif_orientation(noise) in range(1, 9)


def test_a_broken_exif_block_is_no_orientation():
  for block in (b"", b"II*\0", b"II*\0\xff\xff\xff\x7f", b"XX*\0\x08\0\0\0", with_orientation(77)[6:]):
    assert exif_orientation(block) == 1
