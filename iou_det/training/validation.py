"""The validation loss: training's, on the validation images as they are, beside their detections.

Of the same forward pass, in the same program: see `iou_det.detector.Also`.
"""

from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from iou_det.config import evaluation_views
from iou_det.data.plan import TrainingFilter
from iou_det.data.source import Source, corners
from iou_det.detector import Also
from iou_det.forms import forms
from iou_det.models.retinanet import RetinaNet
from iou_det.network import forward, network_inputs
from iou_det.training.losses import detection_losses, loss_terms, make_targets

# With these, images and boxes are prepared as for training, but for the augmentation.
NO_AUGMENTATION: dict[str, Any] = {
  "flip_horizontal": 0.0, "flip_vertical": 0.0, "transpose": 0.0, "scale_jitter": (1.0, 1.0),
  "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}  # fmt: skip


class BatchLoss(NamedTuple):
  """Of one batch; `normalizer`: what the losses were divided by."""

  classification: Float[Array, ""]
  localization: Float[Array, ""]
  other: Float[Array, ""]
  normalizer: Float[Array, ""]


def validation_loss(config: ConfigDict, model: RetinaNet, mesh: Mesh, source: Source) -> Also:
  """A `BatchLoss` of each batch of a source's evaluation.

  Images that training would leave out (without boxes, or too small) take no part, nor do fillers.

  Args:
    config: with a number for loss.w_loc.
  """
  keep, a = TrainingFilter.of(config.data), source.annotations
  good = keep.boxes(corners(a.bbox), a.crowd, a.area)
  most = int(np.bincount(a.image_of_box()[good], minlength=1).max())
  size = lambda config: (config.data.short, config.data.long)
  views = [size(view) == size(config) and not mirror for view, mirror in evaluation_views(config)]
  plain = ConfigDict(config.to_dict())
  plain.data.update(NO_AUGMENTATION)

  def of(
    outputs: list[tuple[Any, ...]], variables: PyTree, batch: dict[str, Array], portrait: bool
  ) -> BatchLoss:
    inputs, anchors, level_sizes = network_inputs(plain, batch, portrait, mesh, train=True)
    if True in views:
      logits, deltas, _, _, _, *ious = outputs[views.index(True)]
    else:  # test-time augmentation at other sizes
      logits, deltas, *ious = forward(model, variables, inputs.images, mesh)
    real = batch["example"] & (batch["original_size"].min(axis=1) >= keep.min_image_side)
    real &= batch["valid"].any(axis=1) | keep.keep_empty
    inputs = inputs._replace(valid=inputs.valid & real[:, None])
    targets = make_targets(plain, inputs, anchors, level_sizes, portrait)
    targets = targets._replace(inside=targets.inside & real[:, None])
    terms = loss_terms(logits, deltas, targets, plain, forms(mesh), *ious)
    losses = detection_losses(terms, plain.loss, real)
    return BatchLoss(losses.classification, losses.localization, losses.other, losses.normalizer)

  return Also(of, keep, max(most, 1))


def mean_loss(batches: list[BatchLoss]) -> dict[str, float]:
  """The losses of all batches: sums over sums of what they were divided by; nothing if that is 0."""
  weights = np.array([b.normalizer for b in batches], np.float64)
  if not weights.sum():
    return {}
  mean = lambda name: float(np.average([getattr(b, name) for b in batches], weights=weights))
  parts = {f"loss_{name}": mean(name) for name in ("classification", "localization", "other")}
  if not parts["loss_other"]:  # the config asks for none
    del parts["loss_other"]
  return {"loss": sum(parts.values()), **parts}
