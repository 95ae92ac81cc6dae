"""Data sets: opening one by its path."""

import re
from pathlib import Path

from iou_det.data.source import Source
from iou_det.errors import UserError


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
    from iou_det.data.tfds import Prepared

    return Prepared(version, split)
  if (folder / "annotations").is_dir():
    from iou_det.data.coco import CocoFolder

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
