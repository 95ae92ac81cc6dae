"""Which ground truth each anchor has to find: the assignment of RetinaNet in mmdetection 0.6."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from iou_det.ops.boxes import pairwise_iou

# Anchors whose IoU is within this share of the best count as tied with it. Equal IoUs may come out some
# roundings apart (a compiler may compute them twice, in different ways), and no anchor might equal the best.
TIE = 1e-6


class Match(NamedTuple):
  """Each anchor is positive, ignored, or (neither) negative."""

  index: Int[Array, " anchors"]  # type: ignore[assignment]  # positive's ground truth, 0 for the others
  positive: Bool[Array, " anchors"]
  ignored: Bool[Array, " anchors"]


def match(
  anchors: Float[Array, "anchors 4"],
  boxes: Float[Array, "boxes 4"],
  valid: Bool[Array, " boxes"],
  inside: Bool[Array, " anchors"] | None = None,
  *,
  positive_iou: float = 0.5,
  negative_iou: float = 0.4,
  force_match: bool = True,
  min_forced_iou: float = 0.0,
  forced_target: str = "box",
) -> Match:
  """Assigns anchors to ground truths by IoU.

  An anchor takes the ground truth with which it has the highest IoU (the first of equals) if that is
  at least `positive_iou`; it is negative below `negative_iou` and ignored between. With `force_match`
  every ground truth then takes all anchors that are tied at its own best IoU; where two want the same
  anchor the later one gets it. A ground truth that no anchor touches takes nothing.

  Use `jax.vmap` for a batch.

  Args:
    boxes: ground truth.
    valid: False for rows that are padding: these match nothing.
    inside: False for anchors that match nothing; None: all may.
    positive_iou: lowest IoU of a positive, > 0.
    negative_iou: lowest IoU of an ignored anchor, <= positive_iou.
    force_match: whether ground truths take their best anchors below `positive_iou` as well.
    min_forced_iou: lowest best IoU at which a ground truth does so.
    forced_target: "box": what an anchor taken so has to find is the ground truth that took it; "best": the
      one with which its own IoU is highest, as in torchvision (whose ground truth that no anchor touches
      makes every anchor positive: here it takes nothing either way).
  """
  if boxes.shape[0] == 0:  # argmax over no boxes is an error
    none = jnp.zeros(anchors.shape[0], bool)
    return Match(index=none.astype(jnp.int32), positive=none, ignored=none)

  def pairs(boxes, valid, inside):  # [boxes, anchors]
    iou = pairwise_iou(boxes, anchors)
    if inside is not None:
      iou = jnp.where(inside, iou, 0.0)
    return jnp.where(valid[:, None], iou, -1.0)

  # IoUs take less time to compute than to read. Each of three reductions computes its own, and no [boxes,
  # anchors] is in memory: behind the barriers a compiler does not see that they are the same.
  iou = pairs(boxes, valid, inside)
  best_of_anchor = iou.max(axis=0)
  index = iou.argmax(axis=0).astype(jnp.int32)
  positive = best_of_anchor >= positive_iou
  if force_match:
    again = jax.lax.optimization_barrier((boxes, valid, inside))
    best_of_box = pairs(*again).max(axis=1)
    forces = (best_of_box > 0) & (best_of_box >= min_forced_iou)
    *again, best_of_box = jax.lax.optimization_barrier((*again, best_of_box))
    tied = forces[:, None] & (pairs(*again) >= best_of_box[:, None] * (1 - TIE))
    number = jnp.arange(boxes.shape[0], dtype=jnp.int32)[:, None]
    last = jnp.where(tied, number, -1).max(axis=0)
    if forced_target == "box":
      index = jnp.where(last >= 0, last, index)
    positive = positive | (last >= 0)
  return Match(
    index=jnp.where(positive, index, 0),
    positive=positive,
    ignored=~positive & (best_of_anchor >= negative_iou),
  )
