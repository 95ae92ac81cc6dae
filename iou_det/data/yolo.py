"""YOLO: a text file for each picture, a line for each object: class, cx, cy, w, h.

The last four are shares of the picture's sides, as it is shown: with its EXIF orientation, unless that is
ignored. A category's id is the number of its class, from 0. A picture without a label file, or with an empty
one, has no objects.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iou_det.data.coco import places
from iou_det.data.files import find_files, listing, pictures, read_text_file
from iou_det.data.labels import Boxes, Images, Labels, Problem, make_labels
from iou_det.data.source import Category
from iou_det.data.yolo_layout import (
  CLASSES,
  Described,
  Split,
  describe,
  find_names,
  find_splits,
  folders_of,
  is_label,
  label_folder,
  pictures_of,
  root_of,
  yaml_of,
)
from iou_det.errors import UserError

NAME = "yolo"
WHAT = "a YOLO folder"
WHAT_PAIR = "a folder of YOLO's label files (.txt)"
SIGN = "data.yaml, images/ and labels/, or label files beside pictures"
SLACK = 0.01  # that a share may be outside 0 to 1 (ultralytics' tolerance)


def recognises(path: str | Path) -> bool:
  file = yaml_of(Path(path))
  if file:
    start = file.read_bytes()[: 1 << 20].replace(b"\0", b"")  # UTF-16
    return bool(re.search(rb"(?m)^[\"']?(names|nc|train)[\"']?\s*:", start))
  return bool(find_splits(Path(path)))


def splits(path: str | Path) -> list[str]:
  return sorted(find_splits(Path(path)))


def read_split(path: str | Path, split: str) -> Labels:
  """A split of a folder with its image files."""
  root, there, described = root_of(path), find_splits(Path(path)), describe(Path(path))
  folders = [root, root / "labels", root / "data"]
  for one in there.values():
    folders += [one.folders[0], label_folder(one.folders[0])]
  names = find_names(described, list(dict.fromkeys(folders)))
  own = folders_of(there[split])
  others = {f for name, other in there.items() if name != split for f in folders_of(other)}
  avoid = [f for f in sorted(others) if not any(mine.is_relative_to(f) for mine in own)]
  labels = read_pictures(root, there[split], names, described, label_folder, avoid)
  stated = described.content.get("test")
  if stated and "test" not in there and split == min(there):  # once for all splits
    labels.remark("splits that data.yaml names and that are not there (left out)", 1, [f"test: {stated}"])
  return labels


def takes(annotations: Path) -> bool:
  """Whether an annotation file, or a folder of such, is of this format."""
  return any(
    n.endswith(".txt") and n not in CLASSES and is_label(annotations / n) for n in listing(annotations)
  )


def read_pair(images: Path, annotations: Path) -> Labels:
  """A split whose annotations and images are given."""
  if not images.is_dir():
    raise UserError(f"image folder {images} does not exist; give the folder that holds the images themselves")
  near = [annotations, annotations.parent, images, images.parent, annotations.parent.parent]
  described = next((d for d in map(describe, near) if d.file), Described(None, {}))
  names = find_names(described, list(dict.fromkeys(near)))
  names_of = pictures_of(images, [images]).names
  place = lambda folder: annotations / folder.relative_to(images)
  return read_pictures(annotations, Split(names_of, [images]), names, described, place)


class Lines(NamedTuple):
  """Boxes of a label file."""

  values: list[float]  # class, cx, cy, w, h of each
  numbers: list[int]  # of its line
  polygons: int
  problems: list[Problem]


NO_LINES = Lines([], [], 0, [])


def read_pictures(
  where: Path,
  split: Split,
  names: dict[int, str],
  described: Described,
  place: Callable[[Path], Path],
  avoid: Sequence[Path] = (),
) -> Labels:
  """The label files of the pictures of a split.

  Args:
    place: the folder of the label files of the pictures in a folder.
    avoid: folders of other splits' pictures, see `Labels.locate`.
  """
  categories = category_table(described.file or where, names)
  points = keypoints(described)
  files = find_files(split.names, split.folders, avoid).files
  place, inside = cache(place), cache(listing)
  paths: list[str] = []
  parsed: list[Lines] = []
  without: list[str] = []
  for i, name in enumerate(split.names):
    folder, base = os.path.split(files.path(i))
    labels_in = place(Path(folder))
    base = os.path.splitext(base)[0] + ".txt"
    paths.append(os.path.join(labels_in, base))
    if base not in inside(labels_in):
      without.append(name)
      parsed.append(NO_LINES)
    else:
      parsed.append(parse(paths[-1], points))
  if len(without) == len(paths):
    looked = ", ".join(dict.fromkeys(os.path.dirname(path) for path in paths[:100]))
    raise UserError(f"{where}: none of {len(paths)} pictures has a label file (NAME.txt) in {looked}")

  count = np.array([len(lines.numbers) for lines in parsed], np.int64)
  image = np.repeat(np.arange(len(parsed)), count)
  values = np.fromiter(chain.from_iterable(lines.values for lines in parsed), np.float64).reshape(-1, 5)
  number = np.fromiter(chain.from_iterable(lines.numbers for lines in parsed), np.int64)
  box_at = lambda i: f"{paths[image[i]]}, line {number[i]}"
  label, known = places(values[:, 0], np.array([c.id for c in categories]))
  inner = ((values[:, 1:] >= -SLACK) & (values[:, 1:] <= 1 + SLACK)).all(axis=1)
  bad = [problem for lines in parsed for problem in lines.problems]
  for i in np.flatnonzero(~known).tolist():
    classes = f"{categories[0].id} to {categories[-1].id}, {len(categories)} names"
    bad.append(
      Problem(
        box_at(i), f"the class is {values[i, 0]:g}, must be one of those with names ({classes})", "class"
      )
    )
  for i in np.flatnonzero(known & ~inner).tolist():
    said = " ".join(f"{v:g}" for v in values[i, 1:])
    bad.append(
      Problem(box_at(i), f"cx cy w h are {said}, must be shares of the picture's sides, 0 to 1", "shares")
    )
  kept = np.flatnonzero(known & inner)
  center, side = values[kept, 1:3], values[kept, 3:]
  bbox = np.concatenate([center - side / 2, side], axis=1)
  boxes = Boxes(
    image[kept], label[kept], bbox, np.zeros(len(kept), bool), side.prod(axis=1), np.arange(1, len(kept) + 1)
  )
  unknown = np.zeros((2, len(paths)), np.int64)
  images = Images(np.arange(1, len(paths) + 1), split.names, *unknown)
  labels = make_labels(where, categories, images, boxes, lambda i: box_at(int(kept[i])))
  labels.shares = True
  labels.problems[:0] = bad
  labels.records = len(paths) + len(values) + sum(len(lines.problems) for lines in parsed)
  polygons = sum(lines.polygons for lines in parsed)
  if polygons:
    labels.remark("polygons (the boxes around them taken)", polygons)
  if without:
    labels.remark("pictures without a label file (taken as without objects)", len(without), without)
  unused = label_files_alone(
    {(os.path.dirname(files.path(i)), os.path.dirname(p)) for i, p in enumerate(paths)}
  )
  if unused:
    labels.remark("label files without a picture (left out)", len(unused), unused)
  labels.locate(split.folders, avoid)
  return labels


def label_files_alone(folders: set[tuple[str, str]]) -> list[str]:
  """Label files that no picture has.

  Args:
    folders: of pictures, and of their label files.
  """
  stems: dict[str, set[str]] = {}
  for of_pictures, of_labels in folders:
    stems.setdefault(of_labels, set()).update(pictures(Path(of_pictures)))
  texts = [
    (folder, n) for folder in sorted(stems) for n in sorted(listing(Path(folder))) if n.endswith(".txt")
  ]
  alone = [os.path.join(folder, name) for folder, name in texts if name[:-4] not in stems[folder]]
  return [path for path in alone if is_label(Path(path))]


def category_table(where: Path, names: dict[int, str]) -> tuple[Category, ...]:
  """Categories whose ids are the numbers of the classes."""
  for number, name in names.items():
    if not name or len(name.splitlines()) != 1 or "\0" in name:
      raise UserError(f"{where}: the name of class {number} is {name[:40]!r}, must be a text of one line")
  twice = [name for name, times in Counter(names.values()).items() if times > 1]
  if twice:
    raise UserError(f"{where}: more than one class has the name {twice[0]}")
  return tuple(Category(number, names[number]) for number in sorted(names))


def keypoints(described: Described) -> int:
  """How many numbers stand behind the box for the keypoints of a pose: kpt_shape of data.yaml."""
  shape = described.content.get("kpt_shape")
  if shape is None:
    return 0
  if not isinstance(shape, list) or not all(
    isinstance(n, str) and re.fullmatch(r"\d{1,4}", n) for n in shape
  ):
    raise UserError(f"{described.file}: kpt_shape must be two whole numbers, such as [17, 3]")
  return math.prod(map(int, shape))


def parse(path: str, points: int) -> Lines:
  """The boxes of a label file."""
  try:
    content = read_text_file(Path(path))
  except OSError as error:
    return Lines([], [], 0, [Problem(path, f"cannot be read: {error.strerror}")])
  rows = [line.split() for line in content.removeprefix(b"\xef\xbb\xbf").splitlines()]
  if all(len(row) == 5 for row in rows):
    try:
      return Lines(list(map(float, chain.from_iterable(rows))), list(range(1, len(rows) + 1)), 0, [])
    except ValueError:
      pass
  values: list[float] = []
  numbers, polygons, problems = [], 0, []
  for number, row in enumerate(rows, 1):
    if not row:
      continue
    box = parse_line(row, points)
    if isinstance(box, list):
      values += box
      numbers.append(number)
      polygons += len(row) > 5 and not points
    else:
      problems.append(Problem(f"{path}, line {number}", *box))
  return Lines(values, numbers, polygons, problems)


def parse_line(row: list[bytes], points: int) -> list[float] | tuple[str, str]:
  """Class, cx, cy, w, h of a line, or what is wrong with it and of what kind that is."""
  try:
    numbers = list(map(float, row))
  except ValueError:
    return (
      f"is {b' '.join(row)[:60].decode(errors='replace')!r}, must be numbers: class, cx, cy, w, h",
      "numbers",
    )
  if len(row) == 5 or (points and len(row) == 5 + points):
    return numbers[:5]
  if len(row) == 6:
    return "has six numbers, as predictions with a score have; a label has five: class, cx, cy, w, h", "six"
  if points or len(row) < 7 or len(row) % 2 == 0:
    pose = f" or {5 + points} with keypoints" if points else " or a class and the corners x, y of a polygon"
    return f"has {len(row)} numbers, must have five (class, cx, cy, w, h){pose}", "count"
  if not all(map(math.isfinite, numbers)):
    return "has a number that is not finite", "finite"
  x, y = numbers[1::2], numbers[2::2]
  left, top, right, bottom = min(x), min(y), max(x), max(y)
  return [numbers[0], (left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
