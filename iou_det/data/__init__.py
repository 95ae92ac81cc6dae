"""Data sets: opening one by its path. A new format is a module beside this one and its name in FORMATS."""

import os
from typing import Any

from iou_det.data import coco, shapes, tfds
from iou_det.data.source import Source
from iou_det.errors import UserError
from iou_det.storage import local_path

# Asked in this order; the first is embedded, no folder. A format's module has WHAT (such a path in words),
# SIGN (what is looked for in it), recognises(path), splits(path) and open_split(path, split).
FORMATS: tuple[Any, ...] = (shapes, tfds, coco)

_embedded, *_folders = FORMATS
WHAT_A_PATH_MAY_BE = f"{', '.join(f.WHAT for f in _folders)} or {_embedded.WHAT}"


def open_dataset(path: str | os.PathLike[str], split: str) -> Source:
  """Opens a split of a data set by its path; a UserError says what there is."""
  return format_of(path).open_split(path, split)


def is_here(path: str | os.PathLike[str]) -> bool:
  """Whether a path says something about this machine; an address (gs://) is the same on each."""
  return _embedded.recognises(path) or "://" in str(path) or os.path.exists(path)


def format_of(path: str | os.PathLike[str]) -> Any:
  """The format of what is at a path."""
  folder = local_path(path, "data path")
  for known in FORMATS:
    if known.recognises(path):
      return known
  if not folder.is_dir():
    raise UserError(f"data path {path} is not a folder; give {WHAT_A_PATH_MAY_BE}")
  signs = " nor ".join(f"{f.WHAT} (no {f.SIGN})" for f in _folders)
  raise UserError(f"data path {path} is neither {signs}; `iou-det prepare` makes a dataset")
