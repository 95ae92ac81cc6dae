"""RetinaNet, arXiv:1708.02002: ResNet, FPN and two heads that all levels share."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from iou_det.errors import UserError
from iou_det.models.fpn import FPN
from iou_det.models.resnet import ResNet, convolution, group_norm


class Head(nn.Module):
  """A tower of 3x3 convolutions and a last one with `outputs` values for each anchor of a cell."""

  convs: int
  outputs: int
  anchors_per_cell: int
  norm: str
  bias: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, pyramid: list[Float[Array, "b _ _ _"]]) -> Float[Array, "b anchors outputs"]:
    if self.norm not in ("none", "gn"):
      raise UserError(f"head_norm={self.norm!r}: must be 'none' or 'gn'")
    channels = pyramid[0].shape[-1]
    normal = nn.initializers.normal(0.01)
    conv = partial(convolution, kernel=3, use_bias=True, kernel_init=normal, dtype=self.dtype)
    tower = [conv(channels, name=f"conv_{i}") for i in range(self.convs)]
    norms = [group_norm(channels, self.dtype, f"norm_{i}") for i in range(self.convs) if self.norm == "gn"]
    bias = nn.initializers.constant(self.bias)
    last = conv(self.anchors_per_cell * self.outputs, bias_init=bias, name="output")
    levels = []
    for x in pyramid:
      for i, layer in enumerate(tower):
        x = layer(x)
        x = nn.relu(norms[i](x) if norms else x)
      x = last(x)
      levels.append(x.reshape(x.shape[0], -1, self.outputs))
    return jnp.concatenate(levels, axis=1).astype(jnp.float32)


class RetinaNet(nn.Module):
  """Class logits and box offsets of every anchor.

  Attributes:
    num_classes: K; scores are K independent sigmoids, without a background class.
    depth, width, norm, frozen_stages, remat: see `ResNet`.
    fpn_channels, min_level, max_level, p6_from, p7_relu: see `FPN`.
    head_convs: 3x3 convolutions of each tower.
    head_norm: "none" or "gn" (GroupNorm after each of them).
    anchors_per_cell: octaves * ratios.
    prior: score that every anchor starts with, through the bias of the last class convolution.
    dtype: of the computation; parameters and outputs are float32.
  """

  num_classes: int
  depth: int = 50
  width: int = 64
  norm: str = "frozen_bn"
  frozen_stages: int = 1
  fpn_channels: int = 256
  head_convs: int = 4
  head_norm: str = "none"
  min_level: int = 3
  max_level: int = 7
  p6_from: str = "c5"
  p7_relu: bool = False
  anchors_per_cell: int = 9
  prior: float = 0.01
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self, images: Float[Array, "b h w 3"]
  ) -> tuple[Float[Array, "b anchors classes"], Float[Array, "b anchors 4"]]:
    """Returns logits and offsets (dx, dy, dw, dh), ordered by level, row, column, anchor of the cell.

    Args:
      images: normalised RGB; any height and width. A level of stride s has ceil(height / s) rows and
        ceil(width / s) columns.
    """
    backbone = ResNet(
      self.depth, self.width, self.norm, self.frozen_stages, self.dtype, self.remat, name="backbone"
    )
    fpn = FPN(
      channels=self.fpn_channels,
      min_level=self.min_level,
      max_level=self.max_level,
      p6_from=self.p6_from,
      p7_relu=self.p7_relu,
      dtype=self.dtype,
      name="fpn",
    )
    head = partial(
      Head,
      convs=self.head_convs,
      anchors_per_cell=self.anchors_per_cell,
      norm=self.head_norm,
      dtype=self.dtype,
    )
    bias = -math.log((1 - self.prior) / self.prior)
    pyramid = fpn(backbone(images))
    logits = head(outputs=self.num_classes, bias=bias, name="classification_head")(pyramid)
    deltas = head(outputs=4, bias=0.0, name="regression_head")(pyramid)
    return logits, deltas


def trainable_mask(params: PyTree, frozen_stages: int) -> PyTree[bool]:
  """True for the parameters that train.

  Args:
    params: collection "params" of a `RetinaNet`; values or shapes.
    frozen_stages: as in `ResNet`; that many stages and the stem are False, everything is True if it is -1.
  """

  def trains(path, _):
    if path[0].key != "backbone":
      return True
    name = path[1].key  # layer1_0, layer1_1, ...; or conv1, bn1: the stem
    return (int(name[len("layer")]) if name.startswith("layer") else 0) > frozen_stages

  return jax.tree_util.tree_map_with_path(trains, params)
