"""Records (an encoded image with its boxes), the sources they come from, and which of them to train on.

A source has random access (`len`, `[]`), a category table and a name, and can be pickled to worker processes.
"""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int, Int32

from iou_det.data.annotations import Annotations, Category, CocoFile, Problem, list_problems, read_coco
from iou_det.errors import UserError

__all__ = ["Category", "CocoFolder", "Index", "Record", "Source", "TrainingFilter", "open_dataset", "scan"]


@dataclass(frozen=True)
class Record:
  """One image with its boxes, all of them: crowds, empty and overhanging boxes too.

  Attributes:
    image_id: id in the original data set.
    file_name: name in the original data set.
    image: encoded bytes, JPEG or PNG; the boxes refer to the pixels as stored, before any EXIF rotation.
    height, width: pixels.
    boxes: x1, y1, x2, y2 in pixels, x2 and y2 exclusive; float64 from files, so that scores against the
      records equal those against the original file.
    labels: 0..K-1, places in the category table.
    crowd: the box surrounds a group.
    area: pixels^2 of the object (of its mask, where the data set has masks).
    annotation_id: ids in the original data set.
  """

  image_id: int
  file_name: str
  image: bytes
  height: int
  width: int
  boxes: Float[np.ndarray, "n 4"]
  labels: Int[np.ndarray, " n"]
  crowd: Bool[np.ndarray, " n"]
  area: Float[np.ndarray, " n"]
  annotation_id: Int[np.ndarray, " n"]


@runtime_checkable
class Source(Protocol):
  """What every source offers."""

  @property
  def name(self) -> str: ...

  @property
  def categories(self) -> tuple[Category, ...]: ...

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> Record: ...

  def image_id(self, i: int) -> int:
    """`self[i].image_id`, without reading the image."""
    ...

  def annotations(self) -> Annotations:
    """All records without their images."""
    ...


def corners(bbox: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
  """x, y, w, h -> x1, y1, x2, y2 (exclusive)."""
  return np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1)


class CocoFolder:
  """A COCO-format folder, read in place: `annotations/instances_SPLIT.json` and the images in `SPLIT/`.

  Opening it checks every annotation and that every image file is there; images are read when asked for.
  """

  name: str
  categories: tuple[Category, ...]

  def __init__(self, root: str | Path, split: str):
    root = Path(root)
    known = coco_splits(root)
    if split not in known:
      raise UserError(
        f"{root} has no split {split!r}; " +
        (f"there are: {', '.join(known)}" if known else "it has no annotations/instances_*.json")
      )  # fmt: skip
    coco = open_coco(root / split, root / "annotations" / f"instances_{split}.json")
    self._set(root / split, coco.categories, coco.annotations, f"{root.name}/{split}")

  @classmethod
  def from_files(cls, images: str | Path, annotations: str | Path) -> "CocoFolder":
    """From a folder of images and an annotation file anywhere."""
    coco = open_coco(Path(images), Path(annotations))
    return cls.from_columns(images, coco.categories, coco.annotations, Path(annotations).stem)

  @classmethod
  def from_columns(
    cls, images: str | Path, categories: tuple[Category, ...], annotations: Annotations, name: str
  ) -> "CocoFolder":
    """From annotations that were read and checked already."""
    self = cls.__new__(cls)
    self._set(Path(images), categories, annotations, name)
    return self

  def _set(
    self, images: Path, categories: tuple[Category, ...], annotations: Annotations, name: str
  ) -> None:
    self._images, self._annotations = images, annotations
    self.categories, self.name = categories, name

  def __len__(self) -> int:
    return len(self._annotations)

  def __getitem__(self, i: int) -> Record:
    a = self._annotations
    i = range(len(a))[i]
    rows = a.rows(i)
    return Record(
      image_id=int(a.image_id[i]), file_name=a.file_name[i],
      image=(self._images / a.file_name[i]).read_bytes(), height=int(a.height[i]), width=int(a.width[i]),
      boxes=corners(a.bbox[rows]), labels=a.label[rows], crowd=a.crowd[rows], area=a.area[rows],
      annotation_id=a.annotation_id[rows],
    )  # fmt: skip

  def image_id(self, i: int) -> int:
    return int(self._annotations.image_id[i])

  def annotations(self) -> Annotations:
    return self._annotations


def open_coco(images: Path, annotations: Path) -> CocoFile:
  """Reads an annotation file and checks that its images are there; a bad record is a UserError."""
  coco = read_coco(annotations)
  problems = coco.problems + missing_images(images, coco.annotations)
  if problems:
    raise UserError(
      f"{len(problems)} bad records: {list_problems(problems)}; mend them, or drop them with "
      "`iou-det prepare --skip_bad`"
    )
  if coco.defaults:
    logging.info("%s: defaults for missing fields: %s", annotations, dict(coco.defaults))
  if not len(coco.annotations):
    raise UserError(f"{annotations} has no images; nothing to train or score on")
  return coco


