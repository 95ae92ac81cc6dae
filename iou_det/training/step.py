"""One training step: preprocess, forward, match, IoU-balanced losses, update. All of it in one jit."""

import dataclasses
from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import optax
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from iou_det.data.source import Category
from iou_det.detector import forward, network_inputs
from iou_det.models.retinanet import RetinaNet, trainable_mask
from iou_det.parallel import replicated, split_batch, split_state
from iou_det.training.losses import detection_losses, loss_terms, make_targets
from iou_det.weights.pretrained import load_pretrained
from iou_det.weights.start import start_from_detector


@flax.struct.dataclass
class TrainState:
  """What a step changes (step, params, opt_state) and the norm statistics, which stay constant.

  Leaves are arrays, or what stands for them (shapes, shardings), so their types are not checked.
  """

  step: PyTree  # int32 scalar
  params: PyTree
  batch_stats: PyTree
  opt_state: PyTree

  @property
  def variables(self) -> PyTree:
    """What the network is applied with."""
    return {"params": self.params, "batch_stats": self.batch_stats}


def learning_rate(
  train: ConfigDict, steps_per_epoch: int
) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
  """Learning rate at a step: of a peak of `learning_rate * batch_size / 16`.

  During the first `warmup_steps` it is multiplied by a line from `warmup_factor` to 1; it drops by
  `decay_factor` after each of `decay_epochs`, or follows half a cosine down to 0.
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


def create_state(
  config: ConfigDict,
  model: RetinaNet,
  steps_per_epoch: int,
  mesh: Mesh,
  categories: Sequence[Category] | None,
) -> tuple[TrainState, optax.GradientTransformation]:
  """A fresh state on the mesh.

  Parameters come first (random, then read); what is derived from them, the optimizer's state, last.

  Args:
    categories: of the data: with the detector or backbone that the config names to start from; None: random.
  """
  images = jnp.zeros((1, 64, 64, 3))  # parameters do not depend on the size; a small one keeps tracing cheap
  init = lambda key: {"batch_stats": {}, **model.init(key, images)}
  # Whole on each device and only then split: to compile random numbers for a split state takes twice as long.
  variables = jax.jit(init, out_shardings=replicated(mesh))(jax.random.key(config.seed))
  if config.model.frozen_stages >= 0 and not config.model.pretrained and not config.model.init:
    logging.warning(
      f"model.pretrained is empty and model.frozen_stages is {config.model.frozen_stages}: the frozen layers "
      "stay random; to train from scratch set model.norm=gn and model.frozen_stages=-1"
    )
  if categories and config.model.init:
    variables = start_from_detector(config, categories, variables, mesh)
  elif categories and config.model.pretrained:
    variables = load_pretrained(config.model, variables)
  variables = jax.device_put(variables, split_state(mesh, variables))
  trainable = trainable_mask(variables["params"], config.model)
  optimizer = make_optimizer(config.train, steps_per_epoch, trainable)
  make = lambda variables: TrainState(
    step=jnp.zeros((), jnp.int32), **variables, opt_state=optimizer.init(variables["params"])
  )
  shardings = split_state(mesh, jax.eval_shape(make, variables))
  return jax.jit(make, out_shardings=shardings)(variables), optimizer


def make_train_step(
  config: ConfigDict,
  model: RetinaNet,
  optimizer: optax.GradientTransformation,
  steps_per_epoch: int,
  mesh: Mesh,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
  """The jitted step: `step(state, batch, portrait) -> state, metrics`; the old state is donated.

  `batch` is what `iou_det.data.pipeline` yields, split over the mesh; it is compiled once for
  landscape and once for portrait batches.
  """
  schedule = learning_rate(config.train, steps_per_epoch)

  def step(state: TrainState, batch: dict[str, Array], portrait: bool) -> tuple[TrainState, dict[str, Array]]:
    inputs, anchors, level_sizes = network_inputs(config, batch, portrait, train=True)
    targets = make_targets(config, inputs, anchors, level_sizes, portrait)

    def loss_fn(params):
      logits, deltas = forward(model, state.variables | {"params": params}, inputs.images, mesh)
      out = detection_losses(loss_terms(logits, deltas, targets, config), config.loss.average)
      return out.classification + out.localization, out

    (total, out), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    metrics = {
      "loss": total,
      "loss_classification": out.classification,
      "loss_localization": out.localization,
      "positives_per_image": out.positives,
      "boxes_cropped_away": inputs.cropped.sum().astype(jnp.float32),
      "positive_iou": out.positive_iou,
      "localization_weight": out.loc_weight,
      "gradient_norm": optax.tree.norm(gradients),
      "learning_rate": schedule(state.step),
    }
    state = dataclasses.replace(
      state, step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state
    )
    return jax.lax.with_sharding_constraint(state, split_state(mesh, state)), metrics

  return jax.jit(
    step,
    static_argnums=2,
    donate_argnums=0,
    in_shardings=(None, split_batch(mesh)),  # None: as the state lies
    out_shardings=(None, replicated(mesh)),
  )
