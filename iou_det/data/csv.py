"""CSV files with a row for each box, as TensorFlow's and RetinaNet's tutorials have them, and OpenImages.

With a header, columns are found by their names, in any order; without one a row is RetinaNet's: path, x1, y1,
x2, y2, class. Corners are taken as they are, the second one outside the box: w = x2 - x1. A row without both
corners and class is a picture without objects. Corners that are all from 0 to 1 (but for SLACK) are shares of
its sides.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from iou_det.data.csv_rows import CHUNK, WHAT_IT_NEEDS, Rows, form_of, read_classes, read_rows
from iou_det.data.files import (
  USUAL,
  is_picture,
  listing,
  of_other_splits,
  pictures,
  refuse_left_out,
  subfolders,
)
from iou_det.data.labels import Boxes, Images, Labels, Problem, alphabet, exchanged, make_labels
from iou_det.data.source import Category
from iou_det.errors import UserError

NAME = "csv"
WHAT = "a folder of CSV files"
WHAT_PAIR = "a CSV file (.csv)"
SLACK = 0.01  # that shares may be outside 0 to 1, as YOLO's: a rounded 1.00001 must not make pixels of all
SIGN = "SPLIT.csv, SPLIT_labels.csv or SPLIT/_annotations.csv with a box in each row"


def recognises(path: str | Path) -> bool:
  return bool(find_splits(Path(path)))


def splits(path: str | Path) -> list[str]:
  return sorted(find_splits(Path(path)))


def read_split(path: str | Path, split: str) -> Labels:
  """A split of a folder with its image files; the categories: a file of classes, or those of all splits."""
  root, there = Path(path), find_splits(Path(path))
  file = there[split]
  near = [file.parent, root / "images" / split, root / split, file.parent / "images", root / "images", root]
  return read_file(file, list(there.values()), [file.parent, root], near, of_other_splits(root, split, there))


def takes(annotations: Path) -> bool:
  """Whether an annotation file, or a folder of such, is of this format."""
  return annotations.suffix.lower() in (".csv", ".tsv")


def read_pair(images: Path, annotations: Path) -> Labels:
  """A split whose annotations and images are given."""
  if not annotations.is_file():
    raise UserError(f"annotation file {annotations} does not exist")
  return read_file(annotations, [annotations], [annotations.parent], [images], [])


def find_splits(root: Path) -> dict[str, Path]:
  """The CSV files of a folder by the names of their splits.

  SPLIT.csv, SPLIT_labels.csv  in the folder, or in its annotations/, data/, images/ or labels/
  SPLIT/*.csv                  if there is one such file in it: Roboflow's _annotations.csv

  Where the first of these places has some, the others are asked for the USUAL splits: none may vanish.
  """
  found: dict[str, Path] = {}

  def add(split: str, file: Path) -> None:
    if split in found:
      both = f"{found[split]} and {file} are both of the split {split!r}"
      raise UserError(f"{both}; make one of them, or move one out of {root}")
    found[split] = file

  for folder in (root, *(root / name for name in ("annotations", "data", "images", "labels"))):
    named = [(split_name(file), file) for file in box_files(folder)]
    for split, file in [(s, f) for s, f in named if not found or s.lower() in USUAL]:
      add(split, file)
  above = bool(found)
  inside = [
    (folder.name, box_files(folder))
    for folder in subfolders(root)
    if not found or (folder.name.lower() in USUAL and folder.name not in found)
  ]
  for split, files in inside:
    if len(files) > 1 and split.lower() in USUAL:
      names = ", ".join(file.name for file in files[:4])
      raise UserError(f"{root / split} has {len(files)} files of boxes ({names}); make one of them")
    if len(files) == 1:
      add(split, files[0])
  for folder in subfolders(root) if found else []:
    if folder.name.lower() in USUAL and folder.name not in found and (files := tables(folder)):
      add(folder.name, files[0])  # no file of boxes, as reading it will say
  if found and not above:
    refuse_left_out(subfolders(root), found, "CSV file", root)
  return found


def tables(folder: Path) -> list[Path]:
  names = sorted(n for n in listing(folder) if n.lower().endswith((".csv", ".tsv")) and not n.startswith("."))
  return [folder / name for name in names]


def box_files(folder: Path) -> list[Path]:
  # One that is named as a split but is no such file is to be refused, not to be left out in silence.
  boxes = [file for file in tables(folder) if form_of(file) or split_name(file).lower() in USUAL]
  return boxes if any(map(form_of, boxes)) else []


def split_name(file: Path) -> str:
  name = re.sub(r"(?i)[-_. ]*(labels?|annotations?([-_]bbox)?|boxes|bbox|anno)$", "", file.stem)
  return re.sub(r"(?i)^(labels?|annotations?|oidv6)[-_. ]+", "", name) or "default"


def read_file(
  file: Path, every: list[Path], beside: list[Path], folders: list[Path], avoid: list[Path]
) -> Labels:
  """The boxes of a file.

  Args:
    every: files of the same data set, this one too: the categories are those of all.
    beside: folders where a file of classes may be.
    folders, avoid: where the images are looked for, see `Labels.locate`.
  """
  form = form_of(file)
  if form is None:
    with file.open("rb") as opened:
      start = opened.readline(200).decode(errors="replace").strip()
    raise UserError(f"annotation file {file} begins with {start!r}; it needs {WHAT_IT_NEEDS}")
  rows = read_rows(file, form)
  table, words = class_table(beside)
  tidy = lambda name: words.get(name.strip(), " ".join(name.split()))
  if table is None:
    others = [read_classes(other) for other in every if other != file]
    categories = alphabet({tidy(name) for names in (rows.classes, *others) for name in names} - {""})
  else:
    categories = table
  place = {c.name: i for i, c in enumerate(categories)}
  label = np.array([*(place.get(tidy(name), -1) for name in rows.classes), -1], np.int64)[rows.label]
  box_at = lambda i: f"{file}, row {rows.number[i]} ({rows.files[rows.image[i]]})"

  boxes_of = np.flatnonzero(rows.label >= 0)
  bad = [
    Problem(
      box_at(i), f"the class {rows.classes[rows.label[i]][:60]!r} is not in the file of classes", "class"
    )
    for i in boxes_of[label[boxes_of] < 0].tolist()
  ]
  sizes, other, wrong = image_sizes(rows, box_at)
  bad += wrong + exchanged(rows.corners, box_at)
  kept = np.flatnonzero((label >= 0) & ~other & ~(rows.corners[:, :2] > rows.corners[:, 2:]).any(axis=1))
  bbox = np.concatenate([rows.corners[kept, :2], rows.corners[kept, 2:] - rows.corners[kept, :2]], axis=1)
  images = Images(
    np.arange(1, len(rows.files) + 1), with_suffixes(rows.files, folders), sizes[:, 0], sizes[:, 1]
  )
  boxes = Boxes(
    *(
      rows.image[kept],
      label[kept],
      bbox,
      rows.crowd[kept],
      bbox[:, 2] * bbox[:, 3],
      np.arange(1, len(kept) + 1),
    )
  )
  labels = make_labels(file, categories, images, boxes, lambda i: box_at(int(kept[i])))
  labels.own_ids = table is not None
  corners = rows.corners[boxes_of]
  inner = ((corners >= -SLACK) & (corners <= 1 + SLACK)).all()
  labels.shares = bool(inner and (corners % 1 != 0).any())
  if labels.shares:
    labels.remark("corners as shares of the picture's sides (all are from 0 to 1)", len(corners))
  labels.problems[:0] = [*rows.problems, *bad]
  labels.records = len(rows.files) + len(boxes_of) + len(rows.problems)
  labels.locate(folders, avoid)
  return labels


def image_sizes(rows: Rows, box_at: Callable[[int], str]) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
  """Height and width of each image, and which rows say another than the first of their image that says one.

  Columns `width` and `height` that are those of the boxes say nothing of the images.
  """
  sizes, other = np.zeros((len(rows.files), 2), np.int64), np.zeros(len(rows.image), bool)
  boxes = rows.label >= 0
  of_box = (rows.corners[:, 2:] - rows.corners[:, :2])[boxes, ::-1]
  if len(of_box) and (np.abs(rows.size[boxes] - of_box) <= 1).all():
    return sizes, other, []
  saying = np.flatnonzero((rows.size > 0).all(axis=1))
  images, first = np.unique(rows.image[saying], return_index=True)
  sizes[images] = rows.size[saying[first]]
  other[saying] = (rows.size != sizes[rows.image]).any(axis=1)[saying]
  said = lambda size: f"{size[1]}x{size[0]}"
  what = lambda i: (
    f"the picture has {said(rows.size[i])} pixels here, {said(sizes[rows.image[i]])} in its first row"
  )
  return sizes, other, [Problem(box_at(i), what(i), "size") for i in np.flatnonzero(other).tolist()]


def with_suffixes(names: list[str], folders: list[Path]) -> list[str]:
  """Names of picture files where those of some lack the suffix (OpenImages)."""
  if all(map(is_picture, names)):
    return names
  there = [pictures(folder) for folder in folders]
  files = lambda name: next((some[name] for some in there if name in some), [])
  return [name if is_picture(name) or len(files(name)) != 1 else files(name)[0] for name in names]


def class_table(folders: list[Path]) -> tuple[tuple[Category, ...] | None, dict[str, str]]:
  """The categories of a file with name, id in each row, or words for OpenImages' classes (/m/0k4j)."""
  for folder in folders:
    for name in sorted(n for n in listing(folder) if re.search(r"(?i)(class|label|categor).*\.csv$", n)):
      if form_of(folder / name):
        continue
      with (folder / name).open(encoding="utf-8-sig", errors="replace", newline="") as opened:
        try:
          rows = [[field.strip() for field in row] for row in islice(csv.reader(opened), CHUNK) if row]
        except csv.Error:
          continue
      if not rows or any(len(row) != 2 for row in rows):
        continue
      words = {mid: text for mid, text in rows if mid.startswith(("/m/", "/g/", "/t/"))}
      if words:
        return None, words
      rows = rows[not any(field.isdecimal() for field in rows[0]) :]
      turned = all(row[0].isdecimal() for row in rows) and not all(row[1].isdecimal() for row in rows)
      rows = [row[::-1] for row in rows] if turned else rows
      if rows and all(row[1].isdecimal() and len(row[1]) < 10 and row[0] for row in rows):
        for column, what in enumerate(("name", "id")):
          if twice := [v for v, times in Counter(row[column] for row in rows).items() if times > 1]:
            raise UserError(f"{folder / name}: more than one class has the {what} {twice[0]}")
        made = (Category(int(id), " ".join(text.split())) for text, id in rows)
        return tuple(sorted(made, key=lambda c: c.id)), {}
  return None, {}
