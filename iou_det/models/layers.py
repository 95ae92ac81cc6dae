"""ReLU, GroupNorm and max pooling with gradients by hand: they keep and move less than JAX's."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

EPS = 1e-5  # of the norms, as in torchvision
Maps = Float[Array, "b h w c"]


@jax.custom_vjp
def relu(x: Maps) -> Maps:
  """max(x, 0), whose gradient needs the output only; the next convolution keeps that anyway."""
  return nn.relu(x)


def _relu_forward(x):
  y = nn.relu(x)
  return y, y


def _relu_backward(y, gradient):
  # XLA turns `y > 0` back into `x > 0`; a GPU then keeps x too and every ReLU is a pass of its own. On
  # a TPU it puts both into the convolutions.
  y = jax.lax.platform_dependent(y, tpu=lambda y: y, default=jax.lax.optimization_barrier)
  return (jnp.where(y > 0, gradient, jnp.zeros_like(gradient)),)


relu.defvjp(_relu_forward, _relu_backward)


class GroupNorm(nn.Module):
  """GroupNorm, arXiv:1803.08494, then perhaps a ReLU; statistics are float32.

  It has 32 groups, fewer if that left less than 2 channels a group or does not divide.
  """

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Maps, activate: bool = False) -> Maps:
    channels = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    scale, bias = jnp.asarray(scale), jnp.asarray(bias)  # a checkpoint's may be numpy's
    return group_norm(x.astype(self.dtype), scale, bias, groups_of(channels), activate)


def groups_of(channels: int) -> int:
  return math.gcd(32, channels, max(channels // 2, 1))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(
  x: Maps, scale: Float[Array, " c"], bias: Float[Array, " c"], groups: int, activate: bool
) -> Maps:
  """Flax's GroupNorm and perhaps a ReLU: two passes over x forward, two backward, and only x is kept."""
  return _norm_forward(x, scale, bias, groups, activate)[0]


def _group_means(of_channels: Float[Array, "n b c"], groups: int) -> Float[Array, "n b 1 1 c"]:
  n, batch, channels = of_channels.shape
  means = of_channels.reshape(n, batch, groups, channels // groups).mean(-1)
  return jnp.repeat(means, channels // groups, axis=-1)[:, :, None, None]


def _norm_forward(x, scale, bias, groups, activate):
  wide = x.astype(jnp.float32)
  mean, square = _group_means(jnp.stack([wide.mean((1, 2)), (wide * wide).mean((1, 2))]), groups)
  inverse = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + EPS)
  y = (wide - mean) * (inverse * scale) + bias
  y = jnp.maximum(y, 0.0) if activate else y
  return y.astype(x.dtype), (x, scale, bias, mean, inverse)


def _norm_backward(groups, activate, kept, gradient):
  x, scale, bias, mean, inverse = kept

  def again(x, gradient):
    """What is normalised, before scale and bias, and the gradient of that after them."""
    centred, gradient = x.astype(jnp.float32) - mean, gradient.astype(jnp.float32)
    if activate:
      gradient = jnp.where(centred * (inverse * scale) + bias > 0, gradient, 0.0)
    return centred * inverse, gradient

  normal, g = again(x, gradient)
  # Barriers. First: sums over pixels at once would have small maps written out and read again for each sum.
  sums = jnp.stack(jax.lax.optimization_barrier((g.sum(2), (g * normal).sum(2)))).sum(2)
  constant, slope = _group_means(scale * sums, groups) / (x.shape[1] * x.shape[2])
  # Second: what was computed for the sums is not written for this pass.
  normal, g = again(*jax.lax.optimization_barrier((x, gradient)))
  d_x = inverse * (g * scale - constant - normal * slope)
  d_bias, d_scale = sums.sum(1)
  return d_x.astype(x.dtype), d_scale, d_bias


group_norm.defvjp(_norm_forward, _norm_backward)


@jax.custom_vjp
def max_pool(x: Maps) -> Float[Array, "b h2 w2 c"]:
  """3x3 maxima with a stride of 2, padded by 1; the first of equals gets the gradient, as XLA's.

  For its gradient it keeps which of its 9 pixels each maximum is, one byte, and gathers.
  """
  return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


def _pool_forward(x):
  _, height, width, _ = x.shape
  rows, columns = (height + 1) // 2, (width + 1) // 2
  padded = jnp.pad(x, ((0, 0), (1, height % 2), (1, width % 2), (0, 0)), constant_values=-jnp.inf)
  best, place = jnp.full((), -jnp.inf, x.dtype), jnp.zeros((), jnp.uint8)
  for k in range(9):
    row, column = divmod(k, 3)
    pixel = padded[:, row : row + 2 * rows - 1 : 2, column : column + 2 * columns - 1 : 2]
    place = jnp.where(pixel > best, jnp.uint8(k), place)
    best = jnp.maximum(best, pixel)
  return best, (place, x[:0])  # the second for its shape


def _pool_backward(
  kept: tuple[UInt8[Array, "b h2 w2 c"], Float[Array, "0 h w c"]], gradient: Float[Array, "b h2 w2 c"]
) -> tuple[Float[Array, "b h w c"]]:
  place, like = kept

  def share(k: int, down: int, right: int) -> Float[Array, "b h2 w2 c"]:
    """Gradient of the pixel that is the k-th of the window `down` rows and `right` columns further."""
    shift = lambda v: jnp.pad(v[:, down:, right:], ((0, 0), (0, down), (0, right), (0, 0)))
    return jnp.where(shift(place) == k, shift(gradient), 0)

  # Each window's 2x2 last pixels but one, from its own and the next windows.
  even = jnp.stack([share(4, 0, 0), share(5, 0, 0) + share(3, 0, 1)], axis=3)
  last = share(8, 0, 0) + share(6, 0, 1) + share(2, 1, 0) + share(0, 1, 1)
  odd = jnp.stack([share(7, 0, 0) + share(1, 1, 0), last], axis=3)
  batch, rows, columns, _, channels = even.shape
  d_x = jnp.stack([even, odd], axis=2).reshape(batch, 2 * rows, 2 * columns, channels)
  return (d_x[:, : like.shape[1], : like.shape[2]],)


max_pool.defvjp(_pool_forward, _pool_backward)


def max_pool_of_blocks(x: Float[Array, "b h w _"]) -> Float[Array, "b h w c"]:
  """`max_pool` of maps whose 2x2 pixels are channels, as (row, column, c) from the slowest on."""

  def with_before(x: Maps, axis: int) -> Maps:
    """The larger of each block's and the one's before it."""
    one, low = [1] * 4, [(0, 0)] * 4
    window = tuple(one[:axis] + [2] + one[axis + 1 :])
    padding = tuple(low[:axis] + [(1, 0)] + low[axis + 1 :])
    return jax.lax.reduce_window(x, jnp.full((), -jnp.inf, x.dtype), jax.lax.max, window, (1,) * 4, padding)

  for axis in (1, 2):  # a window has the block's first row (or column), its second, and the second before
    first, second = jnp.split(x, 2, axis=3)
    x = jnp.maximum(first, with_before(second, axis))
  return x
