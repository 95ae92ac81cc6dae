"""Checks the pictures of a data set one by one, counts what is in it, and names what is wrong."""

from collections import Counter
from hashlib import blake2b

import numpy as np
from jaxtyping import UInt64
from tqdm import tqdm

from iou_det.data.images import check
from iou_det.data.labels import Labels
from iou_det.data.oddities import remark_oddities
from iou_det.streams import one_line

TOLERANCE = 0.01  # pixels a box may overhang by rounding (YOLO's six digits)
MANY = 40  # classes that are all listed
LISTED = 1000  # places of bad records in a report


def check_all(labels: Labels, exif: str, skip_bad: bool) -> UInt64[np.ndarray, " images"]:
  """Checks everything, refuses or drops what is bad, notes what is remarkable.

  Returns:
    For each image that is left a number that those of the same content share.
  """
  contents = check_pictures(labels, exif)
  labels.settle(skip_bad)
  remark_boxes(labels)
  remark_oddities(labels)
  return contents[contents > 0]


def check_pictures(labels: Labels, exif: str) -> UInt64[np.ndarray, " images"]:
  """Decodes every image file; adds what is wrong with some, and their traits.

  Returns:
    For each image a number that those of the same content share; 0 for bad ones.
  """
  a, files = labels.annotations, labels.files
  assert files is not None
  absent = {p.image_id for p in labels.problems}
  contents = np.zeros(len(a), np.uint64)
  firsts: dict[int, int] = {}
  for i, name in enumerate(tqdm(a.file_name, desc="check images", unit="img", delay=5)):
    if int(a.image_id[i]) in absent:
      continue
    try:
      data = files.read(i)
    except OSError as error:
      labels.problems.append(labels.file_problem(i, f"cannot be read: {error.strerror}"))
      continue
    problem, traits = check(data, (int(a.height[i]), int(a.width[i])), exif)
    if problem:
      labels.problems.append(labels.file_problem(i, problem))
      continue
    contents[i] = digest = content_number(data)
    first = firsts.setdefault(digest, i)
    for trait, said in traits.items():
      labels.remark(trait, int(said is not None), [] if said is None else [name + said])
    if first != i:
      trait = "images with the same content as another"
      labels.remark(trait, 1, [f"{name} = {a.file_name[first]}"])
  return contents


def content_number(data: bytes) -> int:
  """The same for the same bytes; not 0."""
  return int.from_bytes(blake2b(data, digest_size=8).digest()) or 1


def remark_boxes(labels: Labels) -> None:
  """Adds what is remarkable about the boxes and ids."""
  a = labels.annotations
  image = a.image_of_box()
  x, y, w, h = a.bbox.T
  outside = (x < -TOLERANCE) | (y < -TOLERANCE)
  outside |= (x + w > a.width[image] + TOLERANCE) | (y + h > a.height[image] + TOLERANCE)
  empty = np.flatnonzero(np.diff(a.first) == 0).tolist()
  labels.remark("images without boxes", len(empty), (a.file_name[i] for i in empty))
  twice = [name for name, n in Counter(a.file_name).items() if n > 1]
  labels.remark("file names given twice", len(twice), twice)
  for trait, holds in {
    "crowd boxes (also VOC's difficult ones): neither trained on nor counted": a.crowd,
    "zero-area boxes": (w == 0) | (h == 0),
    "boxes that reach out of their image": outside,
    "boxes whose 'area' is larger than they are": a.area > w * h * (1 + 1e-6) + 1,
    "boxes given twice": repeated(np.column_stack([image, a.label, a.crowd, a.bbox])),
    "annotation ids given twice": repeated(a.annotation_id[:, None]),
  }.items():
    where = np.flatnonzero(holds)
    places = (
      f"annotation {a.annotation_id[i]} (image {a.image_id[image[i]]}, {a.file_name[image[i]]})"
      for i in where
    )
    labels.remark(trait, len(where), places)


def repeated(rows: np.ndarray) -> np.ndarray:
  """Which rows equal an earlier row."""
  order = np.lexsort(rows.T)  # stable: of equal rows, the first comes first
  again = np.zeros(len(rows), bool)
  again[order[1:]] = (rows[order[1:]] == rows[order[:-1]]).all(axis=1)
  return again


def report(labels: Labels, title: str) -> str:
  """The counts as text, one a line, with the first few places where something is out of the ordinary."""
  counts = np.bincount(labels.annotations.label, minlength=len(labels.categories))
  named = [f"{c.name} {n}" for c, n in zip(labels.categories, counts, strict=True)]
  per_class = ", ".join(named)
  if len(named) > MANY:
    ranked = [named[i] for i in np.argsort(-counts, kind="stable")]
    per_class = f"{', '.join(ranked[:10])}, ..., {', '.join(ranked[-10:])} ({len(named)} classes)"
  lines = [f"{title}: {len(labels.annotations)} images, {len(labels.annotations.bbox)} boxes"]
  lines.append(f"  boxes per class: {per_class}")
  lines += [f"  {trait}: {remark}" for trait, remark in labels.remarks.items() if remark.number]
  if labels.problems:
    dropped = f"{len(labels.problems)}, and {labels.dropped_boxes} boxes of dropped images"
    lines += [f"  bad records dropped: {dropped}", *(f"    {p}" for p in labels.problems[:LISTED])]
    if len(labels.problems) > LISTED:
      lines.append(f"    and {len(labels.problems) - LISTED} more")
  return "\n".join(line[: len(line) - len(line.lstrip())] + one_line(line) for line in lines)
