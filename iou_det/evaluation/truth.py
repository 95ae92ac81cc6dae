"""What detections of a data set are scored against: its records, or an annotation file that belongs to it."""

import os
import re
from typing import Any

import numpy as np
from absl import logging

from iou_det.data.coco import to_coco
from iou_det.data.source import Category, Source, corners, describe_difference
from iou_det.errors import UserError
from iou_det.evaluation import coco
from iou_det.evaluation.overlap import pairwise_iou

COMPARED = 500  # images whose boxes are compared with those of an annotation file


def ground_truth(source: Source, annotations: str, skip_bad: bool = False) -> dict[str, Any]:
  """What to score against: of an annotation file, which names images and categories as the source does, what
  is of its images; or ("") the source's own records."""
  if not annotations:
    return to_coco(source.categories, source.annotations)
  truth, _ = coco.load_ground_truth(annotations, skip_bad)
  belongs = "give the file that belongs to them"
  theirs = tuple(Category(c["id"], c["name"]) for c in truth["categories"])
  if set(theirs) != set(source.categories):
    difference = describe_difference({annotations: theirs, source.name: source.categories})
    raise UserError(f"{annotations} has other categories than {source.name} ({difference}); {belongs}")
  a = source.annotations
  known = {image["id"]: image for image in truth["images"]}
  ours = set(a.image_id.tolist())
  if lacking := sorted(ours - known.keys()):
    some = ", ".join(map(str, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
    raise UserError(
      f"{annotations} does not know {len(lacking)} of the {len(ours)} images of {source.name} (ids {some}); "
      f"{belongs}"
    )
  for i, image_id in enumerate(a.image_id.tolist()):
    own = (a.file_name[i], int(a.width[i]), int(a.height[i]))
    other = tuple(known[image_id][key] for key in ("file_name", "width", "height"))
    if stem(own[0]) != stem(other[0]) or (all(other[1:]) and own[1:] != other[1:]):
      mine, its = (f"{name} ({width}x{height})" for name, width, height in (own, other))
      raise UserError(f"image id {image_id} is {mine} in {source.name}, {its} in {annotations}; {belongs}")
  check_boxes(source, truth, annotations, belongs)
  if others := known.keys() - ours:
    logging.info(f"{annotations} has {len(others)} images that {source.name} lacks: not scored")
    of_ours = lambda key, rows: [row for row in rows if row[key] in ours]
    truth["images"] = of_ours("id", truth["images"])
    truth["annotations"] = of_ours("image_id", truth["annotations"])
  return truth


def check_boxes(source: Source, truth: dict[str, Any], annotations: str, belongs: str) -> None:
  """Refuses annotations of the same names of images whose boxes lie elsewhere in most of them.

  Some may have been drawn anew: one box that overlaps one of the image's (IoU of 0.5) is enough.
  """
  theirs: dict[int, list[list[float]]] = {}
  for row in truth["annotations"]:
    theirs.setdefault(row["image_id"], []).append(row["bbox"])
  a, other = source.annotations, []
  both = [i for i in np.flatnonzero(np.diff(a.first)).tolist() if int(a.image_id[i]) in theirs][:COMPARED]
  for i in both:
    boxes = np.array(theirs[int(a.image_id[i])], np.float64)
    if (pairwise_iou(corners(a.bbox[a.rows(i)]), corners(boxes)) < 0.5).all():
      other.append(int(a.image_id[i]))
  if len(other) > max(1, len(both) / 2):
    what = f"{len(other)} of {len(both)} images have their boxes elsewhere than in {source.name}"
    some = ", ".join(map(str, other[:5])) + (", ..." if len(other) > 5 else "")
    raise UserError(f"{annotations}: {what} (image ids {some}); {belongs}")


def stem(name: str) -> str:
  """The last part of a file name, without what tells its format."""
  return os.path.splitext(re.split(r"[\\/]", name)[-1])[0]
