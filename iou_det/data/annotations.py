"""COCO-format annotation files: read whole, checked record by record, kept as columns of numbers.

The columns are small (about 60 bytes a box): images are never held, so memory is that of the boxes alone.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from iou_det.errors import UserError

SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Category:
  """A class of objects: its id in the original files and its name."""

  id: int
  name: str


class Problem(NamedTuple):
  """Something wrong with one record of a data set."""

  where: str  # file and record
  what: str
  image_id: int | None = None  # of an image that must go, if its file is bad

  def __str__(self) -> str:
    return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Annotations:
  """All records of a split without their images, as columns, in the order of the file.

  Attributes:
    image_id, file_name, height, width: one entry an image; sizes in pixels.
    first: boxes of image i are the rows first[i] to first[i + 1] of the columns below.
    bbox: x, y, w, h in pixels, as in the file.
    label: 0..K-1, the place in the category table sorted by id.
    crowd, area (pixels^2), annotation_id: as in the file.
  """

  image_id: Int64[np.ndarray, " images"]
  file_name: Sequence[str]
  height: Int32[np.ndarray, " images"]
  width: Int32[np.ndarray, " images"]
  first: Int64[np.ndarray, " images+1"]
  bbox: Float64[np.ndarray, "boxes 4"]
  label: Int32[np.ndarray, " boxes"]
  crowd: Bool[np.ndarray, " boxes"]
  area: Float64[np.ndarray, " boxes"]
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
    rows = [np.arange(self.first[i], self.first[i + 1]) for i in images]
    boxes = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    columns = {f.name: getattr(self, f.name) for f in fields(self)}
    of_images = {k: columns[k][images] for k in ("image_id", "height", "width")}
    of_boxes = {k: columns[k][boxes] for k in ("bbox", "label", "crowd", "area", "annotation_id")}
    first = np.cumsum([0, *(len(r) for r in rows)], dtype=np.int64)
    return Annotations(file_name=[self.file_name[i] for i in images], first=first, **of_images, **of_boxes)


def from_rows(images: list[tuple[int, str, int, int]], boxes: list[list[tuple]]) -> Annotations:
  """Columns from rows.

  Args:
    images: (id, file name, height, width) of each image.
    boxes: for each image a list of (x, y, w, h, label, crowd, area, annotation id).
  """
  flat = [row for rows in boxes for row in rows]
  column = lambda rows, i, dtype: np.array([row[i] for row in rows], dtype)
  return Annotations(
    image_id=column(images, 0, np.int64), file_name=[row[1] for row in images],
    height=column(images, 2, np.int32), width=column(images, 3, np.int32),
    first=np.cumsum([0, *map(len, boxes)], dtype=np.int64),
    bbox=np.array([row[:4] for row in flat], np.float64).reshape(-1, 4), label=column(flat, 4, np.int32),
    crowd=column(flat, 5, np.bool_), area=column(flat, 6, np.float64),
    annotation_id=column(flat, 7, np.int64),
  )  # fmt: skip


@dataclass
class CocoFile:
  """What an annotation file holds: the good records, and what is wrong with the others."""

  categories: tuple[Category, ...]
  annotations: Annotations
  problems: list[Problem] = field(default_factory=list)
  defaults: Counter[str] = field(default_factory=Counter)  # values that were not in the file
  records: int = 0  # images and annotations in the file, good or bad
  dropped_boxes: int = 0  # boxes that went with their image


def read_coco(path: str | Path) -> CocoFile:
  """Reads a COCO-format `instances_*.json`.

  An annotation without `iscrowd`, `area` or `id` gets 0, w * h or its place in the file (from 1); counted in
  `defaults`. Boxes of no area or outside their image are kept as they are.

  Raises:
    UserError: if the file as a whole cannot be used (missing, no JSON, a list missing or empty, an ambiguous
      category table); a record that is bad is not an error here but a `Problem`.
  """
  path = Path(path)
  content = load_json(path)
  categories = read_categories(path, content["categories"])
  coco = CocoFile(categories, from_rows([], []), records=len(content["images"]) + len(content["annotations"]))
  images: list[tuple[int, str, int, int]] = []
  place: dict[int, int] = {}
  refused: set[int] = set()  # ids of bad images: their annotations go with them without another word
  for number, image in enumerate(content["images"]):
    what = image_problem(image)
    if not what and image["id"] in place:
      what = f"a second image has this id (the first is {images[place[image['id']]][1]}); ids must differ"
    if what:
      coco.problems.append(Problem(f"{path}, {describe('image', image, number)}", what))
      if isinstance(image, dict) and is_integer(image.get("id")) and image["id"] not in place:
        refused.add(image["id"])
      continue
    place[image["id"]] = len(images)
    images.append((image["id"], image["file_name"], image["height"], image["width"]))
  refused -= place.keys()
  boxes: list[list[tuple]] = [[] for _ in images]
  label = {c.id: i for i, c in enumerate(categories)}
  for number, ann in enumerate(content["annotations"]):
    if isinstance(ann, dict) and ann.get("image_id") in refused:
      coco.dropped_boxes += 1
      continue
    what = annotation_problem(ann, place, label)
    if what:
      coco.problems.append(Problem(f"{path}, {describe('annotation', ann, number)}", what))
      continue
    coco.defaults.update(key for key in ("area", "iscrowd", "id") if key not in ann)
    x, y, w, h = ann["bbox"]
    boxes[place[ann["image_id"]]].append(
      (x, y, w, h, label[ann["category_id"]], ann.get("iscrowd", 0), ann.get("area", w * h),
       ann.get("id", number + 1)))  # fmt: skip
  coco.annotations = from_rows(images, boxes)
  return coco


def load_json(path: Path) -> dict[str, list]:
  """The three lists of an annotation file; polygons and other fields are dropped while it is parsed."""
  if not path.is_file():
    beside = ", ".join(sorted(p.name for p in path.parent.glob("*.json"))[:10]) or "none"
    raise UserError(f"annotation file {path} does not exist; JSON files in {path.parent}: {beside}")
  wanted = {"images", "annotations", "categories", "id", "file_name", "height", "width", "image_id"}
  wanted |= {"category_id", "bbox", "area", "iscrowd", "name"}

  def keep(pairs):  # called as soon as an object is complete, so polygons do not add up in memory
    return {k: v for k, v in pairs if k in wanted}

  try:
    with path.open("rb") as file:
      content = json.load(file, object_pairs_hook=keep)
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise UserError(f"annotation file {path} is not JSON ({error}); give a COCO instances_*.json") from None
  for key in ("images", "annotations", "categories"):
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
      raise UserError(
        f"annotation file {path} has no list {key!r}; a COCO file is one object with the lists images, "
        "annotations and categories"
      )
    if not content[key]:
      raise UserError(f"annotation file {path}: the list {key!r} is empty; nothing to train or score on")
  return content


def read_categories(path: Path, rows: list) -> tuple[Category, ...]:
  """The category table sorted by id."""
  for number, row in enumerate(rows):
    if not isinstance(row, dict) or not is_integer(row.get("id")) or not is_name(row.get("name")):
      where = describe("category", row, number)
      raise UserError(f"{path}, {where}: needs a whole number 'id' and a 'name' of one line")
  for key in ("id", "name"):
    often = [value for value, count in Counter(str(row[key]).strip() for row in rows).items() if count > 1]
    if often:
      raise UserError(f"{path}: more than one category has the {key} {often[0]}; ids and names must differ")
  return tuple(Category(row["id"], row["name"]) for row in sorted(rows, key=lambda row: row["id"]))


def image_problem(image: Any) -> str:
  """What is wrong with an entry of `images`; "" if nothing."""
  if not isinstance(image, dict):
    return "is not an object"
  missing = [key for key in ("id", "file_name", "height", "width") if key not in image]
  if missing:
    return f"has no {' and no '.join(map(repr, missing))}"
  if not is_integer(image["id"]):
    return f"'id' is {image['id']!r}, must be a whole number"
  if not isinstance(image["file_name"], str) or not image["file_name"]:
    return f"'file_name' is {image['file_name']!r}, must be a text"
  for key in ("height", "width"):
    if not is_integer(image[key]) or not 1 <= image[key] < 2**31:
      return f"{key!r} is {image[key]!r}, must be a whole number above 0"
  return ""


def annotation_problem(ann: Any, place: dict[int, int], label: dict[int, int]) -> str:
  """What is wrong with an entry of `annotations`; "" if nothing."""
  if not isinstance(ann, dict):
    return "is not an object"
  missing = [key for key in ("image_id", "category_id", "bbox") if key not in ann]
  if missing:
    return f"has no {' and no '.join(map(repr, missing))}"
  if not is_integer(ann["image_id"]) or ann["image_id"] not in place:
    return f"there is no image with the id {ann['image_id']!r}"
  if not is_integer(ann["category_id"]) or ann["category_id"] not in label:
    known = ", ".join(map(str, list(label)[:10])) + (", ..." if len(label) > 10 else "")
    return f"unknown category_id {ann['category_id']!r}; known: {known}"
  box = ann["bbox"]
  if not isinstance(box, list) or len(box) != 4 or not all(is_finite(v) for v in box):
    return f"'bbox' is {box!r}, must be four finite numbers x, y, w, h"
  if box[2] < 0 or box[3] < 0:
    return f"'bbox' is {box!r}, w and h must not be negative"
  if "area" in ann and not is_finite(ann["area"]):
    return f"'area' is {ann['area']!r}, must be a finite number"
  if "iscrowd" in ann and ann["iscrowd"] not in (0, 1):
    return f"'iscrowd' is {ann['iscrowd']!r}, must be 0 or 1"
  if "id" in ann and not is_integer(ann["id"]):
    return f"'id' is {ann['id']!r}, must be a whole number"
  return ""


def is_name(value: Any) -> bool:
  return isinstance(value, str) and value.strip() != "" and len(value.splitlines()) == 1


def is_integer(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_finite(value: Any) -> bool:
  return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def describe(kind: str, row: Any, number: int) -> str:
  """`image id 5 (a.jpg)`, or the place in the list if there is no id."""
  if not isinstance(row, dict) or "id" not in row:
    return f"{kind} number {number}"
  image = f" (image id {row['image_id']!r})" if "image_id" in row else ""
  name = f" ({row['file_name']})" if "file_name" in row else ""
  return f"{kind} id {row['id']!r}{image}{name}"


def list_problems(problems: Sequence[Problem]) -> str:
  """The first problems and how many there are in all."""
  shown = "; ".join(str(p) for p in problems[:SHOWN_PROBLEMS])
  more = len(problems) - SHOWN_PROBLEMS
  return shown + (f"; and {more} more" if more > 0 else "")
