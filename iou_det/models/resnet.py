"""ResNet in torchvision's layout, with frozen batch norm or group norm."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from iou_det.forms import ANY, Forms
from iou_det.models.layers import EPS, GroupNorm, max_pool, max_pool_of_blocks, relu

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
LAYOUT = ("NHWC", "HWIO", "NHWC")
TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
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
  options |= {"use_bias": use_bias, "kernel_init": kernel_init}
  return nn.Conv(features, (kernel, kernel), stride, kernel // 2, **options)


class FrozenBatchNorm(nn.Module):
  """Batch norm with constant statistics (collection "batch_stats"); scale and bias are parameters.

  Returns the factor and the shift of each channel, for `ConvNorm.folded`.
  """

  @nn.compact
  def __call__(self, channels: int) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    scale = self.param("scale", nn.initializers.ones, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,)).value
    var = self.variable("batch_stats", "var", jnp.ones, (channels,)).value
    factor = scale * jax.lax.rsqrt(var + EPS)
    return factor, bias - mean * factor


class Kernel(nn.Module):
  """The kernel of a convolution without a bias, named as `nn.Conv` names it."""

  @nn.compact
  def __call__(self, shape: tuple[int, int, int, int]) -> Float[Array, "k k c d"]:
    return self.param("kernel", he_normal, shape)


def patches(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b h2 w2 d"]:
  """Each block of `side` x `side` pixels as one of side * side * c channels; zeros fill up the last ones."""
  batch, height, width, channels = x.shape
  x = jnp.pad(x, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
  rows, columns = x.shape[1] // side, x.shape[2] // side
  x = x.reshape(batch, rows, side, columns, side, channels).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, rows, columns, side * side * channels)


def stem_convolution(
  x: Float[Array, "b h w c"], weights: Float[Array, "7 7 c d"], block: int = 2
) -> Float[Array, "b h2 w2 d2"]:
  """The 7x7 convolution of stride 2 as one of stride 1 on blocks of pixels (space to depth).

  Few input channels leave matrix units idle; the blocks have more. Equal up to rounding.

  Args:
    block: side of a block. 2: a 4x4 convolution. 4: a 3x3 one, whose channels are 2x2 pixels of the output
      (`max_pool_of_blocks` takes them); sides must be multiples of 4.
  """
  channels, side = x.shape[-1], {2: 4, 4: 3}[block]
  blocks = patches(x, block)  # what fills them up is what the convolution pads with anyway
  # Pixels 2i - 3 to 2i + 3 are within `side` blocks of which the first begins at 2i - 4: zeros elsewhere.
  outputs = range(block // 2)
  pad = lambda i: (1 + 2 * i, side * block - 8 - 2 * i)
  kernels = [jnp.pad(weights, (pad(i), pad(j), (0, 0), (0, 0))) for i in outputs for j in outputs]
  kernel = jnp.stack(kernels, axis=3).reshape(side, block, side, block, channels, -1)
  kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(side, side, block * block * channels, -1)
  padding = [(4 // block, 1)] * 2
  return jax.lax.conv_general_dilated(blocks, kernel, (1, 1), padding, dimension_numbers=LAYOUT)


@dataclass(frozen=True)
class ConvNorm:
  """Makes a convolution, its norm, "frozen_bn" or "gn", and perhaps a ReLU.

  The first two are submodules `names` of the calling module.

  Attributes:
    stem_block: of the one 7x7 convolution, see `stem_convolution`.
  """

  norm: str
  dtype: DTypeLike
  stem_block: int = 2

  def __call__(
    self,
    x: Float[Array, "b h w c"],
    features: int,
    kernel: int,
    stride: int,
    names: tuple[str, str],
    *,
    activate: bool = False,
  ) -> Float[Array, "b h2 w2 d"]:
    if self.norm == "gn":
      x = convolution(features, kernel, stride, dtype=self.dtype, name=names[0])(x)
      return GroupNorm(self.dtype, name=names[1])(x, activate)
    weights, shift = self.folded((kernel, kernel, x.shape[-1], features), names)
    x = x.astype(self.dtype)
    if kernel == 7:
      x = stem_convolution(x, weights, self.stem_block)
      shift = jnp.tile(shift, x.shape[-1] // features)
    else:
      padding, strides = [(kernel // 2, kernel // 2)] * 2, (stride, stride)
      x = jax.lax.conv_general_dilated(x, weights, strides, padding, dimension_numbers=LAYOUT)
    return relu(x + shift) if activate else x + shift

  def folded(
    self, shape: tuple[int, int, int, int], names: tuple[str, str]
  ) -> tuple[Float[Array, "k k c d"], Float[Array, " d"]]:
    """A kernel with its frozen norm's factor in it, one pass over the activations less, and the norm's shift.

    `x * W * factor + shift` is the same function, with the same gradients, as the norm after the convolution.
    """
    factor, shift = FrozenBatchNorm(name=names[1])(shape[-1])
    weights = Kernel(name=names[0])(shape) * factor
    return weights.astype(self.dtype), shift.astype(self.dtype)

  def joined(
    self, y: Float[Array, "b h2 w2 c"], x: Float[Array, "b h w c2"], features: int, stride: int
  ) -> Float[Array, "b h2 w2 d"]:
    """A bottleneck's last convolution of y plus the shortcut's of x, with frozen norms.

    Both are 1x1: one convolution of the channels of both, and neither's wide output is written to be added.
    """
    last, shift = self.folded((1, 1, y.shape[-1], features), ("conv3", "bn3"))
    shortcut, shift_too = self.folded((1, 1, x.shape[-1], features), ("downsample_0", "downsample_1"))

    @jax.checkpoint  # keeps y and x, which are kept anyway, and not a copy of both
    def convolve(y, x, last, shortcut):
      both = jnp.concatenate([y, x[:, ::stride, ::stride].astype(self.dtype)], axis=3)
      weights = jnp.concatenate([last, shortcut], axis=2)
      return jax.lax.conv_general_dilated(both, weights, (1, 1), "VALID", dimension_numbers=LAYOUT)

    return convolve(y, x, last, shortcut) + (shift + shift_too)


class Block(nn.Module):
  """Two 3x3 convolutions (ResNet-18 and 34) or, a bottleneck, 1x1, 3x3 and 1x1.

  Attributes:
    stride_in_1x1: whether a bottleneck's stride is in the first 1x1 (MSRA's original), not in the 3x3.
  """

  features: int
  stride: int
  bottleneck: bool
  stride_in_1x1: bool
  layer: ConvNorm

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
    wide = self.features * (4 if self.bottleneck else 1)
    if self.bottleneck:
      strides = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
      convs = [(self.features, 1, strides[0]), (self.features, 3, strides[1]), (wide, 1, 1)]
    else:
      convs = [(wide, 3, self.stride), (wide, 3, 1)]
    y = x
    for i, conv in enumerate(convs[:-1], start=1):
      y = self.layer(y, *conv, (f"conv{i}", f"bn{i}"), activate=True)
    widens = x.shape[-1] != wide
    if widens and self.bottleneck and self.layer.norm == "frozen_bn":
      return relu(self.layer.joined(y, x, wide, self.stride))
    y = self.layer(y, *convs[-1], (f"conv{len(convs)}", f"bn{len(convs)}"))
    if widens:
      x = self.layer(x, wide, 1, self.stride, ("downsample_0", "downsample_1"))
    return relu(x + y)


def stop_frozen(x: Float[Array, "b h w c"], stage: int, settings: Any) -> Float[Array, "b h w c"]:
  """Output of a stage: no gradient flows back into it if it is frozen."""
  return jax.lax.stop_gradient(x) if stage <= settings.frozen_stages else x


class ResNet(nn.Module):
  """Feature maps C2 to C5: strides 4, 8, 16 and 32, sides ceil(side of the image / stride).

  Module names follow torchvision's: `layer1.0.conv1` is `layer1_0/conv1`.

  Attributes:
    settings: config.model.
    dtype: of the computation; parameters are float32.
    forms: those that suit the platform.
  """

  settings: Any
  dtype: DTypeLike = jnp.float32
  forms: Forms = ANY

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
    s = self.settings
    # Only a frozen stem's: in `max_pool_of_blocks` equals share the gradient.
    frozen = s.norm == "frozen_bn" and s.frozen_stages >= 0 and not any(n % 4 for n in images.shape[1:3])
    side = self.forms.stem_block if frozen else 2
    layer, pool = ConvNorm(s.norm, self.dtype, side), max_pool if side == 2 else max_pool_of_blocks
    block = nn.remat(Block) if s.remat else Block  # no activations kept: the backward pass makes them again
    if s.stem == "patchify":
      x = stop_frozen(layer(patches(images, 4), s.width, 3, 1, ("conv1", "bn1"), activate=True), 0, s)
    else:
      x = pool(stop_frozen(layer(images, s.width, 7, 2, ("conv1", "bn1"), activate=True), 0, s))
    maps = []
    for stage, blocks in enumerate(BLOCKS[s.depth], start=1):
      features = s.width * 2 ** (stage - 1)
      for i in range(blocks):
        stride = 2 if stage > 1 and i == 0 else 1
        x = block(features, stride, s.depth >= 50, s.stride_in_1x1, layer, name=f"layer{stage}_{i}")(x)
      x = stop_frozen(x, stage, s)
      maps.append(x)
    return maps

  @staticmethod
  def stage_of(module: str) -> int:
    """Stage of a submodule: layer1_0, layer1_1, ... are stage 1; conv1 and bn1 the stem, 0."""
    return 0 if module in ("conv1", "bn1") else int(module.removeprefix("layer").split("_")[0])

  @staticmethod
  def torch_name(path: Iterable[str]) -> str:
    """Name in torchvision, and in timm's ResNets, of the variable at a path of module names.

    `layer1_0/downsample_1/mean` is `layer1.0.downsample.1.running_mean`.
    """
    *modules, leaf = path
    modules = [re.sub(r"_(\d+)$", r".\1", module) for module in modules]
    return ".".join([*modules, TORCH_LEAVES.get(leaf, leaf)])
