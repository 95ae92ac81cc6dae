"""Feature Pyramid Network, arXiv:1612.03144, with RetinaNet's extra levels."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from iou_det.models.resnet import Conv


def upsample_nearest(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
  """Nearest-neighbour upsampling to (height, width), as PyTorch's `interpolate` picks pixels."""
  rows = jnp.arange(size[0]) * x.shape[1] // size[0]
  columns = jnp.arange(size[1]) * x.shape[2] // size[1]
  return x[:, rows][:, :, columns]


class FPN(nn.Module):
  """P3 to P5 from C3 to C5 without norms, then P6 and P7 by 3x3 convolutions of stride 2.

  Attributes:
    channels: of every level.
    min_level: 3, 4 or 5; lower levels are not computed further.
    max_level: 5, 6 or 7.
    p6_from: "c5" or "p5".
    p7_relu: ReLU between P6 and P7 (torchvision and detectron2 have it, mmdetection does not).
  """

  channels: int = 256
  min_level: int = 3
  max_level: int = 7
  p6_from: str = "c5"
  p7_relu: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, maps: list[Float[Array, "b _ _ _"]]) -> list[Float[Array, "b _ _ c"]]:
    def conv(kernel, stride, name):
      return Conv(
        self.channels, kernel, stride, use_bias=True, kernel_init=nn.initializers.xavier_uniform(),
        dtype=self.dtype, name=name)  # fmt: skip

    levels = range(self.min_level, 6)
    lateral = {level: conv(1, 1, f"inner_{level}")(maps[level - 3]) for level in levels}
    for level in reversed(levels[:-1]):
      above = upsample_nearest(lateral[level + 1], lateral[level].shape[1:3])
      lateral[level] = lateral[level] + above
    pyramid = [conv(3, 1, f"layer_{level}")(lateral[level]) for level in levels]
    if self.max_level >= 6:
      pyramid.append(conv(3, 2, "p6")(maps[-1] if self.p6_from == "c5" else pyramid[-1]))
    if self.max_level >= 7:
      pyramid.append(conv(3, 2, "p7")(nn.relu(pyramid[-1]) if self.p7_relu else pyramid[-1]))
    return pyramid
