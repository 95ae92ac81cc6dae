"""Pictures of all kinds that Pillow and OpenCV write, and what happens to files on their way."""

import functools
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"
HEIGHT, WIDTH = 48, 64
SUFFIX = {"jpeg": "jpg", "png": "png", "webp": "webp", "tiff": "tif", "bmp": "bmp"}
SIZES = (0, 1, 2, 47, 49, 63, 65, 96, 128, 1000, 16000, 30000, 40000, 65535, 2**24, 2**31 - 1, 2**32 - 1)
CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"zzZz")


@functools.cache
def scene(seed: int = 0) -> Image.Image:
  """Smooth, so that a lossy file stays close, and different everywhere."""
  rng = np.random.default_rng(seed)
  small = rng.integers(20, 236, (6, 8, 3), dtype=np.uint8)
  return Image.fromarray(cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR))


@functools.cache
def originals(kind: str) -> tuple[tuple[str, bytes], ...]:
  """Files of a kind that are in order, by what is special in them."""
  rgb, other = scene().copy(), scene(1).copy()  # saving leaves marks in them
  exif = Image.Exif()
  exif[0x0112], exif[0x010F] = 6, "maker"
  rgba, la = rgb.copy(), rgb.convert("L").convert("LA")
  rgba.putalpha(rgb.convert("L"))
  wide = np.asarray(rgb).astype(np.uint16)
  deep = Image.fromarray(wide[..., 0] * 257)

  def saved(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind.upper(), **options)
    return file.getvalue()

  def by_opencv(pixels: np.ndarray) -> bytes:
    return cv2.imencode(f".{SUFFIX[kind]}", pixels)[1].tobytes()

  modes = {m: rgb.convert(m) for m in ("L", "P", "1", "CMYK")}
  pages: dict = {"save_all": True, "append_images": [other]}
  if kind == "jpeg":
    files = {
      "rgb": saved(rgb, quality=92), "grey": saved(modes["L"]), "cmyk": saved(modes["CMYK"]),
      "progressive": saved(rgb, progressive=True), "exif": saved(rgb, exif=exif),
      "full": saved(rgb, quality=98, subsampling=0),
      "restarts": saved(rgb, restart_marker_rows=1), "comment": saved(rgb,
      comment=b"by hand" * 9)}  # fmt: skip
  elif kind == "png":
    files = {
      "rgb": saved(rgb), "grey": saved(modes["L"]), "palette": saved(modes["P"]), "bits": saved(modes["1"]),
      "alpha": saved(rgba), "grey_alpha": saved(la), "grey16": saved(deep), "rgb16": by_opencv(wide * 257),
      "grey12": saved(Image.fromarray(wide[..., 0] * 16)), "exif": saved(rgb, exif=exif),
      "transparent": saved(modes["P"], transparency=0), "animated": saved(rgb, **pages)}  # fmt: skip
  elif kind == "webp":
    files = {
      "lossy": saved(rgb, quality=90), "lossless": saved(rgb, lossless=True), "exif": saved(rgb, exif=exif),
      "alpha": saved(rgba, lossless=True), "animated": saved(rgb, lossless=True, **pages)}  # fmt: skip
  elif kind == "tiff":
    packed = {c: saved(rgb, compression=c) for c in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")}
    files = packed | {
      "rgb": saved(rgb), "grey": saved(modes["L"]), "palette": saved(modes["P"]), "bits": saved(modes["1"]),
      "alpha": saved(rgba), "cmyk": saved(modes["CMYK"]), "grey16": saved(deep), "pages": saved(rgb, **pages),
      "rgb16": by_opencv(wide * 257), "floats": saved(modes["L"].convert("F")), "exif": saved(rgb, exif=exif),
      "grey12": saved(Image.fromarray(wide[..., 0] * 16))}  # fmt: skip
  else:
    files = {
      "rgb": saved(rgb), "grey": saved(modes["L"]), "palette": saved(modes["P"]), "bits": saved(modes["1"]),
      "alpha": by_opencv(np.asarray(rgba)[..., [2, 1, 0, 3]])}  # fmt: skip
  return tuple(files.items())


def truncate(data: bytes, rng: random.Random) -> bytes:
  return data[: rng.choice([rng.randrange(len(data) + 1), max(0, len(data) - rng.randint(1, 40)), 0, 8])]


def flip(data: bytes, rng: random.Random, start: int = 0, stop: int | None = None) -> bytes:
  changed = bytearray(data)
  for _ in range(rng.choice([1, 1, 2, 8, 40])):
    if len(changed) > start:
      changed[rng.randrange(start, min(len(changed), stop or len(changed)))] = rng.randrange(256)
  return bytes(changed)


def flip_header(data: bytes, rng: random.Random) -> bytes:
  return flip(data, rng, 0, 64)


def piece(data: bytes, rng: random.Random) -> tuple[int, int]:
  start = rng.randrange(len(data) + 1)
  return start, min(len(data), start + rng.choice([1, 4, 16, 100, 1000]))


def cut_out(data: bytes, rng: random.Random) -> bytes:
  start, stop = piece(data, rng)
  return data[:start] + data[stop:]


def zeros(data: bytes, rng: random.Random) -> bytes:
  start, stop = piece(data, rng)
  return data[:start] + bytes(stop - start) + data[stop:]


def repeat(data: bytes, rng: random.Random) -> bytes:
  start, stop = piece(data, rng)
  return data[:stop] + data[start:stop] * rng.choice([1, 1, 3, 1000]) + data[stop:]


def insert(data: bytes, rng: random.Random) -> bytes:
  start, _ = piece(data, rng)
  return data[:start] + rng.randbytes(rng.choice([1, 2, 16, 300])) + data[start:]


def splice(data: bytes, rng: random.Random) -> bytes:
  """The beginning of a file and the end of another."""
  kind = rng.choice(list(SUFFIX))
  other = rng.choice(originals(kind))[1]
  return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


def append(data: bytes, rng: random.Random) -> bytes:
  garbage = [bytes(1), bytes(5000), rng.randbytes(200), b"\r\n", b"</html>", b"\xff\xd9", data]
  return data + rng.choice(garbage)


def prepend(data: bytes, rng: random.Random) -> bytes:
  return rng.choice([b"\n", b"\xef\xbb\xbf", b"HTTP/1.1 200 OK\r\n\r\n", rng.randbytes(12)]) + data


def another_file(data: bytes, rng: random.Random) -> bytes:
  return rng.choice([b"", b"\xff\xd8", PNG, b"<!DOCTYPE html><html>404</html>", b"BM",
                     b"II*\0", b"RIFF\0\0\0\0WEBP", b"\0\5\x16\7\0\2", b"GIF89a", b"<svg/>", bytes(1000),
                     b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"])  # fmt: skip


def of_text(data: bytes, rng: random.Random) -> bytes:
  """As tools that take a file for text leave it."""
  return rng.choice([
    lambda: data.replace(b"\r\n", b"\n"), lambda: data.replace(b"\n", b"\r\n"),
    lambda: data.decode("latin-1").encode("utf-8"), lambda: data.decode("utf-8",
    "ignore").encode()])()  # fmt: skip


def lie(data: bytes, rng: random.Random) -> bytes:
  """Another width, height or other number where the header has them."""
  size, change = rng.choice(SIZES), bytearray(data)
  if data[:8] == PNG and len(data) > 33:
    place = rng.choice([16, 20, 16, 20, 24, 25, 26, 28])
    change[place : place + 4] = size.to_bytes(4, "big") if place < 24 else change[place : place + 4]
    if place >= 24:
      change[place] = rng.choice([0, 1, 2, 3, 4, 6, 8, 16, 255])
    change[29:33] = struct.pack(">I", zlib.crc32(change[12:29]))
  elif data[:2] == b"\xff\xd8":
    starts = [i for i in range(len(data) - 9) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC2)]
    if starts:
      place = starts[0] + rng.choice([5, 7, 5, 7, 4, 9])
      change[place : place + 2] = (size & 0xFFFF).to_bytes(2, "big")
  elif data[:2] == b"BM" and len(data) > 54:
    place = rng.choice([2, 10, 14, 18, 18, 22, 22, 26, 28, 30, 34, 46])
    value = rng.choice([size & 0xFFFFFFFF, (-size) & 0xFFFFFFFF])
    change[place : place + 4] = value.to_bytes(4, "little")
  elif data[8:12] == b"WEBP" and len(data) > 40:
    place = rng.choice([4, 16, 20, 21, 24, 26, 27, 28])
    change[place : place + 3] = (size & 0xFFFFFF).to_bytes(3, "little")
  elif data[:4] == b"II*\0" and len(data) > 100:
    ifd = int.from_bytes(data[4:8], "little")
    number = int.from_bytes(data[ifd : ifd + 2], "little")
    entry = ifd + 2 + 12 * rng.randrange(max(1, min(number, 40)))
    field = rng.choice([0, 2, 4, 8, 8, 8, 8])  # tag, type, count, value
    width = 2 if field < 4 else 4
    change[entry + field : entry + field + width] = (size % 2 ** (8 * width)).to_bytes(width, "little")
  return bytes(change)


def parts(data: bytes) -> list[bytes]:
  """PNG chunks, JPEG segments, RIFF chunks; the whole if there are none."""
  if data[:8] == PNG:
    found, at = [data[:8]], 8
    while at + 12 <= len(data):
      length = int.from_bytes(data[at : at + 4], "big")
      found.append(data[at : at + 12 + length])
      at += 12 + length
    return found
  if data[:2] == b"\xff\xd8":
    found, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xDA, 0xD9):
      length = int.from_bytes(data[at + 2 : at + 4], "big")
      found.append(data[at : at + 2 + length])
      at += 2 + length
    return [*found, data[at:]]
  if data[8:12] == b"WEBP":
    found, at = [data[:12]], 12
    while at + 8 <= len(data):
      length = int.from_bytes(data[at + 4 : at + 8], "little")
      found.append(data[at : at + 8 + length + length % 2])
      at += 8 + length + length % 2
    return found
  return [data[i : i + 64] for i in range(0, len(data), 64)]


def chunks(data: bytes, rng: random.Random) -> bytes:
  """One part of the file is there again, not there, elsewhere, or one that nobody knows is."""
  found = parts(data)
  what, i = rng.choice(["again", "gone", "moved", "new", "many"]), rng.randrange(len(found))
  if what == "again":
    found.insert(rng.randrange(len(found) + 1), found[i])
  elif what == "many":
    found[i] = found[i] * 2000
  elif what == "gone":
    del found[i]
  elif what == "moved":
    found.insert(rng.randrange(len(found)), found.pop(i))
  else:
    body = rng.randbytes(rng.choice([0, 4, 13, 200]))
    length = rng.choice([len(body)] * 3 + [2**31 - 1, 2**32 - 1, 0])
    name = rng.choice(CHUNKS) + body
    png = struct.pack(">I", length) + name + struct.pack(">I", zlib.crc32(name))
    marker = bytes([0xFF, rng.choice([0xE0, 0xE1, 0xE2, 0xEE, 0xFE, 0xC4, 0xDB, 0xDD, 0xC0])])
    jpeg = marker + struct.pack(">H", min(length + 2, 65535)) + body
    found.insert(min(i + 1, len(found)), jpeg if data[:2] == b"\xff\xd8" else png)
  return b"".join(found)


def inside(data: bytes, rng: random.Random) -> bytes:
  """Other pixels in a whole file; of a PNG within its compressed data, so that all checksums are right."""
  found = parts(data)
  packed = [i for i, part in enumerate(found) if part[4:8] == b"IDAT"]
  if data[:4] != b"\x89PNG" or not packed:
    return flip(data, rng, len(data) // 2)
  try:
    rows = zlib.decompress(b"".join(found[i][8:-4] for i in packed))
  except zlib.error:
    return data
  chunk = b"IDAT" + zlib.compress(rng.choice([flip, flip, truncate, cut_out, append])(rows, rng))
  found[packed[0]] = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
  return b"".join(part for i, part in enumerate(found) if i not in packed[1:])


def exif_garbage(data: bytes, rng: random.Random) -> bytes:
  """Orientation 0, 9, a text, and a block that is cut off."""
  if data[:2] != b"\xff\xd8":
    return flip(data, rng)
  body = b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x0112, rng.choice([3, 2, 7, 12]), rng.choice([1, 0,
  9**9]),
                                           rng.choice([0, 1, 3, 6, 8, 9, 2**31]))  # fmt: skip
  body = b"Exif\0\0" + body[: rng.choice([0, 2, 10, 20, 99])]
  return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
  truncate, flip, flip_header, cut_out, zeros, repeat, insert, splice, append, prepend, another_file,
  of_text, lie,
  lie, lie, chunks, chunks, inside, inside, inside, exif_garbage)  # fmt: skip


