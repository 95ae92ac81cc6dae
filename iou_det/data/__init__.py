"""Data sets: opening one by its path. A new format is a module beside this one and its name in FORMATS."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from iou_det.data import coco, shapes, tfds
from iou_det.data.source import Source
from iou_det.errors import UserError


@runtime_checkable
class Format(Protocol):
  """What the module of a format has; the UserErrors of `open_split` say which splits there are."""

  WHAT: str  # a data path of this format in words
  SIGN: str  # what is looked for in such a path

  def recognises(self, path: str | Path) -> bool: ...
  def splits(self, path: str | Path) -> list[str]: ...
  def open_split(self, path: str | Path, split: str) -> Source: ...


FORMATS: tuple[Format, ...] = (shapes, tfds, coco)  # asked in this order; the first is embedded, no folder

_embedded, *_folders = FORMATS
WHAT_A_PATH_MAY_BE = f"{', '.join(f.WHAT for f in _folders)} or {_embedded.WHAT}"


def open_dataset(path: str | Path, split: str) -> Source:
  """Opens a split of a data set by its path; a UserError says what there is."""
  return format_of(path).open_split(path, split)


def format_of(path: str | Path) -> Format:
  """The format of what is at a path."""
  for known in FORMATS:
    if known.recognises(path):
      return known
  if not Path(path).is_dir():
    raise UserError(f"data path {path} is not a folder; give {WHAT_A_PATH_MAY_BE}")
  signs = " nor ".join(f"{f.WHAT} (no {f.SIGN})" for f in _folders)
  raise UserError(f"data path {path} is neither {signs}; `iou-det prepare` makes a dataset")
