"""The COCO format: annotation files, read whole and checked record by record, and written; folders of them.

A COCO folder has annotation files and images in one of the layouts of `find_splits`; it is read in place.
"""

import json
import math
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from iou_det.data.coco_rows import CategoryRow, describe, read_rows
from iou_det.data.files import USUAL, of_other_splits, refuse_left_out, subfolders
from iou_det.data.labels import FAR, Boxes, Images, Labels, Problem, make_labels
from iou_det.data.source import Annotations, Category
from iou_det.errors import UserError
from iou_det.storage import local_path

NAME = "coco"
WHAT = "a COCO folder"
WHAT_PAIR = "a COCO file (.json)"
SIGN = "annotations/instances_SPLIT.json, SPLIT/_annotations.coco.json or another COCO file"


def recognises(path: str | Path) -> bool:
  return bool(find_splits(Path(path)))


def splits(path: str | Path) -> list[str]:
  return sorted(find_splits(Path(path)))


def read_split(path: str | Path, split: str) -> Labels:
  """A split of a folder with its image files."""
  root, there = Path(path), find_splits(Path(path))
  file = there[split]
  labels = read_coco(file)
  near = [root / split, root / "images" / split, file.parent, file.parent / "images"]
  labels.locate([*near, root / "images", root / "data", root], of_other_splits(root, split, there))
  return labels


def takes(annotations: Path) -> bool:
  """Whether an annotation file, or a folder of such, is of this format."""
  return annotations.suffix == ".json"


def read_pair(images: Path, annotations: Path) -> Labels:
  """A split whose annotations and images are given."""
  labels = read_coco(annotations)
  labels.locate([images])
  return labels


def find_splits(root: Path) -> dict[str, Path]:
  """The annotation files of a folder by the names of their splits.

  annotations/instances_SPLIT.json    COCO; CVAT (SPLIT is default)
  annotations/SPLIT.json              if there is none of the former, or one of the USUAL splits
  SPLIT/_annotations.coco.json        Roboflow; or the only COCO file in SPLIT/
  SPLIT.json                          result.json (Label Studio), labels.json (FiftyOne) are default

  The first of these places that has some is taken; the USUAL splits may lie in the others: none may vanish.
  """
  found: dict[str, Path] = {}

  def add(split: str, file: Path) -> None:
    if split in found:
      both = f"{found[split]} and {file} are both of the split {split!r}"
      raise UserError(f"{both}; make one of them, or move one out of {root}")
    found[split] = file

  def add_files(files: list[Path]) -> None:
    good = [file for file in files if is_coco(file)]
    for file in files:
      split = split_name(file)
      usual = split.lower() in USUAL
      if file in good and (usual or not found_before):
        add(split, file)
      elif file not in good and usual and split not in found and (found or good):
        add(split, file)  # no COCO file, as reading it will say

  folder, found_before = root / "annotations", False
  for file in json_files(folder, "instances_*.json"):
    add(split_name(file), file)
  found_before = bool(found)
  add_files([f for f in json_files(folder) if f not in found.values()])
  found_before = above = bool(found)
  for inside in (f for f in subfolders(root) if f != folder):
    usual = inside.name.lower() in USUAL
    if not usual and found_before:  # it may hold a hundred thousand pictures
      continue
    own = json_files(inside, "_annotations.coco.json") or [f for f in json_files(inside) if is_coco(f)]
    if len(own) > 1 and usual:
      names = ", ".join(file.name for file in own[:4])
      raise UserError(f"{inside} has {len(own)} COCO files ({names}); make one of them")
    if len(own) == 1:
      add(inside.name, own[0])
  if found and not above:
    refuse_left_out(subfolders(root), found, "COCO file", root)
  found_before = bool(found)
  add_files(json_files(root))
  return found


def json_files(folder: Path, pattern: str = "*.json") -> list[Path]:
  return sorted(file for file in folder.glob(pattern) if file.is_file())


def split_name(file: Path) -> str:
  name = file.stem.removeprefix("instances_").removesuffix("_annotations").removesuffix(".coco")
  return "default" if name in ("result", "labels", "_annotations", "annotations", "instances", "") else name


