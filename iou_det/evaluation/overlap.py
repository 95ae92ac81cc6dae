"""Do scores rank detections by how well they fit? Figures 2 and 3 of arXiv:1908.05641, and beyond them.

Matching rule of everything here: a detection is compared with all objects (non-crowd ground truths) of its
class in its image, whatever its rank or score; its IoU is the best of them, 0 if there is none. Several
detections may share an object. That is not COCO's matching, which gives an object to one detection.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask
from scipy import stats

from iou_det.errors import UserError
from iou_det.evaluation import coco
from iou_det.storage import AnyPath, local_copy, whole_file

LOCATED = 0.5  # a detection with this IoU or more is on its object, as in AP50


class Boxes(NamedTuple):
  """Detections or NMS candidates of many images; x1, y1, x2, y2 in pixels, x2 and y2 exclusive."""

  image_id: Int[np.ndarray, " n"]
  category_id: Int[np.ndarray, " n"]
  box: Float[np.ndarray, "n 4"]
  score: Float[np.ndarray, " n"]


class Overlaps(NamedTuple):
  """Score and best IoU of every detection, in the order given, without the `on_crowd` ones left out."""

  scores: Float[np.ndarray, " n"]
  ious: Float[np.ndarray, " n"]
  on_crowd: int


class ScorePerIou(NamedTuple):
  """Figure 2: bin i holds edges[i] <= IoU < edges[i + 1], the last one its upper edge too."""

  edges: Float[np.ndarray, " bins_and_1"]
  mean_score: Float[np.ndarray, " bins"]  # NaN in an empty bin
  counts: Int[np.ndarray, " bins"]


class ShareAboveIou(NamedTuple):
  """Figure 3: share of detections with an IoU of `thresholds` or more, among two sets of detections."""

  thresholds: Float[np.ndarray, " thresholds"]
  of_all: Float[np.ndarray, " thresholds"]  # NaN without detections
  of_located: Float[np.ndarray, " thresholds"]  # among those with IoU >= 0.5; NaN without any
  detections: int
  located: int


class Regret(NamedTuple):
  """How often NMS dropped the better box of an object."""

  kept: int  # boxes that NMS kept, after the cut at `max_detections`
  on_object: int  # of those, with an IoU of 0.5 or more with an object of their class
  regretted: int  # of those, that suppressed one with a higher IoU with the same object
  share: float | None  # regretted / on_object
  mean_loss: float | None  # IoU of the best suppressed box minus that of the kept one, over the regretted


def best_ious(ground_truth: dict[str, Any], results: coco.Results) -> Overlaps:
  """Score and best IoU of each detection, by the matching rule above.

  Crowd regions are no objects. A detection that is on no object (IoU below 0.5) but lies in a crowd region
  of its class (half of its area or more, as COCO measures it) is neither good nor bad: COCO would ignore
  it at IoU 0.5. It is left out and counted. All other COCO results count: no limit per image.
  """
  truth, source = coco.load_ground_truth(ground_truth)
  coco.refuse_unknown_ids(truth, source, results.image_id.tolist(), results.category_id.tolist())
  found, truths = as_boxes(results), _ground_truths(truth)
  ious, covered = np.zeros(len(found.score)), np.zeros(len(found.score))
  for image_and_class, group in _groups(found):
    objects, crowds = truths[image_and_class]
    ious[group] = pairwise_iou(found.box[group], objects).max(axis=1, initial=0.0)
    covered[group] = pairwise_iou(found.box[group], crowds, inside=True).max(axis=1, initial=0.0)
  on_crowd = (ious < LOCATED) & (covered >= LOCATED)
  return Overlaps(found.score[~on_crowd], ious[~on_crowd], int(on_crowd.sum()))


def score_per_iou(overlaps: Overlaps, edges: Float[np.ndarray, " bins_and_1"] | None = None) -> ScorePerIou:
  """Figure 2: mean score in each bin of IoU, 0, 0.1, ... 1; the first also has what touches no object."""
  edges = np.arange(11) / 10 if edges is None else edges
  counts = np.histogram(overlaps.ious, edges)[0]
  total = np.histogram(overlaps.ious, edges, weights=overlaps.scores)[0]
  return ScorePerIou(edges, np.where(counts > 0, total / np.maximum(counts, 1), np.nan), counts)


def share_above_iou(overlaps: Overlaps) -> ShareAboveIou:
  """Figure 3: share of detections at each of COCO's IoUs (0.5, 0.55, ... 0.95) or above.

  The paper names no denominator. `of_all` takes every detection (not those on crowds); it also moves with the
  number of false positives. `of_located`: how well the boxes fit that are on an object at all.
  """
  thresholds = np.array(coco.IOUS)
  ranked = np.sort(overlaps.ious)
  above = len(ranked) - np.searchsorted(ranked, thresholds, side="left")
  located = int(above[0])
  nan = np.full(len(thresholds), np.nan)
  of_all, of_located = (above / n if n else nan for n in (len(ranked), located))
  return ShareAboveIou(thresholds, of_all, of_located, len(ranked), located)


def rank_correlation(overlaps: Overlaps, min_iou: float = 0.0) -> float | None:
  """Spearman's correlation of score and IoU from `min_iou` on; None without two scores and two IoUs."""
  chosen = overlaps.ious >= min_iou
  scores, ious = overlaps.scores[chosen], overlaps.ious[chosen]
  if len(np.unique(scores)) < 2 or len(np.unique(ious)) < 2:
    return None
  return float(stats.spearmanr(scores, ious).statistic)


