"""Losses of RetinaNet and the IoU-balanced weights of arXiv:1908.05641."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def sigmoid_focal_loss(
  logits: Float[Array, "*shape"], targets: Float[Array, "*#shape"], *, alpha: float = 0.25, gamma: float = 2.0
) -> Float[Array, "*shape"]:
  """Focal loss on sigmoid scores, arXiv:1708.02002 Eq. (5): -alpha_t (1 - p_t)^gamma log(p_t).

  Args:
    targets: 1 for the class of a positive, 0 elsewhere; nothing between.
    alpha: weight of the targets that are 1; the others weigh 1 - alpha.
    gamma: exponent >= 0; 0 gives the weighted cross entropy.
  """
  softplus, cross_entropy = softplus_pair(logits * (2.0 * targets - 1.0))  # of z with p_t = sigmoid(z)
  alpha_t = alpha * targets + (1.0 - alpha) * (1.0 - targets)
  # (1 - p_t)^gamma as exp(-gamma log(1 + e^z)) has a finite slope for every gamma and logit.
  return alpha_t * jnp.exp(-gamma * softplus) * cross_entropy


def softplus_pair(z: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
  """log(1 + e^z) and log(1 + e^-z), which are -log(1 - p) and -log(p) of p = sigmoid(z).

  From one exponential that cannot overflow. By `where`, not by abs and maximum: their slopes at 0 do not add
  up to the loss's.
  """
  right = z >= 0.0
  tail = jnp.log1p(jnp.exp(-jnp.where(right, z, -z)))
  return jnp.where(right, z, 0.0) + tail, jnp.where(right, 0.0, -z) + tail


def smooth_l1(d: Float[Array, "*shape"], *, delta: float) -> Float[Array, "*shape"]:
  """d^2 / (2 delta) where |d| <= delta, else |d| - delta / 2: the smooth L1 of Eq. (3).

  Args:
    d: differences of box offsets.
    delta: where it turns linear, > 0; the paper's is 0.111 (0.11 in its code).
  """
  size = jnp.abs(d)
  inner = jnp.minimum(size, delta)  # not `where` on d^2, whose gradient is NaN where d is infinite
  return inner * inner / (2.0 * delta) + (size - inner)


def iou_balanced_classification_weights(
  loss: Float[Array, "*batch anchors classes"],
  iou: Float[Array, "*batch anchors"],
  target: Bool[Array, "*batch anchors classes"],
  *,
  eta: float,
  level_sizes: tuple[int, ...] | None = None,
) -> Float[Array, "*batch anchors classes"]:
  """Weights of the IoU-balanced classification loss, Eq. (1)-(2).

      w = iou^eta * sum(loss) / sum(iou^eta * loss)    on a positive's own class
      w = 1                                            everywhere else

  Both sums run over the positives of the whole batch (without any, all weights are 1); the authors' code sums
  per level and GPU.

  Args:
    loss: classification loss, >= 0.
    iou: in [0, 1], of each decoded box with the ground truth it is matched to.
    target: one-hot class of the positives; all False for negatives and ignored anchors.
    eta: exponent >= 0; 0 gives the unweighted baseline.
    level_sizes: anchors per pyramid level: the sums run over each level by itself; None: over all.
  """
  own = jnp.sum(loss, axis=-1, where=target)
  positive = target.any(axis=-1)
  weights = normalized_localization_weights(own, iou, positive, lambd=eta, level_sizes=level_sizes)
  return jnp.where(target, weights[..., None], 1.0)


def iou_balanced_localization_weights(
  iou: Float[Array, "*shape"], *, lambd: float, w_loc: float
) -> Float[Array, "*shape"]:
  """Weights of the IoU-balanced localization loss, Eq. (4): w_loc * iou^lambda.

  Args:
    iou: of each decoded box with the ground truth it is matched to.
    lambd: exponent >= 0; 0 gives the unweighted baseline.
    w_loc: factor that keeps the loss sum of the first step; 1 for lambda 0.
  """
  return w_loc * jax.lax.stop_gradient(iou) ** lambd


def normalized_localization_weights(
  loss: Float[Array, "*batch anchors"],
  iou: Float[Array, "*batch anchors"],
  positive: Bool[Array, "*batch anchors"],
  *,
  lambd: float,
  level_sizes: tuple[int, ...] | None = None,
) -> Float[Array, "*batch anchors"]:
  """Localization weights that keep the positives' loss sum, Eq. (5): Eq. (2) with the localization loss.

  Training takes it for Eq. (2) too, with the classification losses of the positives' own classes.

  Args:
    loss: of each anchor, summed over its 4 offsets, >= 0.
    iou, lambd, level_sizes: as above, with `lambd` for `eta`.
    positive: which anchors have a ground truth; the others get 0.
  """
  scale = normalizer(loss, iou, positive, exponent=lambd, level_sizes=level_sizes)
  raw = jnp.where(positive, jax.lax.stop_gradient(iou) ** lambd, 0.0)
  # Not `repeat`, whose running sum over the anchors takes a compiler seconds to fold into a constant.
  sizes = level_sizes or (loss.shape[-1],)
  return raw * jnp.concatenate([jnp.full(n, factor) for n, factor in zip(sizes, scale, strict=True)])


def normalizer(
  loss: Float[Array, "*batch anchors"],
  iou: Float[Array, "*batch anchors"],
  positive: Bool[Array, "*batch anchors"],
  *,
  exponent: float,
  level_sizes: tuple[int, ...] | None = None,
) -> Float[Array, " levels"]:
  """The factor of Eq. (2) and (5): sum(loss) / sum(iou^exponent * loss) over the positives; 0 without a loss.

  Raises:
    ValueError: `level_sizes` do not add up to the number of anchors.
  """
  anchors = loss.shape[-1]
  if level_sizes is None:
    level_sizes = (anchors,)
  if sum(level_sizes) != anchors:
    total = sum(level_sizes)
    raise ValueError(f"level sizes {level_sizes} add up to {total}, but there are {anchors} anchors")
  loss, iou = jax.lax.stop_gradient((loss, iou))  # before the power: its slope at 0 is infinite below 1
  loss = jnp.where(positive, loss, 0.0)
  raw = jnp.where(positive, iou**exponent, 0.0)
  batch = tuple(range(loss.ndim - 1))
  ends = [sum(level_sizes[: level + 1]) for level in range(len(level_sizes) - 1)]
  before = jnp.stack([part.sum() for part in jnp.split(loss.sum(batch), ends)])
  after = jnp.stack([part.sum() for part in jnp.split((raw * loss).sum(batch), ends)])
  # The floor is a share of the loss, not a constant, so that a small loss is re-weighted as a large one
  # is. It only acts where every IoU is next to 0: the weights then fall to 0 instead of dividing by 0.
  floor = jnp.maximum(1e-6 * before, jnp.finfo(loss.dtype).tiny)
  return before / jnp.maximum(after, floor)