def is_coco(file: Path) -> bool:
  """Whether a file looks like COCO annotations: by its beginning and its end."""
  with file.open("rb") as opened:
    start = opened.read(1 << 16)
    opened.seek(max(0, file.stat().st_size - (1 << 16)))
    text = start + opened.read()
  lists = sum(key in text for key in (b'"images"', b'"annotations"', b'"categories"'))
  if lists == 1 and any(key in text for key in (b'"file_name"', b'"image_id"')):
    lists = 2  # the other lists lie between
  return text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and lists >= 2


def read_coco(path: str | Path) -> Labels:
  """Reads a COCO-format annotation file.

  What tools write otherwise is taken for what it means, and noted once: whole numbers as 640.0 or "640", null
  for absent; text ids are numbered. An annotation without `iscrowd`, `area` or `id` gets 0, w * h or its
  place in the file (from 1). Image sizes may be absent, or -1: then they are 0 here. Boxes of no area or
  outside their image are kept as they are. A record that is bad is a `Problem`; a file that cannot be used as
  a whole (missing, no JSON, a list missing or empty, an ambiguous category table) is a UserError.
  """
  path = local_path(path, "annotation file")
  rows, at_image, at_box, problems, refused, taken, records = read_rows(path)
  box_at = lambda i: f"{path}, {describe('annotation', rows.annotations[i], at_box[i])}"
  image_at = lambda i: f"{path}, {describe('image', rows.images[i], at_image[i])}"

  count = len(rows.images)
  ids = np.fromiter((r.id for r in rows.images), np.int64, count)
  sizes = np.zeros((2, count), np.int64)
  for k, key in enumerate(("height", "width")):
    sizes[k] = np.fromiter((getattr(r, key) or 0 for r in rows.images), np.int64, count)
    sizes[k][sizes[k] == -1] = 0
  good = np.ones(count, bool)
  for i in np.flatnonzero(((sizes < 0) | (sizes >= FAR)).any(axis=0)).tolist():
    key, value = ("height", sizes[0, i]) if not 0 <= sizes[0, i] < FAR else ("width", sizes[1, i])
    what = f"{key!r} is {value}, must be a whole number above 0 (or absent, null or -1: the file's is taken)"
    problems.append(Problem(image_at(i), what, key))
    good[i] = False
    refused[rows.images[i].id] = rows.images[i].file_name
  # Boxes of an id that several files claim are of none of them.
  claims: dict[int, set[Any]] = {id: {name} for id, name in refused.items()}
  if refused or len(np.unique(ids)) < count:
    for listed in rows.images:
      claims.setdefault(listed.id, set()).add(listed.file_name)
    for i in [i for i in np.flatnonzero(good).tolist() if len(claims[rows.images[i].id]) > 1]:
      others = ", ".join(sorted(map(str, claims[rows.images[i].id] - {rows.images[i].file_name})))
      problems.append(Problem(image_at(i), f"a second image has this id ({others}); ids must differ", "id"))
      good[i] = False
      refused[rows.images[i].id] = rows.images[i].file_name
  firsts: dict[int, int] = {}
  twice = 0
  if len(np.unique(ids[good])) < good.sum():
    for i in np.flatnonzero(good).tolist():
      first = firsts.setdefault(int(ids[i]), i)
      if first == i:
        continue
      good[i] = False
      if rows.images[first] == rows.images[i]:
        twice += 1
        continue
      what = "a second record of this image says another size; which is right?"
      problems.append(Problem(image_at(i), what, "second size"))
  for i in [i for i, r in enumerate(rows.images) if not r.file_name]:
    problems.append(Problem(image_at(i), "'file_name' is empty", "file_name"))
    good[i] = False
    refused[rows.images[i].id] = ""
  kept = np.flatnonzero(good)
  images = Images(ids[kept], [rows.images[i].file_name for i in kept], sizes[0, kept], sizes[1, kept])
  gone_ids = list(refused.keys() - set(images.id.tolist()))

  number = len(rows.annotations)
  column = lambda key, dtype: np.fromiter((getattr(r, key) for r in rows.annotations), dtype, number)
  or_none = lambda key, dtype, none: np.fromiter(
    (none if (v := getattr(r, key)) is None else v for r in rows.annotations), dtype, number
  )
  image_id, category_id = column("image_id", np.int64), column("category_id", np.int64)
  categories = category_table(path, rows.categories, category_id, taken)
  image, known_image = places(image_id, images.id)
  label, known_category = places(category_id, np.array([c.id for c in categories], np.int64))
  crowd = or_none("iscrowd", np.int64, 0)
  gone = ~known_image & np.isin(image_id, gone_ids) if gone_ids else np.zeros(number, bool)
  strange_crowd = (crowd != 0) & (crowd != 1)
  for i in np.flatnonzero(~gone & ~(known_image & known_category & ~strange_crowd)).tolist():
    row = rows.annotations[i]
    if not known_image[i]:
      what, kind = f"there is no image with the id {row.image_id}", "image_id"
    elif not known_category[i]:
      known = ", ".join(str(c.id) for c in categories[:10]) + (", ..." if len(categories) > 10 else "")
      what, kind = f"unknown category_id {row.category_id}; known: {known}", "category_id"
    else:
      what, kind = f"'iscrowd' is {row.iscrowd}, must be 0 or 1", "iscrowd"
    problems.append(Problem(box_at(i), what, kind))
  usable = np.flatnonzero(~gone & known_image & known_category & ~strange_crowd)
  bbox = np.fromiter(chain.from_iterable(r.bbox for r in rows.annotations), np.float64, 4 * number)
  own_id = or_none("id", np.int64, 0)
  without_id = np.array([r.id is None for r in rows.annotations], bool)
  own_id[without_id] = np.asarray(at_box, np.int64)[without_id] + 1
  boxes = Boxes(image, label, bbox.reshape(-1, 4), crowd == 1, or_none("area", np.float64, math.nan), own_id)
  if len(usable) < number:
    boxes = boxes.select(usable)
  without_crowd = sum(r.iscrowd is None for r in rows.annotations)
  labels = make_labels(path, categories, images, boxes, lambda i: box_at(int(usable[i])))
  labels.problems[:0] = problems
  labels.records, labels.dropped_boxes = records, int(gone.sum())
  if twice:
    labels.remark("images listed twice (taken once)", twice)
  for trait, times in {
    "annotations without 'iscrowd' (0 taken)": without_crowd,
    "annotations without 'id' (their place taken)": int(without_id.sum()),
    **taken,
  }.items():
    if times:
      labels.remark(trait, times)
  return labels


