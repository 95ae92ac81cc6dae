"""Non-maximum suppression with a fixed output size, inside jit: no data-dependent shape, no sorting."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from iou_det.ops.boxes import pairwise_iou


class Kept(NamedTuple):
  """What NMS kept, by falling score; rows that are not `valid` have box, label and score 0."""

  box: Int[Array, " max"]
  label: Int[Array, " max"]
  score: Float[Array, " max"]
  valid: Bool[Array, " max"]


def nms(
  boxes: Float[Array, "n 4"],
  scores: Float[Array, "n classes"],
  *,
  iou_threshold: float,
  score_threshold: float,
  max_detections: int,
) -> Kept:
  """Greedy NMS of each class over all (box, class) pairs, then the best `max_detections` of all classes.

  Exact: equal to sorting each class by score, dropping every box whose IoU with a kept, better one of the
  same class exceeds `iou_threshold`, and sorting what all classes kept. Equal scores: the lower box index,
  then the lower class, comes first. A pair with a NaN score never enters. One example; vmap over a batch.

  Only pairs with a score above `score_threshold` take part; without boxes, classes or detections: ValueError.
  """
  suppress = lambda row, overlap: jnp.where(overlap > iou_threshold, -jnp.inf, row)
  return _greedy(boxes, scores, suppress, score_threshold, max_detections)


def soft_nms(
  boxes: Float[Array, "n 4"],
  scores: Float[Array, "n classes"],
  *,
  method: str,
  score_threshold: float,
  max_detections: int,
  iou_threshold: float = 0.5,
  sigma: float = 0.5,
) -> Kept:
  """Soft-NMS (Bodla et al., arXiv:1704.04503): overlapping boxes lose score instead of being dropped.

      linear    s <- s * (1 - IoU)  if IoU > iou_threshold     Eq. (2) there
      gaussian  s <- s * exp(-IoU^2 / sigma)                   Eq. (3) there

  after every pick, for the remaining boxes of the picked class. The score returned is the decayed one; a
  pair is out as soon as its score is not above `score_threshold`. Otherwise as `nms`.

  Args:
    scores: >= 0.
    method: "linear" or "gaussian"; it alone uses `iou_threshold` or `sigma`.
  """
  if method not in ("linear", "gaussian"):
    raise ValueError(f"soft-NMS method {method!r} is not known; use 'linear' or 'gaussian'")
  if score_threshold < 0:
    raise ValueError(f"soft-NMS needs a score threshold >= 0, got {score_threshold}")

  def decay(row, overlap):
    if method == "linear":
      weight = jnp.where(overlap > iou_threshold, 1.0 - overlap, 1.0)
    else:
      weight = jnp.exp(-(overlap**2) / sigma)
    decayed = jnp.where(row > score_threshold, row, 0.0) * weight  # never -inf * 0
    return jnp.where(decayed > score_threshold, decayed, -jnp.inf)

  return _greedy(boxes, scores, decay, score_threshold, max_detections)


def _greedy(
  boxes: Float[Array, "n 4"],
  scores: Float[Array, "n classes"],
  lower: Callable[[Array, Array], Array],
  score_threshold: float,
  max_detections: int,
) -> Kept:
  """`max_detections` times: take the best remaining pair, then lower the other scores of its class.

  A pick changes one class only, so the best box of every class is carried along and only the picked class
  looks for a new one: O(n + classes) a step instead of O(n * classes).

  Args:
    lower: (scores of the class [n], their IoU with the picked box [n]) -> new scores, -inf for dropped.
  """
  n, classes = scores.shape
  if math.prod(scores.shape) == 0 or max_detections < 1:
    raise ValueError(
      f"NMS needs at least 1 box, 1 class and 1 detection, got {n}, {classes} and {max_detections}"
    )
  remaining = jnp.where(scores > score_threshold, scores, -jnp.inf).T  # [classes, n]: a class is contiguous
  class_ids = jnp.arange(classes)

  def pick(carry, _):
    remaining, best, best_box = carry
    # Of the classes that share the best score, the one whose best box comes first.
    label = jnp.argmin(jnp.where(best == jnp.max(best), best_box * classes + class_ids, n * classes))
    box, score = best_box[label], best[label]
    row = lower(remaining[label], pairwise_iou(boxes[box][None], boxes)[0]).at[box].set(-jnp.inf)
    carry = (
      remaining.at[label].set(row),
      best.at[label].set(jnp.max(row)),
      best_box.at[label].set(jnp.argmax(row)),
    )
    return carry, (box, label, score)

  carry = (remaining, jnp.max(remaining, axis=1), jnp.argmax(remaining, axis=1))
  _, (index, label, score) = jax.lax.scan(pick, carry, length=max_detections)
  valid = score > -jnp.inf
  return Kept(jnp.where(valid, index, 0), jnp.where(valid, label, 0), jnp.where(valid, score, 0.0), valid)
