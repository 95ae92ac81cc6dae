"""The losses that the IoU-balanced ones are compared with, each from its own paper's equations.

Unreduced, as in `iou_det.ops.losses`: masks, sums and normalisers are the caller's; weights have no gradient.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from iou_det.ops import losses


def balanced_l1(
  d: Float[Array, "*shape"], *, delta: float = 1.0, alpha: float = 0.5, gamma: float = 1.5
) -> Float[Array, "*shape"]:
  """Balanced L1 of Libra R-CNN, arXiv:1904.02701 Eq. (8)-(9): larger gradients for inliers than smooth L1.

      alpha / b (b x + 1) ln(b x + 1) - alpha x    where x < 1
      gamma x + C                                  elsewhere

  with alpha ln(b + 1) = gamma, the C that joins the two, and x = |d| / delta; all of it times delta, so that
  the slope is continuous and the same at every delta.

  Args:
    d: differences of box offsets.
    delta: where it turns linear, > 0; 1 in the paper.
    alpha: the smaller, the more inliers are promoted.
    gamma: slope of the linear part.
  """
  b = math.exp(gamma / alpha) - 1.0
  size = jnp.abs(d) / delta
  inner = jnp.minimum(size, 1.0)  # not `where`: the logarithm of what is not used could overflow
  curved = alpha / b * (b * inner + 1.0) * jnp.log1p(b * inner) - alpha * inner
  return delta * (curved + gamma * (size - inner))


def bounded_iou_loss(
  deltas: Float[Array, "*batch 4"],
  target_deltas: Float[Array, "*batch 4"],
  anchors: Float[Array, "*anchors 4"],
  target_boxes: Float[Array, "*batch 4"],
  *,
  beta: float = 0.2,
) -> Float[Array, "*batch 4"]:
  """Bounded IoU loss of arXiv:1711.00164 (Section 4): smooth L1 of 1 - IoU_B for cx, cy, w and h.

      IoU_B = max(0, (w_t - 2 |dx|) / (w_t + 2 |dx|))    centre, dx in pixels; likewise y
      IoU_B = min(w / w_t, w_t / w)                      size; likewise h

  It has 2 |dx| where Eq. (7) of arXiv:1908.05641, the bound for a box of the right size
  (`losses.bounded_iou_center`), has |dx|.

  Args:
    deltas, target_deltas: predicted and wanted box offsets from the anchors.
    anchors: x1, y1, x2, y2 in pixels; broadcast against the batch.
    target_boxes: x1, y1, x2, y2 in pixels.
    beta: 1 - IoU_B above which the loss is linear.
  """
  d = deltas - target_deltas
  anchor_size = anchors[..., 2:] - anchors[..., :2]
  target_size = target_boxes[..., 2:] - target_boxes[..., :2]
  shift = 2.0 * anchor_size * jnp.abs(d[..., :2])
  center = jnp.maximum((target_size - shift) / (target_size + shift), 0.0)
  bound = jnp.concatenate([center, losses.bounded_iou_size(d[..., 2:])], axis=-1)
  return losses.smooth_l1(1.0 - bound, delta=beta)


def authentic_smooth_l1(d: Float[Array, "*shape"], *, mu: float = 0.02) -> Float[Array, "*shape"]:
  """sqrt(d^2 + mu^2) - mu: the smooth L1 of GHM-R (arXiv:1811.05181), whose slope grows everywhere."""
  return jnp.sqrt(d * d + mu * mu) - mu


def gradient_harmonizing_weights(
  d: Float[Array, "*batch anchors 4"],
  positive: Bool[Array, "*batch anchors"],
  *,
  mu: float = 0.02,
  bins: int = 10,
) -> Float[Array, "*batch anchors 4"]:
  """Weights of GHM-R (arXiv:1811.05181): the more offsets have a similar gradient norm, the less each counts.

      g = |d| / sqrt(d^2 + mu^2)      gradient norm of the authentic smooth L1, in [0, 1)
      weight = N / (number of offsets in g's bin * number of bins in use)

  so that the weights of all N offsets of the positives add up to N, as in the authors' code. Counted anew in
  each batch, over all of it; the optional moving average over steps is not kept.

  Args:
    d: differences of box offsets.
    positive: which anchors have a ground truth.
    bins: unit regions of g.

  Returns:
    Weights with no gradient; 0 where not positive.
  """
  d = jax.lax.stop_gradient(d)
  g = jnp.abs(d) / jnp.sqrt(d * d + mu * mu)
  index = jnp.clip((g * bins).astype(jnp.int32), 0, bins - 1)
  counted = jnp.broadcast_to(positive[..., None], d.shape)
  count = jnp.zeros(bins).at[index].add(counted.astype(jnp.float32))
  used = jnp.maximum((count > 0).sum(), 1)
  return jnp.where(counted, count.sum() / (jnp.maximum(count, 1.0)[index] * used), 0.0)


def isr_weights(
  loss: Float[Array, "*batch anchors classes"],
  iou: Float[Array, "*batch anchors"],
  target: Bool[Array, "*batch anchors classes"],
  box_index: Int[Array, "*batch anchors"],
  *,
  gamma: float = 2.0,
  beta: float = 0.0,
) -> Float[Array, "*batch anchors classes"]:
  """Classification weights of PISA (arXiv:1904.04821): importance-based sample reweighting (ISR).

  Positives are ranked by IoU hierarchical local rank: first among those of their own ground truth; then, in a
  class, the best one of each ground truth by IoU, after them the second best, and so on. With the rank r
  counted from 0 in a class over the whole batch and n positives of the most frequent class,

      u = (n - r) / n,    w = ((1 - beta) u + beta)^gamma,    w' = w sum(loss) / sum(w loss)

  A one-stage detector's positives are its matched anchors, so the definition carries over as it is.

  Args:
    loss: unreduced classification loss, float32, >= 0.
    iou: of each decoded box with the ground truth it is matched to.
    target: one-hot class of the positives; all False for the others.
    box_index: which ground truth of its image each positive is matched to.
    gamma: exponent >= 0; 0 gives weights of 1.
    beta: weight's floor before the exponent.

  Returns:
    Weights with no gradient: w' on a positive's own class, 1 everywhere else.
  """
  classes = target.shape[-1]
  positive = target.any(axis=-1).reshape(-1)
  own = jax.lax.stop_gradient(jnp.sum(loss, axis=-1, where=target)).reshape(-1)
  falling = -jax.lax.stop_gradient(iou).reshape(-1)
  anchors = target.shape[-2]
  image = jnp.arange(positive.size) // anchors
  label = jnp.where(positive, jnp.argmax(target, axis=-1).reshape(-1), classes)
  local = _rank((jnp.where(positive, image, -1), box_index.reshape(-1)), falling)
  rank = _rank((label,), local, falling)
  most = jnp.zeros(classes).at[label].add(1.0, mode="drop").max()
  weight = ((1.0 - beta) * (most - rank) / jnp.maximum(most, 1.0) + beta) ** gamma
  weight = jnp.where(positive, weight, 0.0)
  before, after = own.sum(where=positive), jnp.sum(weight * own, where=positive)
  scale = before / jnp.maximum(after, jnp.finfo(own.dtype).tiny)
  return jnp.where(target, (weight * scale).reshape(target.shape[:-1])[..., None], 1.0)


def _rank(
  groups: tuple[Int[Array, " n"], ...], *keys: Float[Array, " n"] | Int[Array, " n"]
) -> Int[Array, " n"]:
  """Place of each element, from 0, among those equal in all `groups`, by rising keys (the first leads)."""
  order = jnp.lexsort((*keys[::-1], *groups[::-1]))
  place = jnp.arange(order.size)
  first = jnp.zeros(order.size, bool).at[0].set(True)
  for group in groups:
    in_order = group[order]
    first = first | jnp.concatenate([jnp.ones(1, bool), in_order[1:] != in_order[:-1]])
  start = jax.lax.cummax(jnp.where(first, place, 0))
  return jnp.zeros_like(place).at[order].set(place - start)
