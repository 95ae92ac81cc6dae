"""Data sets: opening one by its path. A new format is a module beside this one and its name in FORMATS."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from iou_det.data import coco, csv, shapes, tfds, voc, yolo
from iou_det.data.checks import check_pictures
from iou_det.data.divide import how_to
from iou_det.data.labels import Labels
from iou_det.data.oddities import of_remarks, remark_oddities
from iou_det.data.source import Source
from iou_det.errors import UserError
from iou_det.storage import local_path

# Asked in this order; the first is embedded, no folder. A format's module has NAME, WHAT (such a path in
# words), SIGN (what is looked for in it), recognises(path), splits(path) and either open_split(path, split),
# a Source, or, where anybody may have written the files, read_split(path, split), Labels to be checked.
FORMATS: tuple[Any, ...] = (shapes, tfds, coco, voc, yolo, csv)
FILE_FORMATS = tuple(f for f in FORMATS if hasattr(f, "read_split"))
NAMES = tuple(f.NAME for f in FORMATS)

_embedded, *_folders = FORMATS
WHAT_A_PATH_MAY_BE = f"{', '.join(f.WHAT for f in _folders)} or {_embedded.WHAT}"
EXIF = ("auto", "apply", "ignore")


class Reading(NamedTuple):
  """How a data set is read."""

  format: str = "auto"  # or one of NAMES
  exif: str = "auto"  # see `images.turned`
  skip_bad: bool = False  # drop bad records, and say which, instead of refusing them: opens every picture

  @classmethod
  def of(cls, data: ConfigDict) -> "Reading":
    return cls(data.format, data.exif, data.skip_bad)


AS_IT_LOOKS = Reading()


def open_dataset(path: str | os.PathLike[str], split: str, reading: Reading = AS_IT_LOOKS) -> Source:
  """Opens a split of a data set by its path; a UserError says what there is."""
  known = format_of(path, reading.format)
  if hasattr(known, "open_split"):
    source = known.open_split(path, split)
    return source if reading.exif == "auto" else source.replace(exif=reading.exif)
  labels = read_labels(path, split, reading)
  if reading.skip_bad:
    check_pictures(labels, reading.exif)
  labels.settle(reading.skip_bad)
  name = f"{Path(path).name}/{split}"
  logging.info(f"{name}: of {known.WHAT}")
  labels.log(name)
  remark_oddities(labels)
  for finding in of_remarks({split: labels}):
    if finding.level == "error":
      logging.warning(f"{name}: {finding}")
  return labels.source(name, reading.exif)


def read_labels(path: str | os.PathLike[str], split: str, reading: Reading = AS_IT_LOOKS) -> Labels:
  """What the annotations of a split say, good or bad; of formats that have `read_split`."""
  known = format_of(path, reading.format)
  there = known.splits(path)
  if split not in there:
    names = ", ".join(there) or "none"
    raise UserError(f"{path} has no split {split!r}; there are: {names}{how_to(there)}")
  labels = known.read_split(path, split)
  labels.find_sizes(reading.exif)
  return labels


def is_here(path: str | os.PathLike[str]) -> bool:
  """Whether a path says something about this machine; an address (gs://) is the same on each."""
  return _embedded.recognises(path) or "://" in str(path) or os.path.exists(path)


def format_of(path: str | os.PathLike[str], name: str = "auto") -> Any:
  """The format of what is at a path: by looking, or the one of this name."""
  folder = local_path(path, "data path")
  for known in FORMATS:
    if name in ("auto", known.NAME) and known.recognises(path):
      return known
  if not folder.is_dir():
    where = "" if folder.is_absolute() else f" in {os.getcwd()}"
    raise UserError(f"data path {path} is not a folder{where}; give {WHAT_A_PATH_MAY_BE}")
  if name != "auto":
    wanted = next(f for f in FORMATS if f.NAME == name)
    raise UserError(f"data path {path} is not {wanted.WHAT}: there is no {wanted.SIGN}")
  signs = " nor ".join(f"{f.WHAT} (no {f.SIGN})" for f in _folders)
  raise UserError(f"data path {path} is neither {signs}; give {WHAT_A_PATH_MAY_BE}")
