"""One training step: preprocess, forward, match, IoU-balanced losses, update. All of it in one jit."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from iou_det.config import input_size, strides
from iou_det.data.preprocess import Augment, preprocess
from iou_det.models.retinanet import RetinaNet
from iou_det.ops import anchors as anchor_ops
from iou_det.ops import boxes as box_ops
from iou_det.ops import losses
from iou_det.ops.matching import match
from iou_det.training.mesh import replicated, split_batch
from iou_det.training.optimizer import learning_rate
from iou_det.training.state import TrainState, forward


class Losses(NamedTuple):
  """Batch losses and what explains them."""

  classification: Float[Array, ""]
  localization: Float[Array, ""]
  positives: Float[Array, ""]  # per image
  positive_iou: Float[Array, ""]  # mean IoU of the positives' decoded boxes
  loc_weight: Float[Array, ""]  # mean weight of the positives' localization loss


def detection_losses(
  logits: Float[Array, "batch anchors classes"],
  deltas: Float[Array, "batch anchors 4"],
  anchors: Float[Array, "anchors 4"],
  boxes: Float[Array, "batch boxes 4"],
  labels: Int[Array, "batch boxes"],
  valid: Bool[Array, "batch boxes"],
  inside: Bool[Array, "batch anchors"],
  *,
  match_settings: dict,
  alpha: float,
  gamma: float,
  delta: float,
  eta: float,
  lambd: float,
  w_loc: float,
  loc_weights: str,
  level_sizes: tuple[int, ...] | None,
) -> Losses:
  """RetinaNet's losses with IoU-balanced weights, Eq. (1)-(5) of arXiv:1908.05641.

  Both are sums over the whole batch divided by its number of positives (an image without any counts
  as one), so they do not depend on how the batch lies on devices.

  Args:
    logits: class scores before the sigmoid.
    deltas: predicted box offsets from the anchors.
    anchors: x1, y1, x2, y2 in pixels.
    boxes: ground truth, x1, y1, x2, y2 in pixels; rows where `valid` is False are padding.
    labels: class of each box, 0..classes-1.
    valid: which rows are boxes.
    inside: anchors that take part; the others match nothing and cost nothing.
    match_settings: keywords of `iou_det.ops.matching.match`.
    alpha, gamma: focal loss.
    delta: where smooth L1 turns linear.
    eta: exponent of the classification weights; 0 is the baseline.
    lambd: exponent of the localization weights; 0 is the baseline.
    w_loc: factor of the localization loss, Eq. (4).
    loc_weights: "eq4", or "eq5" for the normalised weights.
    level_sizes: anchors per pyramid level: normalise Eq. (2) and (5) per level; None: over the batch.
  """
  # An anchor that takes no part becomes a point, whose IoU with everything is 0.
  candidates = jnp.where(inside[..., None], anchors, 0.0)
  matched = jax.vmap(lambda a, b, v: match(a, b, v, **match_settings))(candidates, boxes, valid)
  positive = matched.positive
  counted = inside & ~matched.ignored
  # Anchors that are not positive get themselves as target: offsets 0, no log(0), no NaN gradient.
  target_boxes = jnp.take_along_axis(boxes, matched.index[..., None], axis=1)
  target_boxes = jnp.where(positive[..., None], target_boxes, anchors)
  target_labels = jnp.take_along_axis(labels, matched.index, axis=1)
  target = (target_labels[..., None] == jnp.arange(logits.shape[-1])) & positive[..., None]

  iou = jax.lax.stop_gradient(box_ops.iou(box_ops.decode(deltas, anchors), target_boxes))

  focal = losses.sigmoid_focal_loss(logits, target.astype(logits.dtype), alpha=alpha, gamma=gamma)
  class_weights = losses.iou_balanced_classification_weights(
    focal, iou, target, eta=eta, level_sizes=level_sizes
  )
  l1 = losses.smooth_l1(deltas - box_ops.encode(target_boxes, anchors), delta=delta).sum(axis=-1)
  if loc_weights == "eq5":
    box_weights = w_loc * losses.normalized_localization_weights(
      l1, iou, positive, lambd=lambd, level_sizes=level_sizes
    )
  else:
    box_weights = losses.iou_balanced_localization_weights(iou, lambd=lambd, w_loc=w_loc)

  positives = positive.sum(axis=1)
  normalizer = jnp.maximum(positives, 1).sum().astype(jnp.float32)
  total = jnp.maximum(positives.sum(), 1)
  return Losses(
    classification=jnp.sum(class_weights * focal, where=counted[..., None]) / normalizer,
    localization=jnp.sum(box_weights * l1, where=positive) / normalizer,
    positives=positives.mean(dtype=jnp.float32),
    positive_iou=jnp.sum(iou, where=positive) / total,
    loc_weight=jnp.sum(box_weights, where=positive) / total,
  )


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
  d, loss = config.data, config.loss
  augment = Augment(
    flip_horizontal=d.flip_horizontal,
    flip_vertical=d.flip_vertical,
    transpose=d.transpose,
    scale_jitter=tuple(d.scale_jitter),
  )
  key = jax.random.key(config.seed)
  convention = config.anchors.convention

  def step(state: TrainState, batch: dict[str, Array], portrait: bool) -> tuple[TrainState, dict[str, Array]]:
    size = input_size(config, portrait)
    anchors, level_sizes = make_anchors(config, size)
    inputs = preprocess(
      batch,
      size=size,
      short=d.short,
      long=d.long,
      mean=tuple(d.mean),
      std=tuple(d.std),
      convention=convention,
      augment=augment,
      key=key,
    )
    if convention == "legacy":
      inside = anchor_ops.inside_padded_image(
        size, inputs.image_size, strides=strides(config), anchors_per_cell=model.anchors_per_cell
      )
    else:
      inside = jnp.ones((inputs.images.shape[0], anchors.shape[0]), bool)

    def loss_fn(params):
      logits, deltas = forward(model, params, state.batch_stats, inputs.images)
      out = detection_losses(
        logits,
        deltas,
        anchors,
        inputs.boxes,
        inputs.labels,
        inputs.valid,
        inside,
        match_settings=config.match.to_dict(),
        alpha=loss.alpha,
        gamma=loss.gamma,
        delta=loss.delta,
        eta=loss.eta,
        lambd=loss.lambd,
        w_loc=loss.w_loc,
        loc_weights=loss.loc_weights,
        level_sizes=level_sizes if loss.normalizer == "level" else None,
      )
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
    return state, metrics

  everywhere = replicated(mesh)
  return jax.jit(
    step,
    static_argnums=2,
    donate_argnums=0,
    in_shardings=(everywhere, split_batch(mesh)),
    out_shardings=(everywhere, everywhere),
  )
