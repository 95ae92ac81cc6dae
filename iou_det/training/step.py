"""One training step: preprocess, forward, match, IoU-balanced losses, update. All of it in one jit."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
import optax.contrib
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from iou_det.config import input_size
from iou_det.data.plan import images_per_step
from iou_det.data.source import Category
from iou_det.forms import forms
from iou_det.models.retinanet import RetinaNet, trainable_mask
from iou_det.network import forward, make_anchors, network_inputs
from iou_det.parallel import replicated, split_batch, state_formats
from iou_det.training.accumulate import Outputs, network_outputs, pull_back
from iou_det.training.losses import Losses, Targets, detection_losses, loss_terms, make_targets
from iou_det.weights.pretrained import load_pretrained
from iou_det.weights.start import start_from_detector
from iou_det.workdir.checkpoints import AVERAGE


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
    """What the network is trained with."""
    return {"params": self.params, "batch_stats": self.batch_stats}

  @property
  def averaged(self) -> PyTree:
    """What it is scored with if config.train.ema says so."""
    return {"params": self.opt_state[AVERAGE].params, "batch_stats": self.batch_stats}


def learning_rate(
  train: ConfigDict, steps_per_epoch: int
) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
  """Learning rate at a step: of a peak of `learning_rate * images of a step / 16`.

  During the first `warmup_steps` it is multiplied by a line from `warmup_factor` to 1; it drops by
  `decay_factor` after each of `decay_epochs`, or follows half a cosine down to 0.
  """
  peak = train.learning_rate * images_per_step(train) / 16
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
  """Clip by the global norm, then SGD with momentum, AdamW or Muon, by config.train.

  SGD adds the weight decay to the gradient, as PyTorch's does; AdamW (arXiv:1711.05101, epsilon 1e-8) keeps
  it out of its moments and shrinks the parameters by rate * decay, as PyTorch's does. Muon (optax's) makes
  the momentum of each convolution's kernel nearly orthogonal, its steps as large as AdamW's
  (arXiv:2502.16982), and leaves biases and norms to AdamW. All decay every parameter, biases and norms
  included. Frozen parameters (False in `trainable`) never move.
  """
  rate = learning_rate(train, steps_per_epoch)
  if train.optimizer == "muon":
    rule = optax.contrib.muon(
      rate,
      beta=train.momentum,
      weight_decay=train.weight_decay,
      consistent_rms=0.2,
      adam_b1=train.momentum,
      adam_b2=train.beta2,
      adam_weight_decay=train.weight_decay,
      muon_weight_dimension_numbers=kernels_as_matrices,
    )
    clipped = optax.chain(optax.clip_by_global_norm(train.clip_norm), rule)
  elif train.optimizer == "adamw":
    rule = optax.adamw(rate, b1=train.momentum, b2=train.beta2, weight_decay=train.weight_decay)
    clipped = optax.chain(optax.clip_by_global_norm(train.clip_norm), rule)
  else:
    clipped = optax.chain(
      optax.clip_by_global_norm(train.clip_norm),
      optax.add_decayed_weights(train.weight_decay),
      optax.sgd(rate, momentum=train.momentum),
    )
  labels = jax.tree.map(lambda t: "train" if t else "frozen", trainable)
  optimizer = optax.multi_transform({"train": clipped, "frozen": optax.set_to_zero()}, labels)
  if train.ema:
    optimizer = optax.named_chain(("steps", optimizer), (AVERAGE, average_parameters(train.ema)))
  return optimizer


def kernels_as_matrices(params: PyTree) -> PyTree:
  """For Muon: a convolution's kernel is a matrix from its window to its outputs; the rest is Adam's."""
  matrix = optax.contrib.MuonDimensionNumbers((0, 1, 2), (3,))
  return jax.tree.map(lambda p: matrix if p.ndim == 4 else None, params)


class Average(NamedTuple):
  """State of `average_parameters`; leaves as in `TrainState`."""

  count: PyTree  # int32 scalar: steps so far
  params: PyTree


def average_parameters(decay: float) -> optax.GradientTransformation:
  """Keeps an exponential moving average of the parameters; changes no update, and must come last.

      average += (1 - d) (parameters - average)    d = min(decay, (1 + t) / (10 + t)) after t steps

  Both are TensorFlow's (tf.train.ExponentialMovingAverage with `num_updates`): d grows with the number of
  steps, so that the random start does not outweigh a short run. In this form a parameter that never moves is
  its own average, to the bit; optax.incremental_update's would round it.
  """

  def init(params: PyTree) -> Average:
    # Copies: the state is donated, and no buffer may be given away twice.
    return Average(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

  def update(updates: PyTree, state: Average, params: PyTree | None = None) -> tuple[PyTree, Average]:
    rate = 1.0 - jnp.minimum(decay, (1.0 + state.count) / (10.0 + state.count))
    moved = optax.apply_updates(params, updates)
    average = jax.tree.map(lambda old, new: old + rate * (new - old), state.params, moved)
    return updates, Average(state.count + 1, average)

  return optax.GradientTransformation(init, update)


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
  variables = jax.device_put(variables, state_formats(mesh, variables))
  trainable = trainable_mask(variables["params"], config.model)
  optimizer = make_optimizer(config.train, steps_per_epoch, trainable)
  make = lambda variables: TrainState(
    step=jnp.zeros((), jnp.int32), **variables, opt_state=optimizer.init(variables["params"])
  )
  formats = state_formats(mesh, jax.eval_shape(make, variables))
  return jax.jit(make, out_shardings=formats)(variables), optimizer


def make_train_step(
  config: ConfigDict,
  model: RetinaNet,
  optimizer: optax.GradientTransformation,
  steps_per_epoch: int,
  mesh: Mesh,
  state: TrainState,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
  """The jitted step: `step(state, batch, portrait) -> state, metrics`; the old state is donated.

  `batch` is what `iou_det.data.pipeline` yields, split over the mesh; it is compiled once for
  landscape and once for portrait batches. It has images_per_step(config.train) images; where these are more
  than one part (config.train.accumulate), see `iou_det.training.accumulate`.
  """
  schedule = learning_rate(config.train, steps_per_epoch)

  def loss_of(outputs: Outputs, targets: Targets) -> tuple[Array, Losses]:
    logits, deltas, *ious = outputs
    terms = loss_terms(logits, deltas, targets, config, forms(mesh), *ious)
    out = detection_losses(terms, config.loss)
    return out.total, out

  def step(state: TrainState, batch: dict[str, Array], portrait: bool) -> tuple[TrainState, dict[str, Array]]:
    if config.train.accumulate == 1:
      inputs, anchors, level_sizes = network_inputs(config, batch, portrait, mesh, train=True)
      targets = make_targets(config, inputs, anchors, level_sizes, portrait)

      def loss_fn(params):
        return loss_of(forward(model, state.variables | {"params": params}, inputs.images, mesh), targets)

      (total, out), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    else:
      inputs, outputs = network_outputs(config, model, state.variables, batch, portrait, mesh)
      targets = make_targets(config, inputs, *make_anchors(config, input_size(config, portrait)), portrait)
      (total, out), cotangents = jax.value_and_grad(loss_of, has_aux=True)(outputs, targets)
      gradients = pull_back(config, model, state.variables, (batch, cotangents), portrait, mesh)
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
    if config.model.iou_branch or config.loss.concordance:
      metrics["loss_other"] = out.other
    state = dataclasses.replace(
      state, step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state
    )
    return state, metrics

  return jax.jit(
    step,
    static_argnums=2,
    donate_argnums=0,
    in_shardings=(None, split_batch(mesh)),  # None: as the state lies
    out_shardings=(state_formats(mesh, state), replicated(mesh)),
  )
