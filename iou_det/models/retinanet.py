"""RetinaNet, arXiv:1708.02002: a backbone, FPN and two heads that all levels share."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from iou_det.forms import ANY, Forms
from iou_det.models import backbone_class
from iou_det.models.fpn import FPN
from iou_det.models.layers import GroupNorm, relu
from iou_det.models.resnet import convolution


class Head(nn.Module):
  """A tower of 3x3 convolutions and a last one with `outputs` values for each anchor of a cell; where
  `iou_branch`, beside it one with a single value."""

  settings: Any
  outputs: int
  anchors_per_cell: int
  bias: float
  dtype: DTypeLike
  iou_branch: bool = False

  @nn.compact
  def __call__(self, pyramid: list[Float[Array, "b _ _ _"]]) -> list[list[Float[Array, "b _ _ _"]]]:
    """Returns what each of the last convolutions puts out, by level."""
    convs, normed = self.settings.head_convs, self.settings.head_norm == "gn"
    channels = pyramid[0].shape[-1]
    normal = nn.initializers.normal(0.01)
    conv = partial(convolution, kernel=3, use_bias=True, kernel_init=normal, dtype=self.dtype)
    tower = [conv(channels, name=f"conv_{i}") for i in range(convs)]
    norms = [GroupNorm(self.dtype, name=f"norm_{i}") for i in range(convs) if normed]
    bias = nn.initializers.constant(self.bias)
    last = [conv(self.anchors_per_cell * self.outputs, bias_init=bias, name="output")]
    if self.iou_branch:
      last.append(conv(self.anchors_per_cell, name="iou"))
    levels = []
    for x in pyramid:
      for i, layer in enumerate(tower):
        x = layer(x)
        x = norms[i](x, activate=True) if normed else relu(x)
      levels.append([layer(x) for layer in last])
    return [list(output) for output in zip(*levels, strict=True)]


class RetinaNet(nn.Module):
  """Class logits and box offsets of every anchor.

  Attributes:
    settings: config.model, frozen.
    num_classes: K; scores are K independent sigmoids, without a background class.
    anchors_per_cell: octaves * ratios.
    dtype: of the computation and its outputs; parameters are float32.
    forms: those that suit the platform.
  """

  settings: Any
  num_classes: int
  anchors_per_cell: int = 9
  dtype: DTypeLike = jnp.float32
  forms: Forms = ANY

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[list[Float[Array, "b _ _ _"]], ...]:
    """Returns logits and offsets (dx, dy, dw, dh) by level, each [b, rows, columns, cell's anchors * values].

    With an IoU branch its logits, one an anchor, are the third. As the last convolutions leave them: to move
    all logits is costly. `by_anchor` makes rows of them. Images are normalised RGB of any height and width; a
    level of stride s has ceil(height / s) rows.
    """
    s = self.settings
    backbone = backbone_class(s.backbone)(s, self.dtype, self.forms, name="backbone")
    pyramid = FPN(s, self.dtype, name="fpn")(backbone(images))
    head = partial(Head, s, anchors_per_cell=self.anchors_per_cell, dtype=self.dtype)
    bias = -math.log((1 - s.prior) / s.prior)
    logits = head(outputs=self.num_classes, bias=bias, name="classification_head")(pyramid)
    boxes = head(outputs=4, bias=0.0, name="regression_head", iou_branch=s.iou_branch)(pyramid)
    return *logits, *boxes


def trainable_mask(params: PyTree, settings: Any) -> PyTree[bool]:
  """True for the parameters (or shapes) of a `RetinaNet` that train, by config.model.frozen_stages."""
  stage_of = backbone_class(settings.backbone).stage_of

  def trains(path, _):
    return path[0].key != "backbone" or stage_of(path[1].key) > settings.frozen_stages

  return jax.tree_util.tree_map_with_path(trains, params)