def write(folder: Path, kind: str, rng: random.Random) -> list[str]:
  """A COCO folder of a good picture and the mutated one; `original` beside it. Returns what was done."""
  special, data = rng.choice(originals(kind))
  done, changed = [special], data
  for _ in range(rng.choice([1, 1, 2, 3]) if rng.random() > 0.03 else 0):
    mutation = rng.choice(MUTATIONS)
    done.append(mutation.__name__)
    changed = mutation(changed, rng) if changed else changed
  suffix = SUFFIX[rng.choice(list(SUFFIX))] if rng.random() < 0.05 else SUFFIX[kind]
  (folder / "train").mkdir(parents=True)
  (folder / "annotations").mkdir()
  (folder / f"original.{SUFFIX[kind]}").write_bytes(data)
  (folder / "train" / "good.png").write_bytes(dict(originals("png"))["rgb"])
  (folder / "train" / f"picture.{suffix}").write_bytes(changed)
  names = ["good.png", f"picture.{suffix}"]
  images = [{"id": i, "file_name": n, "width": WIDTH, "height": HEIGHT} for i, n in enumerate(names, 1)]
  boxes = [
    {"id": i, "image_id": i, "category_id": 1, "bbox": [4, 5, 20, 30], "area": 600, "iscrowd": 0}
    for i in (1, 2)
  ]
  content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
  (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))
  return done