def coco_splits(root: Path) -> list[str]:
  """Splits of a COCO folder, by its annotation files."""
  return sorted(
    p.stem.removeprefix("instances_") for p in (root / "annotations").glob("instances_*.json") if p.is_file()
  )


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
  """A problem of the file of image `i`."""
  where = f"{folder / annotations.file_name[i]} (image id {annotations.image_id[i]})"
  return Problem(where, what, image_id=int(annotations.image_id[i]))


def open_dataset(path: str | Path, split: str) -> Source:
  """Opens a data set by its path.

  Args:
    path: "shapes" (the embedded set), a COCO folder (see `CocoFolder`) or a prepared TFDS ArrayRecord
      dataset: the folder of a version, or one above it (NAME, NAME/CONFIG), whose newest version is taken.
    split: for example "train".

  Raises:
    UserError: for a path that is none of these, a split that is empty or not there (the message lists those
      that are).
  """
  # The other sources are imported here: they import this module, and TFDS takes seconds.
  if str(path) == "shapes":
    from iou_det.data.shapes import Shapes

    return Shapes(split)
  folder = Path(path)
  if not folder.is_dir():
    raise UserError(f'data path {path} is not a folder; give a prepared dataset, a COCO folder or "shapes"')
  version = find_version(folder)
  if version is not None:
    from iou_det.data.prepared import Prepared

    return Prepared(version, split)
  if (folder / "annotations").is_dir():
    return CocoFolder(folder, split)
  raise UserError(
    f"data path {path} is neither a prepared dataset (no dataset_info.json in it or below) nor a COCO folder "
    "(no annotations/instances_SPLIT.json); `iou-det prepare` makes a dataset"
  )


def find_version(folder: Path) -> Path | None:
  """The TFDS dataset in `folder`, or the newest version up to two levels below it; None if there is none."""
  if (folder / "dataset_info.json").is_file():
    return folder
  for pattern in ("*", "*/*"):
    found = [
      p for p in folder.glob(pattern)
      if re.fullmatch(r"\d+\.\d+\.\d+", p.name) and (p / "dataset_info.json").is_file()
    ]  # fmt: skip
    if len({p.parent for p in found}) > 1:
      datasets = ", ".join(sorted({str(p.parent) for p in found}))
      raise UserError(f"data path {folder} holds more than one dataset ({datasets}); name one of them")
    if found:
      return max(found, key=lambda p: [int(n) for n in p.name.split(".")])
  return None


@dataclass(frozen=True)
class TrainingFilter:
  """Which images and boxes to train on; the defaults are those of the paper's codebase (mmdetection 0.6).

  Crowd boxes and boxes of area 0 are never trained on.

  Attributes:
    min_image_side: images with a shorter side are dropped, pixels.
    min_box_side: boxes with a shorter side are dropped, pixels.
    keep_empty: train on images that have no box left.
  """

  min_image_side: int = 32
  min_box_side: float = 1.0
  keep_empty: bool = False

  def boxes(
    self, boxes: Float[np.ndarray, "n 4"], crowd: Bool[np.ndarray, " n"], area: Float[np.ndarray, " n"]
  ) -> Bool[np.ndarray, " n"]:
    """Which boxes (x1, y1, x2, y2) of a record to train on."""
    return ~crowd & ~self.too_small(boxes, area)

  def too_small(
    self, boxes: Float[np.ndarray, "n 4"], area: Float[np.ndarray, " n"]
  ) -> Bool[np.ndarray, " n"]:
    """Which boxes (x1, y1, x2, y2) have a side below the limit or no area."""
    return ((boxes[:, 2:] - boxes[:, :2]) < self.min_box_side).any(axis=1) | (area <= 0)


class Index(NamedTuple):
  """Sizes of all records of a source, and which of them to train on."""

  heights: Int32[np.ndarray, " n"]
  widths: Int32[np.ndarray, " n"]
  num_boxes: Int32[np.ndarray, " n"]  # boxes to train on
  usable: Bool[np.ndarray, " n"]  # images to train on


def scan(source: Source, keep: TrainingFilter) -> Index:
  """Sizes and box counts of all records, without opening an image; logs what the filter drops.

  Raises:
    UserError: if no image is left.
  """
  started = time.monotonic()
  a = source.annotations()
  boxes = corners(a.bbox)
  good = keep.boxes(boxes, a.crowd, a.area)
  num_boxes = np.bincount(a.image_of_box()[good], minlength=len(a)).astype(np.int32)
  large = np.minimum(a.height, a.width) >= keep.min_image_side
  full = (num_boxes > 0) | keep.keep_empty
  index = Index(a.height, a.width, num_boxes, large & full)
  small = keep.too_small(boxes, a.area) & ~a.crowd
  counts = (
    f"{index.usable.sum()} of {len(a)} images and {num_boxes[index.usable].sum()} of {len(good)} boxes to "
    f"train on; left out: {(~large).sum()} images with a side below {keep.min_image_side} px, "
    f"{(large & ~full).sum()} images without usable boxes, {a.crowd.sum()} crowd boxes, {small.sum()} boxes "
    f"with a side below {keep.min_box_side:g} px or no area"
  )
  logging.info("%s: %s (%.1f s)", source.name, counts, time.monotonic() - started)
  if not index.usable.any():
    raise UserError(f"{source.name} has nothing to train on: {counts}; give other data or relax config.data")
  return index
