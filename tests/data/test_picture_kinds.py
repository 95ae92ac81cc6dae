"""Pictures of any kind, depth and orientation come out the same for every reader, or are refused in words."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from iou_det.data import images as image_files
from iou_det.data.headers import read_header
from iou_det.data.images import Unreadable, open_picture, read_image
from iou_det.data.pipeline import decode_image
from iou_det.errors import UserError
from tests.data.test_images import COLOURS, JPEG, PNG, chunk, problem, record, saved, with_orientation


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("channels", [1, 3])
def test_decoded_pixels_are_red_green_blue(extension, channels):
  pixels = np.zeros((20, 30, channels), np.uint8)
  pixels[..., 0], pixels[..., -1] = 30, 200  # OpenCV writes blue, green, red; a grey image is all 200
  data = cv2.imencode(extension, pixels)[1].tobytes()
  with Image.open(io.BytesIO(data)) as other:
    expected = np.asarray(other.convert("RGB"))
  np.testing.assert_allclose(open_picture(data).pixels.astype(int), expected, atol=2)


LOSSLESS = {
  "BMP": {},
  "TIFF": {"compression": "tiff_lzw"},
  "PNG": {},
  "WEBP": {"lossless": True},
  "JPEG2000": {"irreversible": False},
  "PPM": {},
  "PCX": {},
  "QOI": {},
  "TGA": {},
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_pictures_of_any_kind_are_the_same_to_every_reader(kind, tmp_path):
  data = saved(kind, **LOSSLESS[kind])
  file = tmp_path / "named.jpg"  # by content, not suffix
  file.write_bytes(data)
  np.testing.assert_array_equal(read_image(file), COLOURS)
  np.testing.assert_array_equal(decode_image(record(data, (40, 60))), COLOURS)
  names = {"JPEG2000": "JPEG 2000", "WEBP": "WebP", "PPM": "PNM"}
  assert problem(data, 40, 60) == ("", [] if kind == "PNG" else [f"{names.get(kind, kind)} images"])


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "LAB"])
def test_colours_of_other_modes_are_those_of_another_reader(mode):
  grey = Image.fromarray(COLOURS).convert("L")
  image = Image.merge("LAB", [grey] * 3) if mode == "LAB" else Image.fromarray(COLOURS).convert(mode)
  for kind in ("TIFF", "PNG", "GIF"):
    if (kind, mode) in {("PNG", "CMYK"), ("PNG", "LAB"), ("GIF", "CMYK"), ("GIF", "LAB")}:
      continue
    data = saved(kind, image)
    with Image.open(io.BytesIO(data)) as other:
      expected = np.asarray(other.convert("RGB")).astype(int)
    np.testing.assert_allclose(open_picture(data).pixels, expected, atol=2)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_pages_the_first_is_taken_and_that_is_said(kind):
  options = LOSSLESS.get(kind, {})
  data = saved(kind, save_all=True, append_images=[Image.fromarray(255 - COLOURS)], **options)
  np.testing.assert_allclose(open_picture(data).pixels.astype(int), COLOURS, atol=12)  # a GIF has 256 colours
  assert "images of more than one page (the first is taken)" in problem(data, 40, 60)[1]
  assert not read_header(saved(kind, **options)).pages


@pytest.mark.parametrize("extension", [".png", ".tiff", ".jp2", ".ppm"])
@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
def test_more_than_8_bits_are_scaled_by_the_largest_value(extension, bits):
  deep = COLOURS.astype(np.uint16) << (bits - 8)
  if extension == ".ppm":
    data = b"P6 60 40 65535\n" + deep.astype(">u2").tobytes()
  else:
    options = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000] if extension == ".jp2" else []
    data = cv2.imencode(extension, np.ascontiguousarray(deep[..., ::-1]), options)[1].tobytes()
  np.testing.assert_array_equal(open_picture(data).pixels, COLOURS if bits > 9 else COLOURS // 2)
  said = f"16-bit images, taken as {max(bits, 10)} bits (largest value {deep.max()})"
  assert said in problem(data, 40, 60)[1]


def test_small_values_of_a_16_bit_picture_are_taken_as_they_are():
  dark = (COLOURS[..., 0] // 2).astype(np.uint16)
  np.testing.assert_array_equal(open_picture(saved("PNG", dark)).pixels, COLOURS[..., [0, 0, 0]] // 2)


def tiff(channels, kind, code):
  """Without compression; Pillow and OpenCV write no such."""
  pixels = np.arange(40 * 60 * channels).astype(kind).tobytes()
  bits = np.dtype(kind).itemsize * 8
  values = {256: 60, 257: 40, 258: bits, 259: 1, 262: 1, 273: 126, 277: channels, 279: len(pixels), 339: code}
  entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
  return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + bytes(4) + pixels


@pytest.mark.parametrize(
  ("channels", "kind", "code", "message"),
  [
    (1, "<f4", 3, "has float32 values up to 2399.0"),
    (3, "<f4", 3, "has float32 values up to 7199.0"),
    (1, "<i4", 2, "has int32 values up to 2399"),
    (13, "<u2", 1, "has 13 channels of 16 bits; give 1 to 4"),
  ],
)
def test_other_numbers_than_8_and_16_bits_are_refused_with_the_largest(channels, kind, code, message):
  with pytest.raises(Unreadable, match=message):
    open_picture(tiff(channels, kind, code))


VIEWED = {  # by EXIF's definition: where the stored rows and columns begin for a viewer
  1: lambda p: p,
  2: lambda p: p[:, ::-1],
  3: lambda p: np.rot90(p, 2),
  4: lambda p: p[::-1],
  5: lambda p: p.swapaxes(0, 1),
  6: lambda p: np.rot90(p, -1),
  7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
  8: lambda p: np.rot90(p),
}


@pytest.mark.parametrize("orientation", VIEWED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_is_applied_ignored_or_told_by_the_annotated_size(kind, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = saved(kind, exif=exif, **LOSSLESS.get(kind, {"quality": 100, "subsampling": 0}))
  viewed, tolerance = VIEWED[orientation](COLOURS), 9 if kind == "JPEG" else 0
  same = lambda a, b: np.testing.assert_allclose(a.astype(int), b, atol=tolerance)
  assert read_header(data).shown == viewed.shape[:2]
  same(open_picture(data).pixels, viewed)
  same(open_picture(data, "ignore").pixels, COLOURS)
  same(decode_image(record(data, viewed.shape[:2])), viewed)
  if orientation >= 5:
    same(decode_image(record(data, (40, 60))), COLOURS)
    with pytest.raises(UserError, match=r"its annotation says 60x40 .*its size is right with exif=ignore"):
      decode_image(record(data, (40, 60), "apply"))


def test_heic_of_a_phone_by_pillow_heif(monkeypatch):
  heif = pytest.importorskip("pillow_heif")
  out, photo = io.BytesIO(), heif.from_pillow(Image.fromarray(COLOURS))
  photo.info["exif"] = with_orientation(6)
  photo.save(out, quality=-1)
  assert read_header(out.getvalue())[:4] == (60, 40, 3, 1)
  np.testing.assert_allclose(open_picture(out.getvalue()).pixels.astype(int), VIEWED[6](COLOURS), atol=9)
  monkeypatch.setattr(image_files, "find_spec", lambda name: None)
  with pytest.raises(
    Unreadable, match=r"a HEIC picture, which needs pillow-heif: pip install -e '.\[heif\]'"
  ):
    open_picture(out.getvalue())


@pytest.mark.parametrize(
  ("data", "what"),
  [
    (b"<!DOCTYPE html><html><title>404", "an HTML page"),
    (b"%PDF-1.7", "a PDF document"),
    (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "a macOS companion"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    (b"P5 is not a picture", "text"),
    (bytes(1000), "zeros only"),
    (bytes(128) + b"DICM", "a DICOM file"),
    (b"\0\0\0\x18ftypmp42", "a video"),
    (b"\xd0\xcf\x11\xe0", "of no kind that is known here"),
  ],
)
def test_what_is_no_picture_is_named_in_words(data, what):
  assert what in problem(data)[0]
  with pytest.raises(UserError, match=r"image a.jpg \(id 7\): no picture, but .*--config.data.skip_bad=True"):
    decode_image(record(data, (48, 64)))


def huge_png(width, height, bits=8):
  """A whole file of black pixels."""
  head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
  return PNG[:8] + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_more_pixels_than_opencvs_limit_are_refused_before_they_are_decoded(monkeypatch):
  what = problem(huge_png(40000, 30000), 30000, 40000)[0]
  assert "40000x30000 pixels, above OpenCV's limit of 1073741824" in what
  assert "OPENCV_IO_MAX_IMAGE_PIXELS=1200000000" in what
  assert "OPENCV_IO_MAX_IMAGE_WIDTH=2000000" in problem(huge_png(2000000, 1))[0]
  monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "2000")
  assert "above OpenCV's limit of 2000" in problem(JPEG)[0]


def lying(kind):
  """Files that claim 16383x16383 pixels or more."""
  if kind == "PNG":
    return huge_png(20000, 20000)
  data = bytearray(saved(kind, **LOSSLESS.get(kind, {})))
  if kind == "JPEG":
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, 30000, 30000)
  if kind == "WEBP":
    data[21:25] = struct.pack("<I", 16382 | 16382 << 14)
  if kind == "BMP":
    struct.pack_into("<ii", data, 18, 30000, 30000)
  if kind == "TIFF":
    for tag in (256, 257):
      at = data.index(struct.pack("<HHI", tag, 3, 1))
      struct.pack_into("<HIH", data, at + 2, 3, 1, 30000)
  return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_a_header_that_claims_too_much_costs_nothing(kind):
  assert "bytes are too few" in problem(lying(kind))[0]


def test_an_even_picture_of_many_pixels_is_read_if_asked_for(monkeypatch):
  data = saved("PNG", Image.new("L", (9000, 8000), 77))
  what = problem(data, 8000, 9000)[0]
  monkeypatch.setenv(*what.split()[-1].split("="))
  assert problem(data, 8000, 9000) == ("", ["grey images"])


@pytest.mark.parametrize("kind", [*LOSSLESS, "JPEG", "GIF", "ICO", "SGI", "DDS"])
def test_damaged_files_give_pixels_or_a_reason_and_nothing_else(kind):
  data, rng = saved(kind, **LOSSLESS.get(kind, {})), np.random.default_rng(0)
  for _ in range(25):
    bad = np.frombuffer(data, np.uint8)[: rng.integers(len(data) // 2, len(data))].copy()
    bad[rng.integers(0, min(len(bad), 300), 3)] ^= rng.integers(1, 255, 3).astype(np.uint8)
    try:
      assert open_picture(bad.tobytes()).pixels.shape[2] == 3
    except Unreadable as why:
      assert str(why)


def test_no_memory_is_told(monkeypatch):
  error = cv2.error("no")
  error.code = cv2.Error.STS_NO_MEM
  monkeypatch.setattr(cv2, "imdecode", lambda *a: (_ for _ in ()).throw(error))
  with pytest.raises(Unreadable, match="no memory for its 64x48 pixels"):
    open_picture(PNG)
