"""The COCO format: annotation files, read whole and checked record by record, and written; folders of them.

A COCO folder has `annotations/instances_SPLIT.json` and the images in `SPLIT/`; it is read in place.
"""

import json
import math
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from absl import logging

from iou_det.data.source import Annotations, Category, Problem, Source, from_files, from_rows, list_problems
from iou_det.errors import UserError
from iou_det.storage import local_path, read_json

WHAT = "a COCO folder"
SIGN = "annotations/instances_SPLIT.json"


def recognises(path: str | Path) -> bool:
  return (Path(path) / "annotations").is_dir()


def splits(path: str | Path) -> list[str]:
  files = (Path(path) / "annotations").glob("instances_*.json")
  return sorted(p.stem.removeprefix("instances_") for p in files if p.is_file())


def open_split(path: str | Path, split: str) -> Source:
  root, known = Path(path), splits(path)
  if split not in known:
    there = f"there are: {', '.join(known)}" if known else "it has no annotations/instances_*.json"
    raise UserError(f"{root} has no split {split!r}; {there}")
  return open_files(root / split, root / "annotations" / f"instances_{split}.json", f"{root.name}/{split}")


def open_files(images: str | Path, annotations: str | Path, name: str = "") -> Source:
  """A folder of images with an annotation file anywhere; every record is checked, no image is opened."""
  coco = read_coco(annotations)
  coco.problems += missing_images(Path(images), coco.annotations)
  coco.refuse_bad_records("mend them, or drop them with `iou-det prepare --skip_bad`")
  if coco.defaults:
    logging.info("%s: defaults for missing fields: %s", annotations, dict(coco.defaults))
  return from_files(name or Path(annotations).stem, coco.categories, coco.annotations, images)


@dataclass
class CocoFile:
  """What an annotation file holds: the good records, and what is wrong with the others."""

  categories: tuple[Category, ...]
  annotations: Annotations
  problems: list[Problem] = field(default_factory=list)
  defaults: Counter[str] = field(default_factory=Counter)  # values that were not in the file
  records: int = 0  # images and annotations in the file, good or bad
  dropped_boxes: int = 0  # boxes that went with their image
  remarks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # see `checks`

  def refuse_bad_records(self, remedy: str) -> None:
    """Raises a UserError that names the bad records, if there are any."""
    if self.problems:
      raise UserError(f"{len(self.problems)} bad records: {list_problems(self.problems)}; {remedy}")


def read_coco(path: str | Path, *, distinct_names: bool = True) -> CocoFile:
  """Reads a COCO-format `instances_*.json`.

  An annotation without `iscrowd`, `area` or `id` gets 0, w * h or its place in the file (from 1); counted in
  `defaults`. Boxes of no area or outside their image are kept as they are. A record that is bad is a
  `Problem`; a file that cannot be used as a whole (missing, no JSON, a list missing or empty, an ambiguous
  category table, as far as `distinct_names` asks for) is a UserError.
  """
  path = local_path(path, "annotation file")
  content = load_json(path)
  categories = read_categories(path, content["categories"], ("id", "name") if distinct_names else ("id",))
  coco = CocoFile(categories, from_rows([], []), records=len(content["images"]) + len(content["annotations"]))
  images: list[tuple[int, str, int, int]] = []
  place: dict[int, int] = {}
  refused: set[int] = set()  # ids of bad images: their annotations go with them without another word
  for number, image in enumerate(content["images"]):
    what = image_problem(image)
    if not what and image["id"] in place:
      what = f"a second image has this id (the first is {images[place[image['id']]][1]}); ids must differ"
    if not what:
      place[image["id"]] = len(images)
      images.append((image["id"], image["file_name"], image["height"], image["width"]))
      continue
    coco.problems.append(Problem(f"{path}, {describe('image', image, number)}", what))
    if isinstance(image, dict) and is_integer(image.get("id")):
      refused.add(image["id"])
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
    crowd, area = ann.get("iscrowd", 0), ann.get("area", w * h)
    row = (x, y, w, h, label[ann["category_id"]], crowd, area, ann.get("id", number + 1))
    boxes[place[ann["image_id"]]].append(row)
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

  content = read_json(path, "give a COCO instances_*.json", object_pairs_hook=keep)
  for key in ("images", "annotations", "categories"):
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
      raise UserError(
        f"annotation file {path} has no list {key!r}; a COCO file is one object with the lists images, "
        "annotations and categories"
      )
    if not content[key]:
      raise UserError(f"annotation file {path}: the list {key!r} is empty; nothing to train or score on")
  return content


def read_categories(path: Path, rows: list, distinct: tuple[str, ...]) -> tuple[Category, ...]:
  """The category table sorted by id; the fields named in `distinct` must differ."""
  for number, row in enumerate(rows):
    if not isinstance(row, dict) or not is_integer(row.get("id")) or not is_name(row.get("name")):
      where = describe("category", row, number)
      raise UserError(f"{path}, {where}: needs a whole number 'id' and a 'name' of one line")
  for key in distinct:
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


def missing_images(folder: Path, annotations: Annotations) -> list[Problem]:
  """Images that are not in their folder; lists each folder once, not file by file."""
  if not folder.is_dir():
    raise UserError(f"image folder {folder} does not exist; give the folder that holds the images themselves")
  listed: dict[str, set[str]] = {}
  problems = []
  for i, name in enumerate(annotations.file_name):
    parent, base = os.path.split(name)
    if parent not in listed:
      where = folder / parent
      listed[parent] = {e.name for e in os.scandir(where) if e.is_file()} if where.is_dir() else set()
    if base not in listed[parent]:
      problems.append(image_file_problem(folder, annotations, i, "the file does not exist"))
  return problems


def image_file_problem(folder: Path, annotations: Annotations, i: int, what: str) -> Problem:
  where = f"{folder / annotations.file_name[i]} (image id {annotations.image_id[i]})"
  return Problem(where, what, image_id=int(annotations.image_id[i]))


def to_coco(categories: tuple[Category, ...], annotations: Annotations) -> dict[str, Any]:
  """The content of a COCO annotation file: original ids, boxes, areas and crowd flags."""
  a = annotations
  images = zip(a.image_id.tolist(), a.file_name, a.height.tolist(), a.width.tolist(), strict=True)
  image_ids, labels = a.image_id[a.image_of_box()].tolist(), a.label.tolist()
  numbers, areas, crowds = a.annotation_id.tolist(), a.area.tolist(), a.crowd.astype(int).tolist()
  boxes = zip(numbers, image_ids, labels, a.bbox.tolist(), areas, crowds, strict=True)
  ids = [c.id for c in categories]
  return {
    "info": {},
    "images": [{"id": i, "file_name": n, "height": h, "width": w} for i, n, h, w in images],
    "annotations": [
      {"id": i, "image_id": n, "category_id": ids[k], "bbox": box, "area": area, "iscrowd": crowd}
      for i, n, k, box, area, crowd in boxes
    ],
    "categories": [{"id": c.id, "name": c.name} for c in categories],
  }


def write_annotations(
  root: Path, split: str, categories: tuple[Category, ...], annotations: Annotations
) -> None:
  (root / "annotations").mkdir(parents=True, exist_ok=True)
  text = json.dumps(to_coco(categories, annotations))
  (root / "annotations" / f"instances_{split}.json").write_text(text)
