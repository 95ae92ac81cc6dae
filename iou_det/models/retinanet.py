"""RetinaNet, arXiv:1708.02002: ResNet, FPN and two heads that all levels share."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iou_det.models.fpn import FPN
from iou_det.models.resnet import Conv, ResNet, group_norm


class Head(nn.Module):
  """A tower of 3x3 convolutions and a last one with `outputs` values for each anchor of a cell."""

  convs: int
  outputs: int
  anchors_per_cell: int
  norm: str
  bias: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, pyramid: list[Float[Array, "b _ _ c"]]) -> Float[Array, "b anchors outputs"]:
    channels = pyramid[0].shape[-1]
    # A tower without norms starts small, as in the paper of RetinaNet; GroupNorm removes the scale anyway.
    init = nn.initializers.normal(0.01)
    tower = [
      Conv(channels, 3, use_bias=True, kernel_init=init, dtype=self.dtype, name=f"conv_{i}")
      for i in range(self.convs)
    ]
    norms = [group_norm(channels, self.dtype, f"norm_{i}") for i in range(self.convs if self.norm == "gn" else 0)]
    last = Conv(
      self.anchors_per_cell * self.outputs, 3, use_bias=True, kernel_init=init,
      bias_init=nn.initializers.constant(self.bias), dtype=self.dtype, name="output")  # fmt: skip
    levels = []
    for x in pyramid:
      for i, conv in enumerate(tower):
        x = conv(x)
        x = nn.relu(norms[i](x) if norms else x)
      x = last(x)
      levels.append(x.reshape(x.shape[0], -1, self.outputs))
    return jnp.concatenate(levels, axis=1).astype(jnp.float32)


class RetinaNet(nn.Module):
  """Class logits and box offsets of every anchor.

  Attributes:
    num_classes: K; scores are K independent sigmoids, without a background class.
    depth, width, norm, frozen_stages: see `ResNet`.
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
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, "b h w 3"]
  ) -> tuple[Float[Array, "b anchors classes"], Float[Array, "b anchors 4"]]:
    """Returns logits and offsets (dx, dy, dw, dh), ordered by level, row, column, anchor of the cell.

    Args:
      images: normalised RGB; height and width multiples of 32.
    """
    maps = ResNet(self.depth, self.width, self.norm, self.frozen_stages, self.dtype, name="backbone")(images)
    pyramid = FPN(
      self.fpn_channels, self.min_level, self.max_level, self.p6_from, self.p7_relu, self.dtype, name="fpn"
    )(maps)  # fmt: skip
    common = {"convs": self.head_convs, "anchors_per_cell": self.anchors_per_cell, "norm": self.head_norm,
              "dtype": self.dtype}  # fmt: skip
    bias = -math.log((1 - self.prior) / self.prior)
    logits = Head(outputs=self.num_classes, bias=bias, name="classification_head", **common)(pyramid)
    deltas = Head(outputs=4, bias=0.0, name="regression_head", **common)(pyramid)
    return logits, deltas


def trainable_mask(params: PyTree, frozen_stages: int) -> PyTree:
  """True for the parameters that train: all but the stem's and the first `frozen_stages` stages'."""
  frozen = {"conv1", "bn1"} if frozen_stages >= 0 else set()

  def trains(path, _):
    names = [key.key for key in path]
    if names[0] != "backbone":
      return True
    stage = names[1].removeprefix("layer").split("_")[0]
    return names[1] not in frozen and not (stage.isdigit() and int(stage) <= frozen_stages)

  return jax.tree_util.tree_map_with_path(trains, params)
