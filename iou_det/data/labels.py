"""What the annotations of a split say, in any format: checked, refused or dropped in the same words."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float64, Int64

from iou_det.data.files import Files, find_files, read_start
from iou_det.data.headers import kind_of, read_header
from iou_det.data.source import Annotations, Category, Source
from iou_det.errors import UserError
from iou_det.streams import escaped

FAR = 2**31  # pixels: no picture reaches as far
LONGEST = 600  # characters of a record's place and what is wrong with it
SHOWN = 20  # kinds of problems in an error
REMEDY = "mend them, or drop them with --skip_bad (a folder in place: --config.data.skip_bad=True)"


def shortened(text: str) -> str:
  """As a line can show it: names may have anything in them, and any length."""
  text = escaped(text)
  return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


class Problem(NamedTuple):
  """Something wrong with one record of a data set."""

  where: str  # file and record
  what: str
  kind: str = ""  # `what` without the record's own values: problems of a kind are told together
  image_id: int | None = None  # of an image that must go, if its file is bad

  def __str__(self) -> str:
    return shortened(f"{self.where}: {self.what}")


class Remark(NamedTuple):
  """Something worth to be known of some records: how many, and the first few."""

  number: int
  examples: list[str]

  def __str__(self) -> str:
    shown = shortened(", ".join(self.examples)) + (", ..." if self.number > len(self.examples) else "")
    return f"{self.number}" + (f" ({shown})" if self.examples else "")


class Images(NamedTuple):
  """Images as a file has them."""

  id: Int64[np.ndarray, " images"]
  file_name: list[str]
  height: Int64[np.ndarray, " images"]  # pixels; 0: not said
  width: Int64[np.ndarray, " images"]


class Boxes(NamedTuple):
  """Boxes as a file has them, in any order."""

  image: Int64[np.ndarray, " boxes"]  # the place of its image
  label: Int64[np.ndarray, " boxes"]  # the place of its category
  bbox: Float64[np.ndarray, "boxes 4"]  # x, y, w, h in pixels
  crowd: Bool[np.ndarray, " boxes"]
  area: Float64[np.ndarray, " boxes"]  # pixels^2; NaN: not said
  id: Int64[np.ndarray, " boxes"]

  def select(self, which: np.ndarray) -> "Boxes":
    return Boxes(*(column[which] for column in self))


@dataclass
class Labels:
  """The good records of a split, and what is wrong or remarkable with them and the others."""

  where: Path  # what they were read from
  categories: tuple[Category, ...]
  annotations: Annotations
  problems: list[Problem] = field(default_factory=list)
  remarks: dict[str, Remark] = field(default_factory=dict)
  records: int = 0  # images and annotations in the file, good or bad
  dropped_boxes: int = 0  # boxes that went with their image
  files: Files | None = None  # of the images; None: not looked for
  shares: bool = False  # boxes are shares of their image's sides, until `find_sizes`
  own_ids: bool = True  # the file says its category ids; else they are places in the alphabet of the names

  def remark(self, trait: str, number: int, examples: Iterable[str] = ()) -> None:
    """Notes so many records (more, if it was noted before), and the first three of them."""
    before = self.remarks.get(trait, Remark(0, []))
    shown = [*before.examples, *islice(examples, 3 - len(before.examples))]
    self.remarks[trait] = Remark(before.number + number, shown)

  def locate(self, folders: Sequence[Path], avoid: Sequence[Path] = ()) -> None:
    """Finds the image files, in the first of the folders that has them or (not in `avoid`) below them."""
    if not any(folder.is_dir() for folder in folders):
      why = "give the folder that holds the images themselves"
      raise UserError(f"image folder {folders[0]} does not exist; {why}")
    found = find_files(self.annotations.file_name, folders, avoid)
    self.files = found.files
    self.problems += [self.file_problem(i, why) for i, why in found.missing.items()]
    if found.elsewhere:
      examples = (f"{self.annotations.file_name[i]} is {found.files.names[i]}" for i in found.elsewhere)
      self.remark("image files found by their name in another folder", len(found.elsewhere), examples)

  def settle(self, skip_bad: bool) -> None:
    """Refuses bad records by a UserError, or drops them: a bad image goes with its boxes."""
    if self.problems and not skip_bad:
      records = "record" if len(self.problems) == 1 else "records"
      bad = f"{len(self.problems)} bad {records} of {self.records}: {list_problems(self.problems)}"
      raise UserError(f"{bad}; {REMEDY}")
    gone = [p.image_id for p in self.problems if p.image_id is not None]
    if gone:
      kept = np.flatnonzero(~np.isin(self.annotations.image_id, gone))
      before, self.annotations = len(self.annotations.bbox), self.annotations.select(kept)
      self.dropped_boxes += before - len(self.annotations.bbox)
      self.files = self.files and self.files.select(kept)
    if not len(self.annotations.bbox):
      raise UserError(f"{self.where}: no image with a box is left after {len(self.problems)} bad records")

  def log(self, name: str) -> None:
    """Says once what was dropped and what is remarkable."""
    if self.problems:
      dropped = f"{len(self.problems)} bad records and {self.dropped_boxes} boxes of dropped images dropped"
      logging.warning("%s: %s: %s", name, dropped, list_problems(self.problems))
    if said := [f"{trait}: {remark.number}" for trait, remark in self.remarks.items() if remark.number]:
      logging.info("%s: %s", name, "; ".join(said))

  def source(self, name: str, exif: str) -> Source:
    """The records with their image files."""
    assert self.files is not None
    return Source(name, self.categories, self.annotations, self.files.read, exif, self.own_ids)

  def select(self, images: Int64[np.ndarray, " kept"]) -> "Labels":
    """The same of some images, without what is wrong or remarkable."""
    files = self.files and self.files.select(images)
    annotations = self.annotations.select(images)
    return Labels(self.where, self.categories, annotations, files=files, own_ids=self.own_ids)

  def find_sizes(self, exif: str) -> None:
    """Heights and widths that are not said, from the files' headers: as `exif` has them seen."""
    a, files = self.annotations, self.files
    assert files is not None
    lacking = np.flatnonzero((a.height == 0) | (a.width == 0))
    bad = {p.image_id for p in self.problems}
    for i in lacking.tolist():
      if int(a.image_id[i]) in bad:
        continue
      try:
        start = read_start(files, i)
        # Only of a JPEG all that counts stands before the pixels.
        header = read_header(start) if kind_of(start) == "JPEG" else None
        header = header or read_header(files.read(i))
      except OSError as error:
        self.problems.append(self.file_problem(i, f"cannot be read: {error.strerror}"))
        continue
      if header is None:
        self.problems.append(self.file_problem(i, "not a readable picture, and its size is not said"))
        continue
      a.height[i], a.width[i] = header[:2] if exif == "ignore" else header.shown
    if self.shares:
      sides = np.column_stack([a.width, a.height])[a.image_of_box()].astype(np.float64)
      self.annotations = replace(a, bbox=a.bbox * np.tile(sides, 2), area=a.area * sides.prod(axis=1))
      self.shares = False
    elif len(lacking):
      self.remark("images without height or width (taken from the files)", len(lacking))

  def file_problem(self, i: int, what: str) -> Problem:
    """Of the file of image `i`."""
    name = self.files.path(i) if self.files else self.annotations.file_name[i]
    image_id = int(self.annotations.image_id[i])
    return Problem(f"{name} (image id {image_id})", what, image_id=image_id)


