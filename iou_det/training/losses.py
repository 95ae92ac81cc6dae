"""The detector's loss: match anchors, weigh each positive by the IoU of its predicted box, add up."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from iou_det.config import input_size, strides
from iou_det.data.preprocess import Inputs
from iou_det.ops import anchors as anchor_ops
from iou_det.ops import boxes as box_ops
from iou_det.ops import losses, matching, other_losses


class LossSettings(NamedTuple):
  """Numbers of the loss; the defaults are the plain RetinaNet that the paper starts from.

  Attributes:
    alpha, gamma: focal loss.
    delta: where smooth L1 turns linear.
    eta: exponent of the classification weights, Eq. (1)-(2); 0 is the baseline.
    lambd: exponent of the localization weights, Eq. (3)-(4); 0 is the baseline.
    w_loc: factor of the localization loss.
    loc_weights: "eq4", or "eq5" for the normalised weights.
    localization: "smooth_l1", or a loss of iou_det.ops.other_losses.
    isr_gamma: exponent of PISA's classification weights.
    level_sizes: anchors per pyramid level: normalise Eq. (2) and (5) per level; None: over the batch.
  """

  alpha: float = 0.25
  gamma: float = 2.0
  delta: float = 0.11
  eta: float = 0.0
  lambd: float = 0.0
  w_loc: float = 1.0
  loc_weights: str = "eq4"
  localization: str = "smooth_l1"
  isr_gamma: float = 0.0
  level_sizes: tuple[int, ...] | None = None


class Terms(NamedTuple):
  """The loss before it is added up. Weights carry no gradient."""

  iou: Float[Array, "batch anchors"]  # of each decoded box with its ground truth (1 where not positive)
  positive: Bool[Array, "batch anchors"]
  counted: Bool[Array, "batch anchors"]  # positives and negatives: what has a classification loss
  own: Bool[Array, "batch anchors classes"]  # a positive's own class
  focal: Float[Array, "batch anchors classes"]
  class_weights: Float[Array, "batch anchors classes"]
  box_loss: Float[Array, "batch anchors"]  # summed over the 4 offsets
  box_weights: Float[Array, "batch anchors"]

  def classification(self) -> Float[Array, ""]:
    return jnp.sum(self.class_weights * self.focal, where=self.counted[..., None])

  def localization(self) -> Float[Array, ""]:
    return jnp.sum(self.box_weights * self.box_loss, where=self.positive)


class Losses(NamedTuple):
  """Batch losses and what explains them."""

  classification: Float[Array, ""]
  localization: Float[Array, ""]
  positives: Float[Array, ""]  # per image
  positive_iou: Float[Array, ""]  # mean IoU of the positives' decoded boxes
  loc_weight: Float[Array, ""]  # effective weight: localization loss over what it is with weights of 1


def loss_terms(
  logits: Float[Array, "batch anchors classes"],
  deltas: Float[Array, "batch anchors 4"],
  anchors: Float[Array, "anchors 4"],
  boxes: Float[Array, "batch boxes 4"],
  labels: Int[Array, "batch boxes"],
  valid: Bool[Array, "batch boxes"],
  inside: Bool[Array, "batch anchors"],
  *,
  match_settings: dict,
  settings: LossSettings,
) -> Terms:
  """Losses and weights of every anchor, Eq. (1)-(5) of arXiv:1908.05641.

  Args:
    logits: class scores before the sigmoid.
    deltas: predicted box offsets from the anchors.
    anchors: x1, y1, x2, y2 in pixels.
    boxes: ground truth, x1, y1, x2, y2 in pixels; rows where `valid` is False are padding.
    labels: class of each box, 0..classes-1.
    valid: which rows are boxes.
    inside: anchors that take part; the others match nothing and cost nothing.
    match_settings: keywords of `iou_det.ops.matching.match`.
  """
  s = settings
  # An anchor that takes no part becomes a point, whose IoU with everything is 0.
  candidates = jnp.where(inside[..., None], anchors, 0.0)
  matched = jax.vmap(lambda a, b, v: matching.match(a, b, v, **match_settings))(candidates, boxes, valid)
  positive = matched.positive
  # Anchors that are not positive get themselves as target: offsets 0, no log(0), no NaN gradient.
  target_boxes = jnp.take_along_axis(boxes, matched.index[..., None], axis=1)
  target_boxes = jnp.where(positive[..., None], target_boxes, anchors)
  target_labels = jnp.take_along_axis(labels, matched.index, axis=1)
  own = (target_labels[..., None] == jnp.arange(logits.shape[-1])) & positive[..., None]

  iou = jax.lax.stop_gradient(box_ops.iou(box_ops.decode(deltas, anchors), target_boxes))

  focal = losses.sigmoid_focal_loss(logits, own.astype(logits.dtype), alpha=s.alpha, gamma=s.gamma)
  class_weights = losses.iou_balanced_classification_weights(
    focal, iou, own, eta=s.eta, level_sizes=s.level_sizes
  )
  if s.isr_gamma:
    class_weights *= other_losses.isr_weights(focal, iou, own, matched.index, gamma=s.isr_gamma)
  target_deltas = box_ops.encode(target_boxes, anchors)
  d = deltas - target_deltas
  match s.localization:
    case "smooth_l1":
      offsets = losses.smooth_l1(d, delta=s.delta)
    case "balanced_l1":
      offsets = other_losses.balanced_l1(d, beta=s.delta)
    case "bounded_iou":
      offsets = other_losses.bounded_iou_loss(deltas, target_deltas)
    case "ghm_r":
      offsets = other_losses.authentic_smooth_l1(d) * other_losses.gradient_harmonizing_weights(d, positive)
    case _:
      raise ValueError(f"localization loss {s.localization!r} is not known")
  box_loss = offsets.sum(axis=-1)
  if s.loc_weights == "eq5":
    box_weights = s.w_loc * losses.normalized_localization_weights(
      box_loss, iou, positive, lambd=s.lambd, level_sizes=s.level_sizes
    )
  else:
    box_weights = losses.iou_balanced_localization_weights(iou, lambd=s.lambd, w_loc=s.w_loc)
  counted = inside & ~matched.ignored
  return Terms(iou, positive, counted, own, focal, class_weights, box_loss, box_weights)


def detection_losses(terms: Terms) -> Losses:
  """RetinaNet's two losses.

  Both are sums over the whole batch divided by its number of positives (an image without any counts
  as one), so they do not depend on how the batch lies on devices.
  """
  positives = terms.positive.sum(axis=1)
  normalizer = jnp.maximum(positives, 1).sum().astype(jnp.float32)
  localization = terms.localization()
  unweighted = jnp.sum(terms.box_loss, where=terms.positive)
  return Losses(
    classification=terms.classification() / normalizer,
    localization=localization / normalizer,
    positives=positives.mean(dtype=jnp.float32),
    positive_iou=jnp.sum(terms.iou, where=terms.positive) / jnp.maximum(positives.sum(), 1),
    loc_weight=localization / jnp.maximum(unweighted, jnp.finfo(unweighted.dtype).tiny),
  )


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
  settings.pop("classification")
  return {
    "anchors": anchors,
    "boxes": inputs.boxes,
    "labels": inputs.labels,
    "valid": inputs.valid,
    "inside": inside,
    "match_settings": config.match.to_dict(),
    "settings": LossSettings(**settings, level_sizes=level_sizes if by_level else None),
  }
