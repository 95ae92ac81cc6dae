"""The rows of a COCO annotation file: typed at once where all are as COCO has them, else taken one by one."""

import math
import mmap
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from iou_det.data.labels import Problem
from iou_det.errors import UserError
from iou_det.storage import parse_json

Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class ImageRow(msgspec.Struct, gc=False):  # gc=False: half the time, as Python looks for no cycles in them
  id: Id
  file_name: str
  height: Id | None = None
  width: Id | None = None


class BoxRow(msgspec.Struct, gc=False):
  image_id: Id
  category_id: Id
  bbox: tuple[float, float, float, float]
  area: float | None = None
  iscrowd: Id | None = None
  id: Id | None = None


class CategoryRow(msgspec.Struct, gc=False):
  id: Id
  name: str
  supercategory: Any = None


class Rows(msgspec.Struct, gc=False):
  """The lists of an annotation file."""

  images: list[ImageRow]
  annotations: list[BoxRow]
  categories: list[CategoryRow]


class Numbered(NamedTuple):
  """Rows that were good enough to be some, with what became of the others."""

  rows: Rows
  images: Sequence[int]  # places in the file's lists
  annotations: Sequence[int]
  problems: list[Problem]
  refused: dict[int, Any]  # ids of bad images (and their file names): their annotations go with them
  taken: Counter[str]  # values that were not as COCO has them
  records: int


def read_rows(path: Path) -> Numbered:
  """The rows of an annotation file: at once where all are as COCO has them, else one by one."""
  if path.is_dir():
    raise UserError(f"annotation file {path} is a folder; give a COCO file (.json)")
  if not path.is_file():
    beside = ", ".join(sorted(p.name for p in path.parent.glob("*.json"))[:10]) or "none"
    raise UserError(f"annotation file {path} does not exist; JSON files in {path.parent}: {beside}")
  with path.open("rb") as file:
    # Not read but mapped: a file of gigabytes need not be in memory twice.
    content: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.path.getsize(path) else b""
    try:
      rows = msgspec.json.decode(content, type=Rows)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
      return read_tolerantly(path, bytes(content))
  for key in ("images", "annotations", "categories"):
    check_list(path, key, getattr(rows, key))
  counts = (len(rows.images), len(rows.annotations))
  return Numbered(rows, range(counts[0]), range(counts[1]), [], {}, Counter(), sum(counts))


def check_list(path: Path, key: str, value: Any) -> None:
  if not isinstance(value, list):
    raise UserError(
      f"annotation file {path} has no list {key!r}; a COCO file is one object with the lists images, "
      "annotations and categories"
    )
  if not value:
    raise UserError(f"annotation file {path}: the list {key!r} is empty; nothing to train or score on")


WANTED = {f for row in (Rows, ImageRow, BoxRow, CategoryRow) for f in row.__struct_fields__}


def read_tolerantly(path: Path, content: bytes) -> Numbered:
  """The rows of a file, each taken for what it means; polygons and other fields are dropped at once."""
  keep = lambda pairs: {k: v for k, v in pairs if k in WANTED}
  lists = parse_json(content, path, "give a COCO instances_*.json", object_pairs_hook=keep)
  for key in ("images", "annotations", "categories"):
    check_list(path, key, lists.get(key) if isinstance(lists, dict) else None)
  taken: Counter[str] = Counter()
  image_ids = numbering([row.get("id") for row in lists["images"] if isinstance(row, dict)])
  if image_ids:
    taken["image ids that are text (numbered in the file's order, also in detections)"] = len(image_ids)
  category_ids = numbering([row.get("id") for row in lists["categories"] if isinstance(row, dict)])
  if category_ids:
    taken["category ids that are text (numbered in the order of the alphabet)"] = len(category_ids)
    category_ids = {name: i for i, name in enumerate(sorted(category_ids), 1)}
  problems: list[Problem] = []
  images: list[ImageRow] = []
  boxes: list[BoxRow] = []
  at_image, at_box = [], []
  refused: dict[int, Any] = {}
  for number, row in enumerate(lists["images"]):
    made = image_row(row, image_ids, taken)
    if isinstance(made, ImageRow):
      images.append(made)
      at_image.append(number)
      continue
    problems.append(Problem(f"{path}, {describe('image', row, number)}", *made))
    if isinstance(row, dict) and (known := identity(row.get("id"), image_ids, Counter())) is not None:
      refused[known] = row.get("file_name")
  for number, row in enumerate(lists["annotations"]):
    given = box_row(row, image_ids, category_ids, taken)
    if isinstance(given, BoxRow):
      if given.id is None and row.get("id") is not None:
        given.id = number + 1
      boxes.append(given)
      at_box.append(number)
    else:
      problems.append(Problem(f"{path}, {describe('annotation', row, number)}", *given))
  categories = []
  for number, row in enumerate(lists["categories"]):
    id = identity(row.get("id"), category_ids, taken) if isinstance(row, dict) else None
    if id is None or not isinstance(row.get("name"), str):
      where = describe("category", row, number)
      raise UserError(f"{path}, {where}: needs a whole number 'id' and a 'name' of one line")
    categories.append(CategoryRow(id, row["name"], row.get("supercategory")))
  records = len(lists["images"]) + len(lists["annotations"])
  return Numbered(Rows(images, boxes, categories), at_image, at_box, problems, refused, taken, records)


