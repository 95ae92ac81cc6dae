"""Checks a COCO-format data set image by image, counts what is in it, and names what is wrong."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
from tqdm import tqdm

from iou_det.data.coco import CocoFile, image_file_problem, missing_images, read_coco
from iou_det.data.images import check, scratch_file
from iou_det.data.source import Annotations, Problem, list_problems
from iou_det.errors import UserError

TOLERANCE = 1e-6  # pixels a box may overhang by rounding


@dataclass
class Checked:
  """A data set without its bad records, what was bad, and what is remarkable about the rest."""

  coco: CocoFile
  problems: list[Problem]
  remarks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # trait -> where


def check_coco(images: Path, annotations: Path, *, skip_bad: bool) -> Checked:
  """Reads an annotation file and every image it names; decodes each image once, one at a time.

  Args:
    images: folder of the image files.
    annotations: COCO-format JSON.
    skip_bad: drop bad records (a bad image goes with its boxes) instead of refusing them.

  Raises:
    UserError: for bad records, unless skip_bad; if no box is left.
  """
  coco = read_coco(annotations)
  checked = Checked(coco, coco.problems + missing_images(images, coco.annotations))
  check_images(images, coco.annotations, checked)
  if checked.problems and not skip_bad:
    raise UserError(
      f"{len(checked.problems)} bad records of {coco.records}: {list_problems(checked.problems)}; mend them, "
      "or drop them with --skip_bad; nothing was written"
    )
  bad = {p.image_id for p in checked.problems if p.image_id is not None}
  if bad:
    good = np.array([i for i, n in enumerate(coco.annotations.image_id) if int(n) not in bad], np.int64)
    kept = coco.annotations.select(good)
    coco.dropped_boxes += len(coco.annotations.bbox) - len(kept.bbox)
    coco.annotations = kept
  if not len(coco.annotations) or not len(coco.annotations.bbox):
    raise UserError(f"{annotations}: no image with a box is left after {len(checked.problems)} bad records")
  remark_boxes(coco, checked)
  return checked


def check_images(folder: Path, a: Annotations, checked: Checked) -> None:
  """Adds the problems and traits of the image files that exist."""
  absent = {p.image_id for p in checked.problems}
  contents: dict[bytes, str] = {}
  with scratch_file() as messages:
    for i in tqdm(range(len(a)), desc="check images", unit="img", delay=5):
      if int(a.image_id[i]) in absent:
        continue
      data = (folder / a.file_name[i]).read_bytes()
      problem, traits = check(data, int(a.height[i]), int(a.width[i]), messages)
      if problem:
        checked.problems.append(image_file_problem(folder, a, i, problem))
        continue
      for trait in traits:
        checked.remarks[trait].append(a.file_name[i])
      first = contents.setdefault(blake2b(data, digest_size=16).digest(), a.file_name[i])
      if first != a.file_name[i]:
        checked.remarks["images with the same content as another"].append(f"{a.file_name[i]} = {first}")


def remark_boxes(coco: CocoFile, checked: Checked) -> None:
  """Adds what is remarkable about the boxes and ids."""
  a = coco.annotations
  image = a.image_of_box()
  x, y, w, h = a.bbox.T
  outside = (x < -TOLERANCE) | (y < -TOLERANCE)
  outside |= (x + w > a.width[image] + TOLERANCE) | (y + h > a.height[image] + TOLERANCE)
  rows = np.column_stack([image, a.label, a.crowd, a.bbox])
  boxes = {
    "crowd boxes": a.crowd,
    "zero-area boxes": (w == 0) | (h == 0),
    "boxes that reach out of their image": outside,
    "boxes given twice": repeated(rows),
    "annotation ids given twice": repeated(a.annotation_id[:, None]),
  }
  for what, which in boxes.items():
    checked.remarks[what] = [
      f"annotation {a.annotation_id[i]} (image {a.image_id[image[i]]})" for i in np.flatnonzero(which)
    ]
  names = Counter(a.file_name)
  checked.remarks["file names given twice"] = [name for name, count in names.items() if count > 1]
  boxes_of = np.diff(a.first)
  checked.remarks["images without boxes"] = [a.file_name[i] for i in range(len(a)) if boxes_of[i] == 0]


def repeated(rows: np.ndarray) -> np.ndarray:
  """Which rows equal an earlier row."""
  _, first = np.unique(rows, axis=0, return_index=True)
  return ~np.isin(np.arange(len(rows)), first)


TRAITS = (
  "images without boxes", "grey images", "CMYK images", "images with an alpha channel (ignored)",
  "EXIF-rotated images (boxes refer to the pixels as stored)", "images with decoder warnings",
  "images with the same content as another", "file names given twice", "crowd boxes", "zero-area boxes",
  "boxes that reach out of their image", "boxes given twice", "annotation ids given twice",
)  # fmt: skip


def report(checked: Checked, title: str) -> str:
  """The counts as text, one a line, with the first few places where something is out of the ordinary."""
  a = checked.coco.annotations
  lines = [f"{title}: {len(a)} images, {len(a.bbox)} boxes"]
  counts = np.bincount(a.label, minlength=len(checked.coco.categories))
  per_class = ", ".join(f"{c.name} {n}" for c, n in zip(checked.coco.categories, counts, strict=True))
  lines.append(f"  boxes per class: {per_class}")
  for trait in TRAITS:
    where = checked.remarks.get(trait, [])
    examples = f"  ({', '.join(where[:3])}{', ...' if len(where) > 3 else ''})" if where else ""
    lines.append(f"  {trait}: {len(where)}{examples}")
  for key, count in checked.coco.defaults.items():
    lines.append(f"  annotations without {key!r} (default taken): {count}")
  if checked.problems:
    boxes = checked.coco.dropped_boxes
    lines.append(f"  bad records dropped: {len(checked.problems)}, and {boxes} boxes of dropped images")
    lines += [f"    {problem}" for problem in checked.problems]
  return "\n".join(lines)