def alphabet(names: Iterable[str]) -> tuple[Category, ...]:
  """The categories of a format that has only their names: numbered from 1 in the order of the alphabet."""
  return tuple(Category(i, name) for i, name in enumerate(sorted(set(names)), 1))


def exchanged(
  corners: Float64[np.ndarray, "boxes 4"], box_at: Callable[[int], str], inside: bool = False
) -> list[Problem]:
  """Of boxes (xmin, ymin, xmax, ymax) whose first corner is not the upper left one.

  Args:
    inside: both corners are pixels of the box: one of no width has its xmax before its xmin.
  """
  bad = np.flatnonzero((corners[:, :2] - inside > corners[:, 2:]).any(axis=1)).tolist()
  what = lambda i: "xmin {:g}, ymin {:g}, xmax {:g}, ymax {:g}: min is above max".format(*corners[i])
  return [Problem(box_at(i), what(i), "exchanged") for i in bad]


def make_labels(
  where: Path,
  categories: tuple[Category, ...],
  images: Images,
  boxes: Boxes,
  box_at: Callable[[int], str],
) -> Labels:
  """Labels of records whose images and categories are known: boxes are checked and put in order.

  Boxes of no area or outside their image are kept as they are. An area that is not said, or is none while its
  box has one, is the box's.

  Args:
    box_at: the place of a box, by its row, for messages.
  """
  for category in categories:
    name = category.name
    unfit = "\0" in name or re.search("[\ud800-\udfff]", name)  # what is no UTF-8
    if unfit or not name.strip() or len(name.splitlines()) != 1:
      raise UserError(f"{where}: a category has the name {name[:80]!r}; it must be one line of text")
  labels = Labels(where, categories, NOTHING, records=len(images.id) + len(boxes.id))

  def refuse(bad: np.ndarray, what: Callable[[int], str], kind: str) -> None:
    labels.problems += [Problem(box_at(i), what(i), kind) for i in np.flatnonzero(bad).tolist()]

  numbers = lambda i: f"'bbox' is {boxes.bbox[i].tolist()}"
  strange = ~(np.abs(boxes.bbox) < FAR).all(axis=1)  # also where it is no number
  refuse(strange, lambda i: f"{numbers(i)}, must be four finite numbers x, y, w, h below {FAR}", "finite")
  negative = ~strange & (boxes.bbox[:, 2:] < 0).any(axis=1)
  refuse(negative, lambda i: f"{numbers(i)}, w and h must not be negative", "negative")
  endless = ~strange & ~negative & np.isinf(boxes.area)
  refuse(endless, lambda i: f"'area' is {boxes.area[i]}, must be a finite number", "area")
  good = ~(strange | negative | endless)
  if not good.all():
    boxes = boxes.select(good)
  of_box = boxes.bbox[:, 2] * boxes.bbox[:, 3]
  unsaid, none = np.isnan(boxes.area), (boxes.area <= 0) & (of_box > 0)
  if number := int(unsaid.sum()):
    labels.remark("annotations without 'area' (that of the box taken)", number)
  if number := int(none.sum()):
    labels.remark("areas of 0 or less of boxes that have one (that of the box taken)", number)
  boxes = boxes._replace(area=np.where(unsaid | none, of_box, boxes.area))
  if (np.diff(boxes.image) < 0).any():
    boxes = boxes.select(np.argsort(boxes.image, kind="stable"))
  first = np.concatenate([[0], np.cumsum(np.bincount(boxes.image, minlength=len(images.id)))])
  sizes = (images.height.astype(np.int32), images.width.astype(np.int32))
  labels.annotations = Annotations(
    images.id, images.file_name, *sizes, first, boxes.bbox, boxes.label.astype(np.int32), *boxes[3:]
  )
  return labels


NO_NUMBERS = np.zeros(0, np.int64)
NOTHING = Annotations(
  *(NO_NUMBERS, [], NO_NUMBERS.astype(np.int32), NO_NUMBERS.astype(np.int32), np.zeros(1, np.int64)),
  *(np.zeros((0, 4)), NO_NUMBERS.astype(np.int32), np.zeros(0, bool), np.zeros(0), NO_NUMBERS),
)


def list_problems(problems: Sequence[Problem], shown: int = SHOWN) -> str:
  """The problems, those of a kind together: the first in full, the places of some more, and how many."""
  kinds: dict[str, list[Problem]] = {}
  for problem in problems:
    kinds.setdefault(problem.kind or problem.what, []).append(problem)
  told = []
  for alike in islice(kinds.values(), shown):
    more = ", ".join(shortened(p.where) for p in alike[1:4]) + (", ..." if len(alike) > 4 else "")
    told.append(f"{alike[0]}" + (f" (and {len(alike) - 1} more like it: {more})" if more else ""))
  left = len(kinds) - shown
  return "; ".join(told) + (f"; and {left} more kinds" if left > 0 else "")
