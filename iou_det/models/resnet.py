"""ResNet in torchvision's layout (stride in the 3x3 convolution), with frozen batch norm or group norm.

Module names follow torchvision's (`layer1.0.conv1` is `layer1_0/conv1`), so weights map by name.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from iou_det.errors import UserError

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def convolution(
  features: int,
  kernel: int,
  stride: int = 1,
  *,
  use_bias: bool = False,
  kernel_init: nn.initializers.Initializer = he_normal,
  **options: Any,
) -> nn.Conv:
  """Square convolution padded by kernel // 2 as in PyTorch ("SAME" pads strided ones otherwise)."""
  return nn.Conv(
    features,
    (kernel, kernel),
    stride,
    kernel // 2,
    use_bias=use_bias,
    kernel_init=kernel_init,
    **options,
  )


class FrozenBatchNorm(nn.Module):
  """Batch norm with constant statistics (collection "batch_stats"); scale and bias are parameters.

  Eps 1e-5, as in torchvision. One multiply-add, so that XLA can fuse it with its neighbours.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    shape = (x.shape[-1],)
    scale = self.param("scale", nn.initializers.ones, shape)
    bias = self.param("bias", nn.initializers.zeros, shape)
    mean = self.variable("batch_stats", "mean", jnp.zeros, shape).value
    var = self.variable("batch_stats", "var", jnp.ones, shape).value
    factor = scale * jax.lax.rsqrt(var + 1e-5)
    return x * factor.astype(self.dtype) + (bias - mean * factor).astype(self.dtype)


def group_norm(channels: int, dtype: DTypeLike, name: str) -> nn.GroupNorm:
  """GroupNorm with 32 groups, fewer if that left less than 2 channels a group or does not divide."""
  groups = math.gcd(32, channels, max(channels // 2, 1))
  return nn.GroupNorm(num_groups=groups, epsilon=1e-5, dtype=dtype, name=name)


def norm_layer(norm: str, dtype: DTypeLike) -> Callable[[int, str], nn.Module]:
  """Function (channels, name) -> module for "frozen_bn" or "gn"."""
  if norm == "frozen_bn":
    return lambda channels, name: FrozenBatchNorm(dtype=dtype, name=name)
  if norm == "gn":
    return lambda channels, name: group_norm(channels, dtype, name)
  raise UserError(f"norm={norm!r}: must be 'frozen_bn' or 'gn'")


class BasicBlock(nn.Module):
  """Two 3x3 convolutions (ResNet-18 and 34)."""

  features: int
  stride: int
  norm: str
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
    conv, norm = partial(convolution, dtype=self.dtype), norm_layer(self.norm, self.dtype)
    y = conv(self.features, 3, self.stride, name="conv1")(x)
    y = nn.relu(norm(self.features, "bn1")(y))
    y = conv(self.features, 3, name="conv2")(y)
    y = norm(self.features, "bn2")(y)
    if x.shape != y.shape:
      x = conv(self.features, 1, self.stride, name="downsample_0")(x)
      x = norm(self.features, "downsample_1")(x)
    return nn.relu(x + y)


class Bottleneck(nn.Module):
  """1x1, 3x3 (with the stride) and 1x1 convolutions (ResNet-50 and 101)."""

  features: int
  stride: int
  norm: str
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
    conv, norm = partial(convolution, dtype=self.dtype), norm_layer(self.norm, self.dtype)
    y = conv(self.features, 1, name="conv1")(x)
    y = nn.relu(norm(self.features, "bn1")(y))
    y = conv(self.features, 3, self.stride, name="conv2")(y)
    y = nn.relu(norm(self.features, "bn2")(y))
    y = conv(4 * self.features, 1, name="conv3")(y)
    y = norm(4 * self.features, "bn3")(y)
    if x.shape != y.shape:
      x = conv(4 * self.features, 1, self.stride, name="downsample_0")(x)
      x = norm(4 * self.features, "downsample_1")(x)
    return nn.relu(x + y)


class ResNet(nn.Module):
  """Feature maps C3, C4, C5: strides 8, 16 and 32, sides ceil(side of the image / stride).

  Attributes:
    depth: 18, 34, 50 or 101.
    width: channels of the stem; 64 is the standard network.
    norm: "frozen_bn" or "gn".
    frozen_stages: no gradient flows into the stem (0) and the first so many stages; -1: all train.
    dtype: of the computation; parameters are float32.
  """

  depth: int
  width: int = 64
  norm: str = "frozen_bn"
  frozen_stages: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
    if self.depth not in BLOCKS:
      raise UserError(f"depth={self.depth}: must be one of {', '.join(map(str, BLOCKS))}")
    block = BasicBlock if self.depth < 50 else Bottleneck
    x = convolution(self.width, 7, 2, dtype=self.dtype, name="conv1")(images)
    x = nn.relu(norm_layer(self.norm, self.dtype)(self.width, "bn1")(x))
    x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    if self.frozen_stages == 0:
      x = jax.lax.stop_gradient(x)
    maps = []
    for stage, blocks in enumerate(BLOCKS[self.depth], start=1):
      features = self.width * 2 ** (stage - 1)
      for i in range(blocks):
        stride = 2 if stage > 1 and i == 0 else 1
        x = block(features, stride, self.norm, self.dtype, name=f"layer{stage}_{i}")(x)
      if self.frozen_stages == stage:
        x = jax.lax.stop_gradient(x)
      maps.append(x)
    return maps[1:]
