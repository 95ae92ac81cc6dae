"""Paired bootstrap over images: how far AP, and differences of AP between runs, can be trusted.

Matching needs one image at a time, so it is done once, by pycocotools. A resample of the images then only
changes how often each image's detections and objects count: an image drawn m times has weight m.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from iou_det.errors import UserError
from iou_det.evaluation import coco

RECALLS = np.linspace(0.0, 1.0, 101)  # where COCO reads precision
BLOCK = 2**20  # weights of so many (resample, detection) pairs are held at once


class Scored(NamedTuple):
  """Matched detections of one run, class after class, each class by falling score.

  Images and classes are those that were scored, by rising id.
  """

  image_ids: Int[np.ndarray, " images"]
  category_ids: Int[np.ndarray, " classes"]
  objects: Int[np.ndarray, "classes images"]  # ground truths that count (no crowds)
  start: Int[np.ndarray, " classes_and_1"]  # class k has the detections start[k] to start[k + 1]
  image: Int[np.ndarray, " detections"]  # position in `image_ids`
  score: Float[np.ndarray, " detections"]
  correct: Bool[np.ndarray, "ious detections"]  # true positives at each of COCO's IoUs
  ignored: Bool[np.ndarray, "ious detections"]  # neither right nor wrong at this IoU: they match a crowd


def score_detections(ground_truth: dict[str, Any], results: coco.Results) -> Scored:
  """Matches COCO results with ground truth as COCO's AP does: all areas, the best 100 a class and image.

  All images are scored. Equal scores stay in pycocotools' order: images by id, within an image as given.
  """
  truth, source = coco.load_ground_truth(ground_truth)
  coco.refuse_unknown_ids(truth, source, results.image_id.tolist(), results.category_id.tolist())
  image_ids = sorted({image["id"] for image in truth["images"]})
  category_ids = sorted({category["id"] for category in truth["categories"]})
  with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
    scorer = coco.pycocotools_scorer(truth, results)
    params = scorer.params
    params.imgIds, params.catIds = image_ids, category_ids
    every_area = params.areaRngLbl.index("all")
    params.areaRng, params.areaRngLbl = [params.areaRng[every_area]], ["all"]
    params.maxDets = [max(coco.MAX_DETECTIONS)]
    scorer.evaluate()

  # Class after class, in each image after image; None where there is neither an object nor a detection.
  cells = [(divmod(n, len(image_ids)), cell) for n, cell in enumerate(scorer.evalImgs) if cell is not None]
  objects = np.zeros((len(category_ids), len(image_ids)), np.int64)
  for place, cell in cells:
    objects[place] = np.count_nonzero(np.asarray(cell["gtIgnore"]) == 0)
  places = np.array([place for place, cell in cells for _ in cell["dtIds"]], np.int64).reshape(-1, 2)
  scores = np.array([score for _, cell in cells for score in cell["dtScores"]], np.float64)
  nothing = np.zeros((len(coco.IOUS), 0))
  matches, ignored = (
    np.concatenate([nothing, *(cell[name] for _, cell in cells)], axis=1)
    for name in ("dtMatches", "dtIgnore")
  )
  order = np.lexsort((-scores, places[:, 0]))  # stable, as COCOeval.accumulate sorts
  skipped = ignored[:, order] != 0
  return Scored(
    np.array(image_ids, np.int64),
    np.array(category_ids, np.int64),
    objects,
    np.searchsorted(places[order, 0], np.arange(len(category_ids) + 1)),
    places[order, 1],
    scores[order],
    (matches[:, order] != 0) & ~skipped,
    skipped,
  )


def bootstrap_ap(
  scored: Sequence[Scored], *, samples: int = 1000, seed: int = 0
) -> Float[np.ndarray, "runs samples ious"]:
  """AP of runs on resamples of the images, drawn with replacement; a sample has the same images for all runs.

  Differences between runs are therefore paired: subtract along the first axis, then take `interval`. AP is in
  [0, 1], at each of COCO's 10 IoUs, mean over the classes that have objects in the resample; NaN without any.
  The same seed gives the same resamples; more samples only add to them.
  """
  if samples < 1:
    raise UserError(f"samples={samples}: a bootstrap needs 1 or more")
  if not scored:
    raise UserError("a bootstrap needs the detections of 1 or more runs, got none")
  first = scored[0]
  for number, run in enumerate(scored[1:], 2):
    for name, what in (("image_ids", "images"), ("category_ids", "classes"), ("objects", "objects")):
      if not np.array_equal(getattr(first, name), getattr(run, name)):
        raise UserError(
          f"run {number} was scored on other {what} than run 1 ({len(run.image_ids)} images with "
          f"{run.objects.sum()} objects, run 1: {len(first.image_ids)} with {first.objects.sum()}); a paired "
          "bootstrap needs the same ground truth: evaluate all runs on one split"
        )
  if not first.objects.any():
    raise UserError("the ground truth has no objects that count, so there is no AP to resample")
  rng = np.random.default_rng(seed)
  images = len(first.image_ids)
  drawn = [np.bincount(rng.integers(images, size=images), minlength=images) for _ in range(samples)]
  return np.stack([weighted_ap(run, np.stack(drawn)) for run in scored])


def weighted_ap(
  scored: Scored, weights: Int[np.ndarray, "samples images"]
) -> Float[np.ndarray, "samples ious"]:
  """AP at each of COCO's IoUs when image i counts weights[:, i] times; all ones: pycocotools' AP.

  Equal to pycocotools on images that are copied under new ids, except where one image has equal scores in
  one class: there copies interleave, here equal detections of a kind stay together.
  """
  objects = weights @ scored.objects.T
  total = np.zeros((len(weights), len(coco.IOUS)))
  narrow = weights.astype(np.int32)  # half the memory to move
  for k in range(len(scored.category_ids)):
    total += _class_ap(scored, k, narrow, objects[:, k])  # 0 without objects
  classes = (objects > 0).sum(axis=1, keepdims=True)
  return np.where(classes > 0, total / np.maximum(classes, 1), np.nan)


def _class_ap(
  scored: Scored, k: int, weights: Int[np.ndarray, "samples images"], objects: Int[np.ndarray, " samples"]
) -> Float[np.ndarray, "samples ious"]:
  """AP of class k, interpolated at 101 recalls as COCOeval.accumulate does.

  Precision is needed at true positives only: recall rises there and nowhere else, and a false positive only
  lowers precision, so it never sets the maximum over higher recalls.
  """
  mine = slice(scored.start[k], scored.start[k + 1])
  image, correct, ignored = scored.image[mine], scored.correct[:, mine], scored.ignored[:, mine]
  hits = [np.flatnonzero(row) for row in correct]
  result = np.zeros((len(weights), len(correct)))
  step = max(1, BLOCK // max(1, len(image)))
  for begin in range(0, len(weights), step):
    block = slice(begin, begin + step)
    weight = np.take(weights[block], image, axis=1)
    ranked = np.cumsum(weight, axis=1, dtype=np.int32)
    for i, hit in enumerate(hits):
      count = ranked[:, hit]
      if ignored[i].any():
        count = count - np.cumsum(weight * ignored[i], axis=1, dtype=np.int32)[:, hit]
      found = np.cumsum(weight[:, hit], axis=1, dtype=np.int32)
      precision = np.zeros((len(weight), len(hit) + 1))  # the last column: recalls that are never reached
      precision[:, :-1] = found / (count + np.spacing(1))
      precision[:, :-1] = np.maximum.accumulate(precision[:, -2::-1], axis=1)[:, ::-1]
      recall = found / np.maximum(objects[block], 1)[:, None]
      at = np.stack([np.searchsorted(row, RECALLS) for row in recall])
      result[block, i] = np.take_along_axis(precision, at, axis=1).mean(axis=1)
  return np.where(objects[:, None] > 0, result, 0.0)


def interval(differences: Float[np.ndarray, " samples"], level: float = 0.95) -> tuple[float, float]:
  """Percentile interval that holds `level` of the resamples."""
  if not 0 < level < 1:
    raise UserError(f"level={level}: an interval's level lies between 0 and 1, exclusive")
  bad = np.count_nonzero(~np.isfinite(differences))
  if bad or not differences.size:
    why = f"{bad} of {differences.size} resamples have no AP (no object was drawn)"
    raise UserError(f"{why}; there is no interval, use more images")
  low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)
