"""The detector's loss: match anchors, weigh each positive by the IoU of its predicted box, add up."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from iou_det.config import input_size, strides
from iou_det.data.preprocess import Inputs
from iou_det.ops import anchors as anchor_ops
from iou_det.ops import boxes as box_ops
from iou_det.ops import losses, matching
from iou_det.ops.other_losses import CLASSIFICATION, LOCALIZATION, BoxPairs, isr_weights


class Targets(NamedTuple):
  """What a batch's predictions are compared with; boxes and anchors are x1, y1, x2, y2 in network pixels."""

  anchors: Float[Array, "anchors 4"]
  level_sizes: tuple[int, ...]  # anchors of each pyramid level
  boxes: Float[Array, "batch boxes 4"]
  labels: Int[Array, "batch boxes"]
  valid: Bool[Array, "batch boxes"]  # the other rows are padding
  inside: Bool[Array, "batch anchors"]  # anchors that take part; the others match nothing and cost nothing


def make_targets(
  config: ConfigDict,
  inputs: Inputs,
  anchors: Float[Array, "anchors 4"],
  level_sizes: tuple[int, ...],
  portrait: bool,
) -> Targets:
  inside = jnp.ones((inputs.boxes.shape[0], anchors.shape[0]), bool)
  if config.anchors.convention == "legacy":
    inside = anchor_ops.inside_padded_image(
      input_size(config, portrait),
      inputs.image_size,
      strides=strides(config),
      anchors_per_cell=config.anchors.octaves * len(config.anchors.ratios),
    )
  return Targets(anchors, level_sizes, inputs.boxes, inputs.labels, inputs.valid, inside)


class Terms(NamedTuple):
  """The loss before it is added up. Weights carry no gradient."""

  iou: Float[Array, "batch anchors"]  # of each decoded box with its ground truth; no meaning without one
  positive: Bool[Array, "batch anchors"]
  counted: Bool[Array, "batch anchors"]  # positives and negatives: what has a classification loss
  own: Bool[Array, "batch anchors classes"]  # a positive's own class
  class_loss: Float[Array, "batch anchors classes"]
  class_weights: Float[Array, "batch anchors classes"]
  box_loss: Float[Array, "batch anchors"]
  box_weights: Float[Array, "batch anchors"]
  normalizer: Float[Array, " levels"]  # of Eq. (2): of each pyramid level where the config says so, or one

  def classification(self, by_image: bool = False) -> Float[Array, "..."]:
    """The sum over the batch, or those of its images."""
    axes = (1, 2) if by_image else None
    return jnp.sum(self.class_weights * self.class_loss, axes, where=self.counted[..., None])

  def localization(self, by_image: bool = False) -> Float[Array, "..."]:
    return jnp.sum(self.box_weights * self.box_loss, 1 if by_image else None, where=self.positive)


