"""SGD as mmdetection 0.6 runs it: warm-up, drops (or cosine), clipping, weight decay on all that trains."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict


def learning_rate(
  train: ConfigDict, steps_per_epoch: int
) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
  """Learning rate at a step.

  The peak is `learning_rate * batch_size / 16`. During the first `warmup_steps` it is multiplied by a
  line from `warmup_factor` to 1; then it drops by `decay_factor` after each of `decay_epochs`, or follows
  half a cosine down to 0.
  """
  peak = train.learning_rate * train.batch_size / 16
  total = round(train.epochs * steps_per_epoch)
  if train.schedule == "cosine":
    after_warmup = optax.cosine_decay_schedule(peak, total)
  else:
    drops = {round(epoch * steps_per_epoch): train.decay_factor for epoch in train.decay_epochs}
    after_warmup = optax.piecewise_constant_schedule(peak, drops)

  def schedule(step):
    fraction = jnp.minimum(step / max(train.warmup_steps, 1), 1.0)
    return after_warmup(step) * (train.warmup_factor + (1 - train.warmup_factor) * fraction)

  def without_warmup(step):
    return jnp.asarray(after_warmup(step))

  return schedule if train.warmup_steps else without_warmup


def make_optimizer(
  train: ConfigDict, steps_per_epoch: int, trainable: PyTree[bool]
) -> optax.GradientTransformation:
  """Clip by the global norm, decay, momentum; frozen parameters (False in `trainable`) never move."""
  sgd = optax.chain(
    optax.clip_by_global_norm(train.clip_norm),
    optax.add_decayed_weights(train.weight_decay),
    optax.sgd(learning_rate(train, steps_per_epoch), momentum=train.momentum),
  )
  labels = jax.tree.map(lambda t: "train" if t else "frozen", trainable)
  return optax.multi_transform({"train": sgd, "frozen": optax.set_to_zero()}, labels)
