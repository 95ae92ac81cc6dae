"""The methods that arXiv:1908.05641 sets itself against, and the tables of the losses to choose from.

balanced_l1                                          Libra R-CNN, arXiv:1904.02701
bounded_iou_loss                                     Tychsen-Smith and Petersson, arXiv:1711.00164
giou_loss                                            Rezatofighi et al., arXiv:1902.09630
authentic_smooth_l1, gradient_harmonizing_weights    GHM-R, arXiv:1811.05181
isr_weights                                          PISA, arXiv:1904.04821
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from iou_det.ops import boxes as box_ops
from iou_det.ops.losses import sigmoid_focal_loss, smooth_l1


def balanced_l1(
  d: Float[Array, "*shape"], *, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0
) -> Float[Array, "*shape"]:
  """Balanced L1 of Libra R-CNN, arXiv:1904.02701 Eq. (7)-(9), of d / beta, times beta.

      x = |d| / beta, alpha ln(b + 1) = gamma
      alpha / b (b x + 1) ln(b x + 1) - alpha x    where x < 1, else gamma x + C

  C makes it continuous, and its slope, alpha ln(b x + 1) up to `gamma`, is continuous too. (mmdetection's is
  the same for a beta of 1 alone.)

  Args:
    d: differences of box offsets.
    alpha: > 0; the smaller, the larger the slope of small differences.
    beta: where it turns linear, > 0; the paper has 1 and no name for it.
  """
  b = math.expm1(gamma / alpha)
  size = jnp.abs(d)
  inner = jnp.minimum(size, beta)  # not `where`, whose gradient is NaN where d is infinite
  x = inner / beta
  curve = alpha / b * (b * x + 1.0) * jnp.log1p(b * x) - alpha * x
  return beta * curve + gamma * (size - inner)


def bounded_iou_loss(
  deltas: Float[Array, "*batch 4"], target_deltas: Float[Array, "*batch 4"], *, beta: float = 1.0
) -> Float[Array, "*batch 4"]:
  """Bounded IoU loss of each offset, arXiv:1711.00164 Eq. (10)-(12): 2 L(1 - IoU_B), L the smooth L1.

      IoU_B(x) = max(0, (w_t - 2 |dx|) / (w_t + 2 |dx|))    IoU_B(w) = min(w / w_t, w_t / w)

  and the same for y and h. Offsets are all it needs: |dx| / w_t is the error of the offset times
  anchor width / w_t, which is e^-(target dw), and min(w / w_t, w_t / w) is e^-|error of dw|. Eq. (7) of
  arXiv:1908.05641 has |dx| for 2 |dx|: here a centre that is off by w_t / 2 has no gradient, there by w_t.

  Args:
    deltas, target_deltas: predicted, unclamped; and of the ground truth. Infinite ones give finite gradients.
    beta: where the smooth L1 turns linear, > 0. The paper's is 1, which makes the loss (1 - IoU_B)^2
      (mmdetection: 0.2, and half this loss).

  Returns:
    Loss of x, y, w, h, each in [0, 2 - beta] for a beta up to 1.
  """
  error = jnp.abs(deltas - target_deltas)
  # An empty ground truth (dw of -inf) is for the caller to mask: its gradient must not be inf * 0.
  relative = jnp.exp(jnp.clip(-target_deltas[..., 2:], -80.0, 80.0))
  shift = jnp.minimum(2.0 * error[..., :2] * relative, 1.0)  # 2 |dx| / w_t; more is an IoU_B of 0
  cost = jnp.concatenate([2.0 * shift / (1.0 + shift), -jnp.expm1(-error[..., 2:])], axis=-1)
  return 2.0 * smooth_l1(cost, delta=beta)


def giou_loss(
  boxes: Float[Array, "*batch 4"], target_boxes: Float[Array, "*batch 4"]
) -> Float[Array, "*batch"]:
  """1 - GIoU of boxes with their targets, arXiv:1902.09630 Algorithm 2.

      1 - GIoU = (1 - IoU) + (hull - union) / hull    hull: the smallest box around both

  Args:
    boxes, target_boxes: x1, y1, x2, y2 in pixels. Where the hull has no area its term is 0: the loss of two
      points is 1, and its gradient finite.

  Returns:
    Loss in [0, 2): 0 where the boxes are the same, above 1 where they are apart.
  """
  iou = box_ops.iou(boxes, target_boxes)
  union = (box_ops.area(boxes) + box_ops.area(target_boxes)) / (1.0 + iou)  # overlap + union over its IoU + 1
  low = jnp.minimum(boxes[..., :2], target_boxes[..., :2])
  high = jnp.maximum(boxes[..., 2:], target_boxes[..., 2:])
  hull = box_ops.area(jnp.concatenate([low, high], axis=-1))
  # The inner `where` keeps 0/0 out of the gradient, the outer one out of the value.
  apart = jnp.where(hull > 0, 1.0 - union / jnp.where(hull > 0, hull, 1.0), 0.0)
  return 1.0 - iou + apart


def authentic_smooth_l1(d: Float[Array, "*shape"], *, mu: float = 0.02) -> Float[Array, "*shape"]:
  """Authentic smooth L1, arXiv:1811.05181 Section "GHM-R": sqrt(d^2 + mu^2) - mu.

  Its slope d / sqrt(d^2 + mu^2) tells large differences apart, which smooth L1's (1 for all) does not.
  """
  size = jnp.abs(d)
  inner = jnp.minimum(size, 1e4 * mu)  # beyond, the slope is 1 in float32 and the square may overflow
  # As a quotient, because the difference of two roots near mu would keep few digits.
  return inner * inner / (jnp.sqrt(inner * inner + mu * mu) + mu) + (size - inner)


def gradient_harmonizing_weights(
  d: Float[Array, "*batch anchors 4"],
  positive: Bool[Array, "*batch anchors"],
  *,
  mu: float = 0.02,
  bins: int = 10,
) -> Float[Array, "*batch anchors 4"]:
  """Weights of GHM-R, arXiv:1811.05181: N / GD(g), to be multiplied with `authentic_smooth_l1`.

  g = |d| / sqrt(d^2 + mu^2) in [0, 1) is the gradient norm. Its density GD(g) is taken by unit regions,
  Eq. (9)-(10): `bins` times the number of the examples whose g lies in the same of `bins` equal parts of
  [0, 1]. An example is one of a positive's 4 offsets, and N is their number. Evenly spread gradients give
  weights of 1; every part that is not empty gets the same total, N / bins. (The authors' code divides by
  the number of parts that are not empty instead of `bins`.) The counts are this batch's, without the moving
  average over steps that the paper adds. Weights are 0 where not positive.

  Args:
    d: differences of box offsets.
    mu: that of the loss, > 0.
    bins: number of unit regions, >= 1; the paper calls it M.
  """
  counted = jnp.broadcast_to(positive[..., None], d.shape)
  size = jnp.where(counted, jnp.abs(d), 0.0)
  norm = 1.0 / jnp.sqrt(1.0 + (mu / size) ** 2)  # exact at 0 and at infinity
  # A norm of 1 belongs to the last part. From here on all are integers, so no gradient gets through.
  part = jnp.clip((norm * bins).astype(jnp.int32), 0, bins - 1)
  examples = counted[..., None] & (part[..., None] == jnp.arange(bins))
  count = examples.sum(axis=tuple(range(d.ndim)))
  density = bins * count[part].astype(d.dtype)
  return jnp.where(counted, counted.sum() / jnp.maximum(density, 1.0), 0.0)


def isr_weights(
  loss: Float[Array, "*batch anchors"],
  iou: Float[Array, "*batch anchors"],
  labels: Int[Array, "*batch anchors"],
  box_index: Int[Array, "*batch anchors"],
  *,
  gamma: float = 2.0,
  beta: float = 0.0,
) -> Float[Array, "*batch anchors"]:
  """Classification weights of PISA's importance-based sample reweighting, arXiv:1904.04821 Eq. (1)-(3).

      u = (n_max - r) / n_max
      w = ((1 - beta) u + beta)^gamma
      w' = w * sum(loss) / sum(w * loss)    on a positive's own class; 1 where not positive

  r = 0, 1, ... is the positive's IoU hierarchical local rank in its class: positives of each ground truth are
  ranked by IoU, then those of a class by that local rank and, among equals, by IoU; so the best positive of
  every ground truth comes before the second best of any. Equal IoUs: the earlier image, ground truth, anchor
  first. n_max is the number of positives of the class that has most. The paper weighs each sample's one cross
  entropy; here, to compare with Eq. (1) of arXiv:1908.05641, the loss on the positive's own class.

  Args:
    loss: classification loss of each positive's own class, >= 0; any value elsewhere.
    iou: of each decoded box with the ground truth it is matched to.
    labels: class of the positives, -1 elsewhere.
    box_index: ground truth of each positive, counted within its image.
    gamma: exponent >= 0; 0 gives the unweighted baseline, as a `beta` (smallest importance) of 1 does.
  """
  loss, iou = jax.lax.stop_gradient((loss, iou))
  positive = labels >= 0
  rank = jnp.where(positive, _hierarchical_local_rank(iou, labels, box_index), 0)
  most = rank.max() + 1
  importance = (most - rank) / most
  raw = ((1.0 - beta) * importance + beta) ** gamma
  own = jnp.where(positive, loss, 0.0)
  before, after = own.sum(), (raw * own).sum()
  kept = after >= jnp.finfo(loss.dtype).tiny  # else there is no loss whose sum could be kept
  weights = raw * jnp.where(kept, before / jnp.where(kept, after, 1.0), 1.0)
  return jnp.where(positive, weights, 1.0)


def _hierarchical_local_rank(
  iou: Float[Array, "*batch anchors"],
  labels: Int[Array, "*batch anchors"],
  box_index: Int[Array, "*batch anchors"],
) -> Int[Array, "*batch anchors"]:
  """IoU-HLR of each positive within its class over the batch, from 0; not meaningful elsewhere."""
  total = iou.size
  # Anchors that are not positive form a ground truth and a class of their own, before all others.
  box = jnp.where(labels >= 0, box_index, -1).reshape(-1)
  label = labels.reshape(-1)
  image = jnp.arange(total) // iou.shape[-1]
  falling = -iou.reshape(-1)

  by_box = jnp.lexsort((falling, box, image))  # the last key is the first to compare
  image, box, label, falling = image[by_box], box[by_box], label[by_box], falling[by_box]
  local_rank = _place_in_run(image, box)

  by_class = jnp.lexsort((falling, local_rank, label))
  rank = _place_in_run(label[by_class])
  return jnp.zeros(total, rank.dtype).at[by_box[by_class]].set(rank).reshape(iou.shape)


def _place_in_run(*keys: Int[Array, " n"]) -> Int[Array, " n"]:
  """How many entries before each one have the same keys without interruption."""
  place = jnp.arange(keys[0].shape[0])
  same = jnp.ones(place.shape[0] - 1, bool)
  for key in keys:
    same &= key[1:] == key[:-1]
  starts = jnp.concatenate([jnp.zeros(1, bool), same])
  return place - jax.lax.cummax(jnp.where(starts, 0, place))


class BoxPairs(NamedTuple):
  """Predicted boxes beside their ground truths: what a localization loss may need.

  Where not `positive` an anchor is its own ground truth, so that loss and gradient are finite there too.
  """

  deltas: Float[Array, "batch anchors 4"]
  target_deltas: Float[Array, "batch anchors 4"]
  boxes: Float[Array, "batch anchors 4"]  # decoded, with their gradient
  target_boxes: Float[Array, "batch anchors 4"]
  positive: Bool[Array, "batch anchors"]

  @property
  def errors(self) -> Float[Array, "batch anchors 4"]:
    return self.deltas - self.target_deltas


# The losses to choose from, by their names in the config. `loss` is its section `loss`: a loss takes its
# numbers from there. Classification losses are elementwise: they take logits, whether their classes are the
# targets, and the IoU of the decoded boxes, the last two of shapes that broadcast to that of the logits.
LOCALIZATION: dict[str, Callable[[BoxPairs, Any], Float[Array, "batch anchors"]]] = {
  "smooth_l1": lambda pairs, loss: smooth_l1(pairs.errors, delta=loss.delta).sum(axis=-1),
  "l1": lambda pairs, loss: jnp.abs(pairs.errors).sum(axis=-1),  # torchvision's
  "giou": lambda pairs, loss: giou_loss(pairs.boxes, pairs.target_boxes),
  "balanced_l1": lambda pairs, loss: balanced_l1(pairs.errors, beta=loss.delta).sum(axis=-1),
  "bounded_iou": lambda pairs, loss: bounded_iou_loss(pairs.deltas, pairs.target_deltas).sum(axis=-1),
  "ghm_r": lambda pairs, loss: (
    authentic_smooth_l1(pairs.errors) * gradient_harmonizing_weights(pairs.errors, pairs.positive)
  ).sum(axis=-1),
}
CLASSIFICATION: dict[str, Callable[[Array, Array, Array, Any], Float[Array, "..."]]] = {
  "focal": lambda logits, target, iou, loss: sigmoid_focal_loss(
    logits, target.astype(logits.dtype), alpha=loss.alpha, gamma=loss.gamma
  ),
}
