"""What a data set is to the rest: categories, all annotations as columns of numbers, images by random access.

The columns are small (about 60 bytes a box): images are never held, so memory is that of the boxes alone.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int32, Int64


@dataclass(frozen=True)
class Category:
  """A class of objects: its id in the original files and its name."""

  id: int
  name: str


def describe_difference(tables: dict[str, Sequence[Category]]) -> str:
  """In what two category tables differ: the first few that only one has, with their ids, under its name."""
  (a, of_a), (b, of_b) = tables.items()
  only = lambda ours, theirs: [f"{c.id}: {c.name}" for c in ours if c not in theirs][:5]
  parts = {a: only(of_a, of_b), b: only(of_b, of_a)}
  return "; ".join(f"only in {name}: {', '.join(rows) or 'none'}" for name, rows in parts.items())


def describe_categories(categories: Sequence[Category]) -> str:
  """The first of them with their ids, and how many there are."""
  shown = ", ".join(f"{c.id}: {c.name}" for c in categories[:5])
  return f"{shown}{', ...' if len(categories) > 5 else ''}; {len(categories)} in all"


@dataclass(frozen=True, eq=False)
class Annotations:
  """All records of a split without their images, as columns, in the order of the file."""

  image_id: Int64[np.ndarray, " images"]
  file_name: Sequence[str]
  height: Int32[np.ndarray, " images"]  # pixels
  width: Int32[np.ndarray, " images"]
  first: Int64[np.ndarray, " images+1"]  # boxes of image i are the rows first[i] to first[i + 1] of these:
  bbox: Float64[np.ndarray, "boxes 4"]  # x, y, w, h in pixels, as in the file
  label: Int32[np.ndarray, " boxes"]  # 0..K-1, the place in the category table sorted by id
  crowd: Bool[np.ndarray, " boxes"]
  area: Float64[np.ndarray, " boxes"]  # pixels^2, as in the file
  annotation_id: Int64[np.ndarray, " boxes"]

  def __len__(self) -> int:
    return len(self.image_id)

  def rows(self, i: int) -> slice:
    """The rows of the box columns that belong to image `i`."""
    return slice(int(self.first[i]), int(self.first[i + 1]))

  def image_of_box(self) -> Int64[np.ndarray, " boxes"]:
    """Which image each box belongs to."""
    return np.repeat(np.arange(len(self)), np.diff(self.first))

  def select(self, images: Int64[np.ndarray, " kept"]) -> "Annotations":
    """The given images, in the given order, with their boxes."""
    first = np.concatenate([[0], np.cumsum(np.diff(self.first)[images])])
    boxes = np.arange(first[-1]) + np.repeat(self.first[images] - first[:-1], np.diff(first))
    of_images = {k: getattr(self, k)[images] for k in ("image_id", "height", "width")}
    of_boxes = {k: getattr(self, k)[boxes] for k in ("bbox", "label", "crowd", "area", "annotation_id")}
    return Annotations(file_name=[self.file_name[i] for i in images], first=first, **of_images, **of_boxes)


def from_rows(images: list[tuple[int, str, int, int]], boxes: list[list[tuple]]) -> Annotations:
  """Columns from (id, file name, height, width) of each image and, for each image, a list of its boxes:
  (x, y, w, h, label, crowd, area, annotation id)."""
  flat = [row for rows in boxes for row in rows]
  column = lambda rows, i, dtype: np.array([row[i] for row in rows], dtype)
  image_id, height, width = (column(images, i, t) for i, t in ((0, np.int64), (2, np.int32), (3, np.int32)))
  of_boxes = [column(flat, i, t) for i, t in enumerate((np.int32, np.bool_, np.float64, np.int64), 4)]
  first = np.cumsum([0, *map(len, boxes)], dtype=np.int64)
  bbox = np.array([row[:4] for row in flat], np.float64).reshape(-1, 4)
  return Annotations(image_id, [row[1] for row in images], height, width, first, bbox, *of_boxes)


@dataclass(frozen=True)
class Record:
  """One image with all of its boxes, crowds, empty and overhanging ones too; see `Annotations`.

  Boxes refer to the pixels after what `exif` does.
  """

  image_id: int
  file_name: str
  image: bytes  # the file, a picture of any kind
  height: int
  width: int
  boxes: Float[np.ndarray, "n 4"]  # x1, y1, x2, y2 in pixels, x2 and y2 exclusive
  labels: Int[np.ndarray, " n"]
  crowd: Bool[np.ndarray, " n"]
  area: Float[np.ndarray, " n"]
  annotation_id: Int[np.ndarray, " n"]
  exif: str = "auto"  # whether EXIF rotation is applied to the picture: see images.turned


@dataclass(frozen=True, eq=False)
class Source:
  """A split of a data set: what is known of all images, and how to read one.

  Attributes:
    categories: sorted by id; a label is a place in them.
    read: the encoded image of a record by its place, 0 to len - 1; can be pickled, for worker processes.
    exif: of the records.
  """

  name: str
  categories: tuple[Category, ...]
  annotations: Annotations
  read: Callable[[int], bytes]
  exif: str = "auto"
  own_ids: bool = True  # the data say their category ids; else they are places in the alphabet of the names

  def __len__(self) -> int:
    return len(self.annotations)

  def __getitem__(self, i: int) -> Record:
    a = self.annotations
    i = range(len(a))[i]
    rows = a.rows(i)
    image_id, height, width = (int(column[i]) for column in (a.image_id, a.height, a.width))
    label, crowd, area, number = (column[rows] for column in (a.label, a.crowd, a.area, a.annotation_id))
    image, boxes = self.read(i), corners(a.bbox[rows])
    where = (image_id, a.file_name[i], image, height, width)
    return Record(*where, boxes, label, crowd, area, number, self.exif)

  def fingerprint(self) -> str:
    """The same for the same images and boxes, in the same order; pixels and file names do not count."""
    a = self.annotations
    hashed = hashlib.sha256(repr(self.categories).encode())
    for column in (a.image_id, a.height, a.width, a.first, a.bbox, a.label, a.crowd):
      hashed.update(column.tobytes())
    return hashed.hexdigest()

  def adopt(self, table: tuple[Category, ...]) -> "Source":
    """With a category table that has all the names, unless the data have ids of their own."""
    place = {c.name: i for i, c in enumerate(table)}
    if self.own_ids or not all(c.name in place for c in self.categories):
      return self
    new = np.array([place[c.name] for c in self.categories], np.int32)
    annotations = replace(self.annotations, label=new[self.annotations.label])
    return self.replace(categories=table, annotations=annotations)

  def replace(self, **changes: Any) -> "Source":
    """The same with other attributes."""
    return replace(self, **changes)

  def first(self, count: int) -> "Source":
    """The first `count` images, or all if there are fewer."""
    return replace(self, annotations=self.annotations.select(np.arange(min(count, len(self)))))


def corners(bbox: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
  """x, y, w, h -> x1, y1, x2, y2 (exclusive)."""
  return np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1)