def as_boxes(results: coco.Results) -> Boxes:
  """COCO results (x, y, w, h) with corners."""
  x_y, size = results.bbox[:, :2], results.bbox[:, 2:]
  corners = np.concatenate([x_y, x_y + size], axis=1)
  return Boxes(results.image_id, results.category_id, corners, results.score.astype(np.float64))


def save_candidates(path: AnyPath, results: coco.Results) -> None:
  """Writes what `Detector.detect` returns with config.eval.nms "none" and max_detections for all, as .npz."""
  with whole_file(path) as file:
    np.savez_compressed(file, **as_boxes(results)._asdict())


def load_candidates(path: AnyPath) -> Boxes:
  try:
    with local_copy(path) as copy, np.load(copy) as file:
      return Boxes(**file)
  except OSError as error:
    raise UserError(f"cannot read the candidates {path}: {error.strerror or error}") from error
  except (ValueError, TypeError, EOFError, BadZipFile) as error:
    raise UserError(f"{path} holds no candidates ({error}); write them with save_candidates") from error


def suppress(
  candidates: Boxes, *, nms_iou: float = 0.5, max_detections: int = 100
) -> tuple[Bool[np.ndarray, " n"], Int[np.ndarray, " n"]]:
  """Greedy NMS of each class, then the best `max_detections` of an image, as "hard" NMS of `detect` does.

  Returns:
    Whether each candidate is kept, and which candidate suppressed it: the best-scoring kept one (of equal
    scores the first) of its class whose IoU with it exceeds `nms_iou`; -1 for those that none did.
  """
  by = np.full(len(candidates.score), -1)
  for _, group in _groups(candidates):
    left = group[np.argsort(-candidates.score[group], kind="stable")]
    while left.size:
      best, rest = left[0], left[1:]
      over = pairwise_iou(candidates.box[best][None], candidates.box[rest])[0] > nms_iou
      by[rest[over]] = best
      left = rest[~over]
  passed = np.flatnonzero(by < 0)
  ranked = passed[np.lexsort((-candidates.score[passed], candidates.image_id[passed]))]
  images = candidates.image_id[ranked]
  rank = np.arange(len(ranked)) - np.searchsorted(images, images)  # within the image
  kept = np.zeros(len(by), bool)
  kept[ranked[rank < max_detections]] = True
  return kept, by


def nms_regret(
  ground_truth: dict[str, Any], candidates: Boxes, *, nms_iou: float = 0.5, max_detections: int = 100
) -> Regret:
  """How often a kept box suppressed a better-fitting one of the same object.

  The object of a kept box is the one of its class with the highest IoU, if that is at least 0.5; a suppressed
  candidate counts whatever its own best object is. Kept boxes that share an object count each.
  """
  truth, source = coco.load_ground_truth(ground_truth)
  coco.refuse_unknown_ids(truth, source, candidates.image_id.tolist(), candidates.category_id.tolist())
  truths = _ground_truths(truth)
  kept, by = suppress(candidates, nms_iou=nms_iou, max_detections=max_detections)
  losses: list[float] = []  # of kept boxes on an object; 0 or less: no regret
  for image_and_class, group in _groups(candidates):
    ious = pairwise_iou(candidates.box[group], truths[image_and_class][0])
    for row in np.flatnonzero(kept[group] & (ious.max(axis=1, initial=0.0) >= LOCATED)):
      mine = ious[row].argmax()
      losses.append(ious[by[group] == group[row], mine].max(initial=0.0) - ious[row, mine])
  regrets = [loss for loss in losses if loss > 0]
  share = len(regrets) / len(losses) if losses else None
  mean_loss = float(np.mean(regrets)) if regrets else None
  return Regret(int(kept.sum()), len(losses), len(regrets), share, mean_loss)


def pairwise_iou(
  a: Float[np.ndarray, "n 4"], b: Float[np.ndarray, "m 4"], *, inside: bool = False
) -> Float[np.ndarray, "n m"]:
  """IoU of every pair of x1, y1, x2, y2 boxes, or the share of each a's area inside each b; in [0, 1]."""
  if not len(a) or not len(b):  # for which pycocotools returns a list
    return np.zeros((len(a), len(b)))
  sized = (np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1) for boxes in (a, b))
  return np.minimum(mask.iou(*sized, [inside] * len(b)), 1.0)


def _groups(boxes: Boxes) -> Iterator[tuple[tuple[int, int], Int[np.ndarray, " group"]]]:
  """(image id, category id) and the positions of its boxes, in the order given."""
  order = np.lexsort((boxes.category_id, boxes.image_id))  # stable
  keys = np.stack([boxes.image_id[order], boxes.category_id[order]], axis=1)
  starts = np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1
  for group in np.split(order, starts):
    if group.size:
      yield (int(boxes.image_id[group[0]]), int(boxes.category_id[group[0]])), group


def _ground_truths(truth: dict[str, Any]) -> dict[tuple[int, int], tuple[Any, Any]]:
  """(image id, category id) -> boxes of objects and of crowd regions; of none for other pairs."""
  boxes = as_boxes(coco.Results.of([row | {"score": 1.0} for row in truth["annotations"]]))
  crowd = np.array([row["iscrowd"] for row in truth["annotations"]], bool)
  found: dict[tuple[int, int], tuple[Any, Any]] = defaultdict(lambda: (np.zeros((0, 4)), np.zeros((0, 4))))
  for key, group in _groups(boxes):
    found[key] = boxes.box[group[~crowd[group]]], boxes.box[group[crowd[group]]]
  return found
