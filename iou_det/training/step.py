"""One training step: preprocess, forward, match, IoU-balanced losses, update. All of it in one jit."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from iou_det.config import input_size, strides
from iou_det.data.preprocess import Augment, Inputs, preprocess
from iou_det.models.retinanet import RetinaNet
from iou_det.ops import anchors as anchor_ops
from iou_det.training.losses import LossSettings, detection_losses, loss_terms
from iou_det.training.mesh import replicated, split_batch, split_state
from iou_det.training.optimizer import learning_rate
from iou_det.training.state import TrainState, forward


def make_anchors(
  config: ConfigDict, size: tuple[int, int]
) -> tuple[Float[Array, "anchors 4"], tuple[int, ...]]:
  """Anchors (x1, y1, x2, y2 pixels) of an input of `size` (height, width) and their number per level."""
  a = config.anchors
  anchors = anchor_ops.anchors(
    size,
    strides=strides(config),
    scale=a.scale,
    octaves=a.octaves,
    ratios=tuple(a.ratios),
    convention=a.convention,
  )
  per_cell = a.octaves * len(a.ratios)
  shapes = anchor_ops.level_shapes(size, strides(config))
  return jnp.asarray(anchors), tuple(h * w * per_cell for h, w in shapes)


def network_inputs(
  config: ConfigDict, batch: dict[str, Array], portrait: bool, *, train: bool
) -> tuple[Inputs, Float[Array, "anchors 4"], tuple[int, ...]]:
  """What the network sees of a batch of the pipeline, its anchors and their number per level.

  Args:
    train: with the config's augmentation.
  """
  d = config.data
  size = input_size(config, portrait)
  augment = Augment(
    flip_horizontal=d.flip_horizontal,
    flip_vertical=d.flip_vertical,
    transpose=d.transpose,
    scale_jitter=tuple(d.scale_jitter),
  )
  inputs = preprocess(
    batch,
    size=size,
    short=d.short,
    long=d.long,
    mean=tuple(d.mean),
    std=tuple(d.std),
    convention=config.anchors.convention,
    augment=augment if train else None,
    key=jax.random.key(config.seed) if train else None,
  )
  return inputs, *make_anchors(config, size)


def loss_arguments(
  config: ConfigDict,
  inputs: Inputs,
  anchors: Float[Array, "anchors 4"],
  level_sizes: tuple[int, ...],
  portrait: bool,
) -> dict[str, Any]:
  """Arguments of `loss_terms` beside the network's output."""
  if config.anchors.convention == "legacy":
    inside = anchor_ops.inside_padded_image(
      input_size(config, portrait),
      inputs.image_size,
      strides=strides(config),
      anchors_per_cell=config.anchors.octaves * len(config.anchors.ratios),
    )
  else:
    inside = jnp.ones((inputs.images.shape[0], anchors.shape[0]), bool)
  settings = config.loss.to_dict()
  by_level = settings.pop("normalizer") == "level"
  return {
    "anchors": anchors,
    "boxes": inputs.boxes,
    "labels": inputs.labels,
    "valid": inputs.valid,
    "inside": inside,
    "match_settings": config.match.to_dict(),
    "settings": LossSettings(**settings, level_sizes=level_sizes if by_level else None),
  }


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
    arguments = loss_arguments(config, inputs, anchors, level_sizes, portrait)

    def loss_fn(params):
      logits, deltas = forward(model, params, state.batch_stats, inputs.images, mesh)
      out = detection_losses(loss_terms(logits, deltas, **arguments))
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
