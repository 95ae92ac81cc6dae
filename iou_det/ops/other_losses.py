"""What IoU-balanced losses are compared with, and the tables of the losses to choose from.

balanced_l1           Libra R-CNN, arXiv:1904.02701
bounded_iou_loss      Tychsen-Smith and Petersson, arXiv:1711.00164
giou_loss             Rezatofighi et al., arXiv:1902.09630
quality_focal_loss    Generalized focal loss, arXiv:2006.04388
varifocal_loss        VarifocalNet, arXiv:2008.13367
concordance_loss      Correlation loss, arXiv:2301.01019
isr_weights           PISA, arXiv:1904.04821
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from iou_det.ops import boxes as box_ops
from iou_det.ops.losses import sigmoid_focal_loss, smooth_l1, softplus_pair


def balanced_l1(
  d: Float[Array, "*shape"], *, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0
) -> Float[Array, "*shape"]:
  """Balanced L1 of Libra R-CNN, arXiv:1904.02701 Eq. (7)-(9), of d / beta, times beta.

      x = |d| / beta, alpha ln(b + 1) = gamma
      alpha / b (b x + 1) ln(b x + 1) - alpha x    where x < 1, else gamma x + C

  C makes it continuous, and its slope, alpha ln(b x + 1) up to `gamma`, is continuous too. mmdetection's is
  the same for a beta of 1 alone: with its RetinaNet's 0.11 the slope there is 4.05 at a d of 0, here 0.

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


def cross_entropy(logits: Float[Array, "*shape"], targets: Float[Array, "*#shape"]) -> Float[Array, "*shape"]:
  """Of a score with a target anywhere in [0, 1]: -t log(p) - (1 - t) log(1 - p)."""
  negative, positive = softplus_pair(logits)
  return targets * positive + (1.0 - targets) * negative


def quality_focal_loss(
  logits: Float[Array, "*shape"], quality: Float[Array, "*#shape"], *, beta: float = 2.0
) -> Float[Array, "*shape"]:
  """Quality focal loss, arXiv:2006.04388 Eq. (2): |t - p|^beta times the cross entropy of p with t.

  Args:
    quality: t, the IoU on the class of a positive, 0 elsewhere.
    beta: exponent, 1 or more (below, its slope at p = t is infinite).
  """
  return jnp.abs(quality - jax.nn.sigmoid(logits)) ** beta * cross_entropy(logits, quality)


def varifocal_loss(
  logits: Float[Array, "*shape"],
  positive: Bool[Array, "*#shape"],
  quality: Float[Array, "*#shape"],
  *,
  alpha: float = 0.75,
  gamma: float = 2.0,
  weighted: bool = True,
) -> Float[Array, "*shape"]:
  """Varifocal loss, arXiv:2008.13367 Eq. (2): the cross entropy of p with q, times

      q    on the class of a positive (1 where not `weighted`)
      alpha p^gamma    everywhere else

  (A positive whose q is exactly 0 is left out; Eq. (2) takes it as a negative.)

  Args:
    positive: whether it is the class of a positive.
    quality: q, the IoU there; read nowhere else.
  """
  quality = jnp.where(positive, quality, 0.0)
  p_gamma = jnp.exp(-gamma * softplus_pair(logits)[1])
  weight = jnp.where(positive, quality if weighted else 1.0, alpha * p_gamma)
  return weight * cross_entropy(logits, quality)


def concordance_loss(
  scores: Float[Array, "*shape"], iou: Float[Array, "*shape"], positive: Bool[Array, "*shape"]
) -> Float[Array, ""]:
  """1 - the concordance correlation of the positives' scores and IoUs: arXiv:2301.01019 with Lin's
  coefficient (Biometrics 45, 1989), which asks for equality, not for an order, so that nothing is sorted.

      ccc = 2 cov(s, u) / (var(s) + var(u) + (mean(s) - mean(u))^2)

  In [0, 2]; 0 for fewer than two positives. No gradient flows to the boxes, as in the authors' code, whose
  RetinaNet has Spearman's coefficient, by pyramid level; a weight of 0.2 for concordance is their ATSS's.
  """
  iou = jax.lax.stop_gradient(iou)
  count = jnp.maximum(positive.sum(), 1)
  mean = lambda x: jnp.sum(x, where=positive) / count
  s, u = scores - mean(scores), iou - mean(iou)
  spread = mean(s * s) + mean(u * u) + (mean(scores) - mean(iou)) ** 2
  known = (positive.sum() > 1) & (spread > 0.0)  # without any spread both are one number: nothing is wrong
  return jnp.where(known, 1.0 - 2.0 * mean(s * u) / jnp.where(known, spread, 1.0), 0.0)


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
}
CLASSIFICATION: dict[str, Callable[[Array, Array, Array, Any], Float[Array, "..."]]] = {
  "focal": lambda logits, target, iou, loss: sigmoid_focal_loss(
    logits, target.astype(logits.dtype), alpha=loss.alpha, gamma=loss.gamma
  ),
  "quality_focal": lambda logits, target, iou, loss: quality_focal_loss(
    logits, jnp.where(target, iou, 0.0), beta=loss.gamma
  ),
  "varifocal": lambda logits, target, iou, loss: varifocal_loss(
    logits, target, iou, alpha=loss.alpha, gamma=loss.gamma
  ),
  "varifocal_unweighted": lambda logits, target, iou, loss: varifocal_loss(
    logits, target, iou, alpha=loss.alpha, gamma=loss.gamma, weighted=False
  ),
}
