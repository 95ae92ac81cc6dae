"""Feature Pyramid Network, arXiv:1612.03144, with RetinaNet's extra levels."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from iou_det.errors import UserError
from iou_det.models.resnet import convolution


def upsample(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
  """Every pixel four times, cropped to `size` = (height, width) in pixels, 2n or 2n - 1 for a side of n.

  For these sizes it is PyTorch's nearest interpolation; copies are cheaper than a gather and its gradient.
  """
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
  return x[:, : size[0], : size[1]]


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
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, maps: list[Float[Array, "b _ _ _"]]) -> list[Float[Array, "b _ _ _"]]:
    """Returns the levels `min_level` to `max_level`.

    Args:
      maps: C3, C4, C5.

    Raises:
      UserError: for levels or a `p6_from` that are not among the attributes' allowed values.
    """
    if not 3 <= self.min_level <= 5 <= self.max_level <= 7:
      raise UserError(f"min_level={self.min_level}, max_level={self.max_level}: allowed are 3..5 and 5..7")
    if self.p6_from not in ("c5", "p5"):
      raise UserError(f"p6_from={self.p6_from!r}: must be 'c5' or 'p5'")
    xavier = nn.initializers.xavier_uniform()
    conv = partial(convolution, self.channels, use_bias=True, kernel_init=xavier, dtype=self.dtype)

    levels = range(self.min_level, 6)
    merged = {level: conv(1, name=f"inner_{level}")(maps[level - 3]) for level in levels}
    for level in reversed(levels[:-1]):
      _, height, width, _ = merged[level].shape
      merged[level] += upsample(merged[level + 1], (height, width))
    pyramid = [conv(3, name=f"layer_{level}")(merged[level]) for level in levels]
    if self.max_level >= 6:
      pyramid.append(conv(3, 2, name="p6")(maps[-1] if self.p6_from == "c5" else pyramid[-1]))
    if self.max_level >= 7:
      pyramid.append(conv(3, 2, name="p7")(nn.relu(pyramid[-1]) if self.p7_relu else pyramid[-1]))
    return pyramid
