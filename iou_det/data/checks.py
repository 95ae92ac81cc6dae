"""Checks a COCO-format data set image by image, counts what is in it, and names what is wrong."""

import tempfile
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
from tqdm import tqdm

from iou_det.data.coco import CocoFile, image_file_problem, missing_images, read_coco
from iou_det.data.images import check
from iou_det.data.source import list_problems
from iou_det.errors import UserError

TOLERANCE = 1e-6  # pixels a box may overhang by rounding


def check_coco(images: Path, annotations: Path, *, skip_bad: bool) -> CocoFile:
  """Reads an annotation file and every image it names, one at a time; what is remarkable are its `remarks`.

  Bad records are refused or, if `skip_bad`, dropped (a bad image goes with its boxes).
  """
  coco = read_coco(annotations)
  coco.problems += missing_images(images, coco.annotations)
  check_images(images, coco)
  if coco.problems and not skip_bad:
    bad = f"{len(coco.problems)} bad records of {coco.records}: {list_problems(coco.problems)}"
    raise UserError(f"{bad}; mend them, or drop them with --skip_bad; nothing was written")
  gone = [p.image_id for p in coco.problems if p.image_id is not None]
  kept = coco.annotations.select(np.flatnonzero(~np.isin(coco.annotations.image_id, gone)))
  coco.dropped_boxes += len(coco.annotations.bbox) - len(kept.bbox)
  coco.annotations = kept
  if not len(kept.bbox):
    raise UserError(f"{annotations}: no image with a box is left after {len(coco.problems)} bad records")
  remark_boxes(coco)
  return coco


def check_images(folder: Path, coco: CocoFile) -> None:
  """Adds the problems and traits of the image files that exist."""
  a, remarks = coco.annotations, coco.remarks
  absent = {p.image_id for p in coco.problems}
  contents: dict[bytes, str] = {}
  remarks["images without boxes"] = []  # the first line of the report; filled when bad images are gone
  with tempfile.TemporaryFile() as messages:
    for i, name in enumerate(tqdm(a.file_name, desc="check images", unit="img", delay=5)):
      if int(a.image_id[i]) in absent:
        continue
      data = (folder / name).read_bytes()
      problem, traits = check(data, (int(a.height[i]), int(a.width[i])), messages)
      if problem:
        coco.problems.append(image_file_problem(folder, a, i, problem))
        continue
      first = contents.setdefault(blake2b(data, digest_size=16).digest(), name)
      for trait, said in traits.items():
        remarks[trait] += [] if said is None else [name + said]
      remarks["images with the same content as another"] += [f"{name} = {first}"] if first != name else []


def remark_boxes(coco: CocoFile) -> None:
  """Adds what is remarkable about the boxes and ids."""
  a, remarks = coco.annotations, coco.remarks
  image = a.image_of_box()
  x, y, w, h = a.bbox.T
  outside = (x < -TOLERANCE) | (y < -TOLERANCE)
  outside |= (x + w > a.width[image] + TOLERANCE) | (y + h > a.height[image] + TOLERANCE)
  boxes = zip(a.file_name, np.diff(a.first), strict=True)
  remarks["images without boxes"] = [name for name, number in boxes if number == 0]
  remarks["file names given twice"] = [name for name, n in Counter(a.file_name).items() if n > 1]
  for trait, holds in {
    "crowd boxes": a.crowd,
    "zero-area boxes": (w == 0) | (h == 0),
    "boxes that reach out of their image": outside,
    "boxes given twice": repeated(np.column_stack([image, a.label, a.crowd, a.bbox])),
    "annotation ids given twice": repeated(a.annotation_id[:, None]),
  }.items():
    where = np.flatnonzero(holds)
    remarks[trait] = [f"annotation {a.annotation_id[i]} (image {a.image_id[image[i]]})" for i in where]


def repeated(rows: np.ndarray) -> np.ndarray:
  """Which rows equal an earlier row."""
  _, first = np.unique(rows, axis=0, return_index=True)
  return ~np.isin(np.arange(len(rows)), first)


def report(coco: CocoFile, title: str) -> str:
  """The counts as text, one a line, with the first few places where something is out of the ordinary."""
  counts = np.bincount(coco.annotations.label, minlength=len(coco.categories))
  per_class = ", ".join(f"{c.name} {n}" for c, n in zip(coco.categories, counts, strict=True))
  lines = [f"{title}: {len(coco.annotations)} images, {len(coco.annotations.bbox)} boxes"]
  lines.append(f"  boxes per class: {per_class}")
  for trait, where in coco.remarks.items():
    examples = f"  ({', '.join(where[:3])}{', ...' if len(where) > 3 else ''})" if where else ""
    lines.append(f"  {trait}: {len(where)}{examples}")
  for key, count in coco.defaults.items():
    lines.append(f"  annotations without {key!r} (default taken): {count}")
  if coco.problems:
    dropped = f"{len(coco.problems)}, and {coco.dropped_boxes} boxes of dropped images"
    lines += [f"  bad records dropped: {dropped}", *(f"    {problem}" for problem in coco.problems)]
  return "\n".join(lines)