def loss_terms(
  logits: list[Float[Array, "batch _ _ _"]],
  deltas: list[Float[Array, "batch _ _ _"]],
  targets: Targets,
  config: ConfigDict,
) -> Terms:
  """Losses and weights of every anchor, Eq. (1)-(5) of arXiv:1908.05641, by config.match and config.loss.

  Args:
    logits, deltas: of each level, as `RetinaNet` returns them.
  """
  s, anchors = config.loss, targets.anchors
  offsets = anchor_ops.by_anchor(deltas, 4)
  scores = anchor_ops.by_anchor(logits, sum(math.prod(z.shape[1:]) for z in logits) // len(anchors))
  # An anchor that takes no part becomes a point, whose IoU with everything is 0.
  candidates = jnp.where(targets.inside[..., None], anchors, 0.0)
  match = lambda a, b, v: matching.match(a, b, v, **config.match)
  matched = jax.vmap(match)(candidates, targets.boxes, targets.valid)
  positive = matched.positive
  # Anchors that are not positive get themselves as target: offsets 0, no log(0), no NaN gradient.
  target_boxes = jnp.take_along_axis(targets.boxes, matched.index[..., None], axis=1)
  target_boxes = jnp.where(positive[..., None], target_boxes, anchors)
  labels = jnp.take_along_axis(targets.labels, matched.index, axis=1)
  own = (labels[..., None] == jnp.arange(scores.shape[-1])) & positive[..., None]

  boxes = box_ops.decode(offsets, anchors)
  iou = jax.lax.stop_gradient(box_ops.iou(boxes, target_boxes))
  by_level = {"level_sizes": targets.level_sizes if s.normalizer == "level" else None}

  class_loss = CLASSIFICATION[s.classification](scores, own, iou, s)
  class_weights = losses.iou_balanced_classification_weights(class_loss, iou, own, eta=s.eta, **by_level)
  if s.isr_gamma:
    class_weights *= isr_weights(class_loss, iou, own, matched.index, gamma=s.isr_gamma)
  own_loss = jnp.sum(class_loss, axis=-1, where=own)
  normalizer = losses.normalizer(own_loss, iou, positive, exponent=s.eta, **by_level)

  target_deltas = box_ops.encode(target_boxes, anchors)
  pairs = BoxPairs(offsets, target_deltas, boxes, target_boxes, positive)
  box_loss = LOCALIZATION[s.localization](pairs, s)
  if s.loc_weights == "eq5":
    box_weights = s.w_loc * losses.normalized_localization_weights(
      box_loss, iou, positive, lambd=s.lambd, **by_level
    )
  else:
    box_weights = losses.iou_balanced_localization_weights(iou, lambd=s.lambd, w_loc=s.w_loc)
  counted = targets.inside & ~matched.ignored
  return Terms(iou, positive, counted, own, class_loss, class_weights, box_loss, box_weights, normalizer)


class Losses(NamedTuple):
  classification: Float[Array, ""]
  localization: Float[Array, ""]
  positives: Float[Array, ""]  # per image
  positive_iou: Float[Array, ""]  # mean IoU of the positives' decoded boxes
  loc_weight: Float[Array, ""]  # effective weight: localization loss over what it is with weights of 1
  normalizer: Float[Array, ""]  # what both sums were divided by


def detection_losses(
  terms: Terms, average: str = "batch", real: Bool[Array, " batch"] | None = None
) -> Losses:
  """RetinaNet's two losses.

  Args:
    average: config.loss.average. "batch": sums over the whole batch divided by its number of positives (an
      image without any counts as one), so they do not depend on how the batch lies on devices. "image": each
      image's sum divided by its own number, then the mean over images, as in torchvision. The weights of
      Eq. (1)-(5) are the same for both: the sums that Eq. (2) and (5) keep run over the batch (or its levels)
      before anything is divided.
    real: False for fillers, in whose `Targets` no anchor takes part; None: there are none.
  """
  positives = terms.positive.sum(axis=1)
  counts = jnp.maximum(positives, 1)
  own = counts if real is None else jnp.where(real, counts, 0)
  by_image = average == "image"
  total = lambda sums: jnp.sum(sums / counts) if by_image else sums
  images = len(counts) if real is None else real.sum()
  normalizer = jnp.float32(images) if by_image else own.sum().astype(jnp.float32)
  localization = total(terms.localization(by_image))
  unweighted = total(jnp.sum(terms.box_loss, 1 if by_image else None, where=terms.positive))
  divisor = normalizer if real is None else jnp.maximum(normalizer, 1.0)  # all may be fillers
  return Losses(
    classification=total(terms.classification(by_image)) / divisor,
    localization=localization / divisor,
    positives=positives.mean(dtype=jnp.float32),
    positive_iou=jnp.sum(terms.iou, where=terms.positive) / jnp.maximum(positives.sum(), 1),
    loc_weight=localization / jnp.maximum(unweighted, jnp.finfo(unweighted.dtype).tiny),
    normalizer=normalizer,
  )
