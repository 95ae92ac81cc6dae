"""Shapes: a procedural data set, drawn when asked for, so that training needs no download.

Each image holds 1 to 6 filled shapes of four classes on textured clutter. Everything about image i of a split
follows from (seed, split, i) alone: coordinates are whole sixteenths of a pixel and drawing is done on
integers, so the pixels are the same on any machine (the encoded bytes as far as the encoder is the same).
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Int, UInt8

from iou_det.data.coco import write_annotations
from iou_det.data.source import Category, Source, from_rows
from iou_det.errors import UserError

NAME = "shapes"
WHAT = '"shapes"'
SIGN = "such name"
NAMES = ("triangle", "rectangle", "star", "ellipse")
CATEGORIES = tuple(Category(i, name) for i, name in enumerate(NAMES, 1))
SPLITS = {"train": 4000, "val": 500, "test": 1000}  # default numbers of images
MAX_OBJECTS = 6
MIN_SIDE, MAX_SIDE = 20.0, 80.0  # longer side of a box, pixels
MIN_VISIBLE = 0.6
UNITS = 16  # coordinates are counted in 1/16 px
OVERSAMPLING = 4  # of the drawn shapes, for smooth edges
MIN_IMAGE_SIDE = 40


class Shape(NamedTuple):
  label: int
  polygon: Int[np.ndarray, "v 2"]  # x, y, 1/16 px; (0, 0) is the image's top left corner

  def window(self) -> tuple[int, int, int, int]:
    """The whole pixels it touches: x1, y1, x2, y2 (exclusive)."""
    x1, y1 = self.polygon.min(axis=0) // UNITS
    x2, y2 = -(-self.polygon.max(axis=0) // UNITS)
    return int(x1), int(y1), int(x2), int(y2)

  def cover(self) -> UInt8[np.ndarray, "h w"]:
    """Its window with the covered share of each pixel, 0 to 255."""
    x1, y1, x2, y2 = self.window()
    large = np.zeros(((y2 - y1) * OVERSAMPLING, (x2 - x1) * OVERSAMPLING), np.uint8)
    unit = UNITS // OVERSAMPLING
    # OpenCV's coordinates are those of pixel centres. It draws the outline too, about half a pixel wide on
    # either side, hence the large drawing.
    points = self.polygon - np.array([x1, y1]) * UNITS - unit // 2
    cv2.fillPoly(large, [points.astype(np.int32)], 255, shift=unit.bit_length() - 1)
    return cv2.resize(large, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA)

  def mask(self) -> Bool[np.ndarray, "h w"]:
    """Its window with the pixels it covers by half or more."""
    return self.cover() >= 128


class Scene(NamedTuple):
  height: int
  width: int
  shapes: list[Shape]  # later ones lie on top


@dataclass(frozen=True)
class Shapes:
  """A split of the embedded data set; `source()` opens it, a call draws image `i`.

  Boxes are those of the full shape, inside the image, tight around its corners (ellipses have 64), and `area`
  is that of the full polygon. At least 60 % of the pixels of every shape stay visible. The longer side of a
  box has 20 to 80 pixels, but at most 60 % of the image's shorter side.
  """

  split: str  # see SPLITS
  images: int | None = None  # another number; the first images of a split do not depend on it
  height: int = 128  # pixels, at least 40
  width: int = 160
  seed: int = 0  # another data set
  encoding: Literal["png", "jpeg"] = "jpeg"  # JPEG has quality 95
  portrait_share: float = 0.0  # of the images that have height and width swapped

  def source(self) -> Source:
    """Everything but the pixels is made here."""
    size = f"{self.width}x{self.height}"
    if self.split not in SPLITS:
      raise UserError(f"shapes has no split {self.split!r}; there are: {', '.join(SPLITS)}")
    if min(self.height, self.width) < MIN_IMAGE_SIDE:
      raise UserError(f"shapes cannot be {size} pixels; both sides must be >= {MIN_IMAGE_SIDE}")
    suffix = "jpg" if self.encoding == "jpeg" else "png"
    images: list[tuple[int, str, int, int]] = []
    boxes: list[list[tuple]] = []
    for i in range(SPLITS[self.split] if self.images is None else self.images):
      scene = self.scene(i)
      images.append((i + 1, f"{i + 1:06d}.{suffix}", scene.height, scene.width))
      boxes.append([])
      for number, (label, polygon) in enumerate(scene.shapes, i * MAX_OBJECTS + 1):
        (x, y), (x2, y2) = polygon.min(axis=0) / UNITS, polygon.max(axis=0) / UNITS
        boxes[i].append((x, y, x2 - x, y2 - y, label, 0, polygon_area(polygon) / UNITS**2, number))
    return Source(f"shapes/{self.split}", CATEGORIES, from_rows(images, boxes), self)

  def __call__(self, i: int) -> bytes:
    return encoded(self, i)

  def scene(self, i: int) -> Scene:
    return arrange(self.height, self.width, self.portrait_share, self.generator(i, 0))

  def generator(self, i: int, part: int) -> np.random.Generator:
    """For the boxes (part 0) or the pixels (1) of image `i`: boxes can be had without drawing."""
    return np.random.default_rng([self.seed, list(SPLITS).index(self.split), i, part])


@functools.lru_cache(maxsize=8192)  # drawing takes longer than decoding, and each epoch asks again
def encoded(shapes: Shapes, i: int) -> bytes:
  """Image `i` as a file's content."""
  pixels = draw(shapes.scene(i), shapes.generator(i, 1))
  if shapes.encoding == "png":
    return cv2.imencode(".png", pixels[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
  return cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def recognises(path: str | Path) -> bool:
  return str(path) == "shapes"


def splits(path: str | Path) -> list[str]:
  return list(SPLITS)


def open_split(path: str | Path, split: str) -> Source:
  return Shapes(split).source()


def export_coco(shapes: Shapes, root: str | Path) -> None:
  """Writes a COCO folder (`annotations/instances_SPLIT.json` and the images in `SPLIT/`)."""
  source, folder = shapes.source(), Path(root) / shapes.split
  folder.mkdir(parents=True, exist_ok=True)
  write_annotations(Path(root), shapes.split, source.categories, source.annotations)
  for i, name in enumerate(source.annotations.file_name):
    (folder / name).write_bytes(source.read(i))


def regular(n: int) -> np.ndarray:
  angles = np.arange(n) * 2 * math.pi / n
  return np.stack([np.cos(angles), np.sin(angles)], axis=1)


SQUARE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64)
STAR = regular(10) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
POLYGONS = [regular(3), SQUARE, STAR, regular(64)]  # corners about the origin, in the order of NAMES


def polygon_area(polygon: Int[np.ndarray, "v 2"]) -> float:
  """Shoelace formula; the unit of the corners, squared."""
  x, y = polygon[:, 0], polygon[:, 1]
  return abs(int(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def arrange(height: int, width: int, portrait_share: float, rng: np.random.Generator) -> Scene:
  """Shapes that hide at most 40 % of each other."""
  if rng.random() < portrait_share:
    height, width = width, height
  largest = min(MAX_SIDE, 0.6 * min(height, width))
  wanted = int(rng.integers(1, MAX_OBJECTS + 1))
  shapes: list[Shape] = []
  pixels: list[int] = []  # of each shape
  owner = np.zeros((height, width), np.uint8)  # number (from 1) of the shape that is seen in a pixel
  for _ in range(4 * wanted):
    shape = random_shape(height, width, largest, rng)
    x1, y1, x2, y2 = shape.window()
    mask, seen = shape.mask(), owner[y1:y2, x1:x2]
    if seen.any():
      hidden = np.bincount(seen[mask], minlength=MAX_OBJECTS + 1)
      visible = np.bincount(owner.ravel(), minlength=MAX_OBJECTS + 1) - hidden
      if any(visible[k] < MIN_VISIBLE * count for k, count in enumerate(pixels, 1)):
        continue
    shapes.append(shape)
    pixels.append(int(mask.sum()))
    seen[mask] = len(shapes)
    if len(shapes) == wanted:
      break
  return Scene(height, width, shapes)


def random_shape(height: int, width: int, largest: float, rng: np.random.Generator) -> Shape:
  """Any class, size (log-uniform), side ratio, turn and place inside the image."""
  label = int(rng.integers(len(NAMES)))
  flatness, angle, position = rng.uniform(0.65, 1.0), rng.uniform(0, 2 * math.pi), rng.random(2)
  side = MIN_SIDE * (largest / MIN_SIDE) ** rng.random()
  c, s = math.cos(angle), math.sin(angle)
  turned = POLYGONS[label] * [1.0, flatness] @ np.array([[c, s], [-s, c]])
  scale = side / np.ptp(turned, axis=0).max()
  polygon = np.rint(turned * scale * UNITS).astype(np.int64)
  polygon -= polygon.min(axis=0)
  free = np.array([width, height]) * UNITS - polygon.max(axis=0)
  return Shape(label, polygon + (position * (free + 1)).astype(np.int64))


def draw(scene: Scene, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
  """RGB pixels."""
  canvas = clutter(scene.height, scene.width, rng)
  for shape in scene.shapes:
    x1, y1, x2, y2 = shape.window()
    under = canvas[y1:y2, x1:x2]
    fill = texture(distinct_colour(under, rng), y2 - y1, x2 - x1, rng).astype(np.int32)
    cover = shape.cover().astype(np.int32)[:, :, None]
    under[:] = (under * (255 - cover) + fill * cover + 127) // 255
  return canvas


def clutter(height: int, width: int, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
  """Noise at four scales with thin lines, arcs and dots on it."""
  total = np.zeros((height, width, 3), np.int16) + rng.integers(60, 196, 3, np.int16) - 90
  for cell, strength in ((64, 80), (24, 50), (8, 30), (1, 20)):
    coarse = rng.integers(0, strength + 1, (-(-height // cell) + 1, -(-width // cell) + 1, 3), np.uint8)
    total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
  canvas = np.clip(total, 0, 255).astype(np.uint8)
  for kind in rng.integers(0, 3, int(rng.integers(3, 9))):
    colour = rng.integers(0, 256, 3).tolist()
    x, y, x2, y2 = (rng.random((2, 2)) * [width, height]).astype(int).ravel().tolist()
    size, turn = int(rng.integers(5, 40)), int(rng.integers(0, 360))
    if kind == 0:
      cv2.line(canvas, (x, y), (x2, y2), colour, 1, cv2.LINE_8)
    elif kind == 1:
      cv2.ellipse(canvas, (x, y), (size, size // 2 + 1), turn, 0, 60 + 5 * size, colour, 1, cv2.LINE_8)
    else:
      cv2.circle(canvas, (x, y), 1 + size // 20, colour, cv2.FILLED, cv2.LINE_8)
  return canvas


def distinct_colour(under: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> Int[np.ndarray, "3"]:
  """A colour that differs from the mean of what lies under it by 90 or more in some channel."""
  choices = rng.integers(0, 256, (8, 3))
  mean = under.reshape(-1, 3).sum(axis=0, dtype=np.int64) // (under.size // 3)
  difference = np.abs(choices - mean).max(axis=1)
  return choices[np.argmax(np.minimum(difference, 90))]


def texture(
  colour: Int[np.ndarray, "3"], height: int, width: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
  """A plain, graded, striped or blotched surface of a colour, with fine noise."""
  kind, strength = int(rng.integers(4)), int(rng.integers(15, 41))
  down, right = rng.integers(-8, 9, 2).tolist()
  y, x = np.arange(height)[:, None], np.arange(width)[None, :]
  light = np.zeros((height, width), np.int64)
  if kind == 1:
    light = strength * (down * (2 * y - height) * width + right * (2 * x - width) * height)
    light //= 8 * height * width
  elif kind == 2:
    light = np.where((down * y + right * x) // 24 % 2 > 0, strength, -strength)
  elif kind == 3:
    coarse = rng.integers(0, 2 * strength + 1, (height // 6 + 2, width // 6 + 2), np.uint8)
    blotches = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    light = blotches.astype(np.int64) - strength
  noise = rng.integers(-10, 11, (height, width, 3), np.int16)
  return np.clip(colour + light[:, :, None] + noise, 0, 255).astype(np.uint8)