def numbering(ids: list[Any]) -> dict[str, int]:
  """Numbers from 1 for ids that are text other than of numbers; empty if none is."""
  if not any(isinstance(id, str) and whole(id, Counter()) is None for id in ids):
    return {}
  return {id: i for i, id in enumerate(dict.fromkeys(str(id) for id in ids), 1)}


def identity(value: Any, numbers: dict[str, int], taken: Counter[str]) -> int | None:
  """An id as a whole number, by `numbering` if it is one; None if it is neither."""
  return numbers.get(str(value)) if numbers else whole(value, taken)


def whole(value: Any, taken: Counter[str]) -> int | None:
  """A whole number, however it is written; None if it is none that fits into 64 bits."""
  if isinstance(value, bool):
    return None
  if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
    taken["whole numbers written as 640.0"] += 1
    return int(value)
  if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,19}(\.0*)?\s*", value):
    taken['numbers written as text ("640")'] += 1
    value = int(value.strip().partition(".")[0])
  return value if isinstance(value, int) and -(2**63) <= value < 2**63 else None


def image_row(row: Any, numbers: dict[str, int], taken: Counter[str]) -> ImageRow | tuple[str, str]:
  """An entry of `images`, or what is wrong with it and of what kind that is."""
  if not isinstance(row, dict):
    return "is not an object", ""
  if missing := [key for key in ("id", "file_name") if key not in row]:
    return f"has no {' and no '.join(map(repr, missing))}", ""
  id = identity(row["id"], numbers, taken)
  if id is None:
    return f"'id' is {short(row['id'])}, must be a whole number", "id"
  if not isinstance(row["file_name"], str):
    return f"'file_name' is {short(row['file_name'])}, must be a text", "file_name"
  sizes = []
  for key in ("height", "width"):
    value = row.get(key)
    sizes.append(None if value is None else whole(value, taken))
    if sizes[-1] is None and value is not None:
      return f"{key!r} is {short(value)}, must be a whole number above 0", key
  return ImageRow(id, row["file_name"], *sizes)


def box_row(
  row: Any, image_ids: dict[str, int], category_ids: dict[str, int], taken: Counter[str]
) -> BoxRow | tuple[str, str]:
  """An entry of `annotations`, or what is wrong with it and of what kind that is."""
  if not isinstance(row, dict):
    return "is not an object", ""
  if missing := [key for key in ("image_id", "category_id", "bbox") if key not in row]:
    return f"has no {' and no '.join(map(repr, missing))}", ""
  image_id = identity(row["image_id"], image_ids, taken)
  if image_id is None:
    return f"there is no image with the id {short(row['image_id'])}", "image_id"
  category_id = identity(row["category_id"], category_ids, taken)
  if category_id is None:
    return f"unknown category_id {short(row['category_id'])}", "category_id"
  box = row["bbox"]
  if not isinstance(box, list) or len(box) != 4 or not all(is_number(v) for v in box):
    return f"'bbox' is {short(box)}, must be four finite numbers x, y, w, h", "bbox"
  area = row.get("area")
  if area is not None and not (is_number(area) and math.isfinite(area)):
    return f"'area' is {short(area)}, must be a finite number", "area"
  crowd = row.get("iscrowd")
  crowd = int(crowd) if isinstance(crowd, bool) else None if crowd is None else whole(crowd, taken)
  if crowd is None and row.get("iscrowd") is not None:
    return f"'iscrowd' is {short(row['iscrowd'])}, must be 0 or 1", "iscrowd"
  id = row.get("id")
  if id is not None and (id := whole(id, taken)) is None:
    taken["annotation ids that are no whole numbers (their place taken)"] += 1
  x, y, w, h = map(float, box)
  return BoxRow(image_id, category_id, (x, y, w, h), None if area is None else float(area), crowd, id)


def is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**1000


def short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 80 else f"{text[:77]}..."


def describe(kind: str, row: Any, number: int) -> str:
  """`image id 5 (a.jpg)`, or the place in the list if there is no id."""
  get = row.get if isinstance(row, dict) else lambda key: getattr(row, key, None)
  if get("id") is None:
    return f"{kind} number {number}"
  image = f" (image id {short(get('image_id'))})" if get("image_id") is not None else ""
  name = f" ({get('file_name')})" if get("file_name") is not None else ""
  return f"{kind} id {short(get('id'))}{image}{name}"