def places(ids: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Where each id is in a table of different ones (0 if nowhere), and whether it is."""
  if not len(table):
    return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
  order = np.argsort(table, kind="stable")
  at = np.minimum(np.searchsorted(table[order], ids), len(table) - 1)
  known = table[order][at] == ids
  return np.where(known, order[at], 0), known


def category_table(
  path: Path, rows: list[CategoryRow], used: np.ndarray, taken: Counter[str]
) -> tuple[Category, ...]:
  """The category table sorted by id; ids and names must differ.

  Left out is a category without annotations that all others name as their supercategory: the root that
  Roboflow adds, often of the name of a class.
  """
  distinct = list({(r.id, r.name): r for r in rows}.values())
  if len(distinct) < len(rows):
    taken["categories listed twice (taken once)"] += len(rows) - len(distinct)
  for root in distinct:
    others = [r for r in distinct if r is not root]
    named = others and all(r.supercategory == root.name for r in others)
    if named and root.supercategory in (None, "", "none") and not (used == root.id).any():
      taken[
        f"categories left out, as without annotations and only the others' supercategory: {root.name}"
      ] += 1
      distinct = others
      break
  for key in ("id", "name"):
    count = Counter(getattr(r, key) for r in distinct)
    if repeated := [value for value, n in count.items() if n > 1]:
      raise UserError(f"annotation file {path}: more than one category has the {key} {repeated[0]}")
  return tuple(sorted((Category(r.id, r.name) for r in distinct), key=lambda c: c.id))


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
  (root / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
