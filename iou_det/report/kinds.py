"""What is wrong with each detection, and what was missed: the kinds of error of TIDE (arXiv:2008.08115)."""

import contextlib
import io
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from iou_det.evaluation import coco
from iou_det.evaluation.overlap import as_boxes, pairwise_iou

LOCATED, TOUCHED = 0.5, 0.1  # IoU from which a detection is on its object, and from which it is meant by it

# Of a detection, in the order in which they are asked: the first that holds.
KINDS = (
  "right",  # COCO's matching at an IoU of 0.5 gave it an object of its class
  "ignored",  # in a crowd region of its class: neither right nor wrong
  "place",  # poorly placed: its best IoU with objects of its class is 0.1 to 0.5
  "class",  # an IoU of 0.5 or more with an object of another class
  "duplicate",  # an IoU of 0.5 or more with an object of its class that a better detection has
  "false",  # on the background: its IoU with any object is below 0.1
  "both",  # what remains: poorly placed, on an object of another class
)


class Judged(NamedTuple):
  """One entry a detection, in the order given."""

  kind: Int[np.ndarray, " n"]  # a place in KINDS
  object: Int[np.ndarray, " n"]  # the annotation that is meant (see KINDS), by its place; -1 for none


def judge(truth: dict[str, Any], results: coco.Results) -> Judged:
  """The kind of each detection, the same whatever lower scores are left out.

  A threshold on the score takes detections away and changes no kind of those that stay: COCO's matching goes
  from the highest score down, and the rest is asked of one detection alone. An object that none of those that
  stay found ("right") is missed, unless one of them is "place" or "class" of it: that error has been counted.

  Args:
    truth: of `coco.load_ground_truth`.
  """
  kind, meant = matched(truth, results)
  crowd = np.array([row["iscrowd"] for row in truth["annotations"]], bool)
  objects = np.flatnonzero(~crowd)
  boxes = as_boxes(coco.Results.of([truth["annotations"][i] | {"score": 1.0} for i in objects]))
  found, left = as_boxes(results), np.flatnonzero(kind < 0)
  of_image = group(boxes.image_id)
  kind[left] = KINDS.index("false")
  for image_id, rows in group(found.image_id[left]).items():
    if image_id in of_image:
      mine, there = left[rows], of_image[image_id]
      ious = pairwise_iou(found.box[mine], boxes.box[there])
      same = found.category_id[mine][:, None] == boxes.category_id[there]
      kind[mine], at = first_kind(ious, same)
      meant[mine] = np.where(at < 0, -1, objects[there[at]])
  return Judged(kind, meant)


def first_kind(
  ious: Float[np.ndarray, "n m"], same: Bool[np.ndarray, "n m"]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
  """Of detections that have no object: their kind, and the place of the object that is meant, or -1.

  Args:
    same: whether an object is of the detection's class.
  """
  own, other = np.where(same, ious, 0.0), np.where(same, 0.0, ious)
  best = own.max(axis=1)
  rules = {
    "place": ((best >= TOUCHED) & (best < LOCATED), own.argmax(axis=1)),
    "class": (other.max(axis=1) >= LOCATED, other.argmax(axis=1)),
    "duplicate": (best >= LOCATED, own.argmax(axis=1)),
    "false": (ious.max(axis=1) < TOUCHED, np.full(len(ious), -1)),
    "both": (np.full(len(ious), True), ious.argmax(axis=1)),
  }
  holds, places = zip(*rules.values(), strict=True)
  return np.select(holds, [np.int64(KINDS.index(k)) for k in rules]), np.select(holds, places)


def matched(
  truth: dict[str, Any], results: coco.Results
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
  """Kind and annotation of those that pycocotools matches; -1 and -1 for the others. No limit per image."""
  kind, meant = np.full((2, len(results)), -1)
  place = {row["id"]: i for i, row in enumerate(truth["annotations"])}
  with contextlib.redirect_stdout(io.StringIO()):
    scorer = coco.pycocotools_scorer(truth, results)
    scorer.params.iouThrs = np.array([LOCATED])
    scorer.params.areaRng, scorer.params.areaRngLbl = [[0, 1e10]], ["all"]
    scorer.params.maxDets = [max(1, len(results))]
    scorer.evaluate()
  for seen in filter(None, scorer.evalImgs):
    for number, match, ignored in zip(seen["dtIds"], seen["dtMatches"][0], seen["dtIgnore"][0], strict=True):
      if match:
        kind[number - 1] = KINDS.index("ignored" if ignored else "right")
        meant[number - 1] = place[int(match)]
  return kind, meant


def group(keys: Int[np.ndarray, " n"]) -> dict[int, Int[np.ndarray, " group"]]:
  """The places of each key, in order."""
  order = np.argsort(keys, kind="stable")
  ordered = keys[order]
  parts = np.split(order, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)
  return {int(keys[part[0]]): part for part in parts if part.size}
