"""Feature Pyramid Network, arXiv:1612.03144, with RetinaNet's extra levels."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from iou_det.models.layers import relu
from iou_det.models.resnet import convolution


def upsample(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
  """Every pixel four times, cropped to `size` = (height, width) in pixels, 2n or 2n - 1 for a side of n.

  For these sizes it is PyTorch's nearest interpolation; copies are cheaper than a gather and its gradient.
  """
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
  return x[:, : size[0], : size[1]]


class FPN(nn.Module):
  """P2 to P5 from C2 to C5 without norms, then P6 and P7 by 3x3 convolutions of stride 2.

  Attributes:
    settings: config.model; of the levels, only min_level to max_level are made.
  """

  settings: Any
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, maps: list[Float[Array, "b _ _ _"]]) -> list[Float[Array, "b _ _ _"]]:
    s, xavier = self.settings, nn.initializers.xavier_uniform()
    conv = partial(convolution, s.fpn_channels, use_bias=True, kernel_init=xavier, dtype=self.dtype)

    levels = range(s.min_level, 6)
    merged = {level: conv(1, name=f"inner_{level}")(maps[level - 2]) for level in levels}
    for level in reversed(levels[:-1]):
      _, height, width, _ = merged[level].shape
      merged[level] += upsample(merged[level + 1], (height, width))
    pyramid = [conv(3, name=f"layer_{level}")(merged[level]) for level in levels]
    if s.max_level >= 6:
      pyramid.append(conv(3, 2, name="p6")(maps[-1] if s.p6_from == "c5" else pyramid[-1]))
    if s.max_level >= 7:
      pyramid.append(conv(3, 2, name="p7")(relu(pyramid[-1]) if s.p7_relu else pyramid[-1]))
    return pyramid
