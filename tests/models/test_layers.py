"""Layers with gradients by hand: values and gradients of Flax's, and what they keep for the backward pass."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iou_det.models.layers import EPS, GroupNorm, groups_of, max_pool, relu


def with_gradients(function, *arguments):
  """Its value, and for a seeded gradient of that the gradients of the arguments."""

  @jax.jit
  def run(*arguments):
    value, pull = jax.vjp(function, *arguments)
    return value, pull(jax.random.normal(jax.random.key(7), value.shape, value.dtype))

  return run(*arguments)


def kept(function, *arguments):
  """Bytes of all arrays that wait for the backward pass."""
  residuals = jax.eval_shape(lambda *a: jax.vjp(function, *a)[1], *arguments)
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(residuals))


def plain_pool(x):
  return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


def test_relu_is_flaxs():
  x = jnp.asarray([[[[-2.0, -0.0, 0.0, 3.0, jnp.nan]]]])
  ours, theirs = with_gradients(relu, x), with_gradients(nn.relu, x)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize(
  "shape, dtype", [((2, 7, 9, 64), "float32"), ((1, 5, 4, 5), "float32"), ((2, 8, 6, 8), "bfloat16")]
)
def test_group_norm_is_flaxs(shape, dtype, activate):
  x = (3 * jax.random.normal(jax.random.key(0), shape) + 5).astype(dtype)
  plain = nn.GroupNorm(groups_of(shape[-1]), epsilon=EPS, dtype=dtype)
  params = {
    name: jax.random.normal(jax.random.key(i), shape[-1:]) for i, name in enumerate(("scale", "bias"))
  }
  ours = lambda p, x: GroupNorm(dtype).apply({"params": p}, x, activate)
  theirs = lambda p, x: (nn.relu if activate else lambda y: y)(plain.apply({"params": p}, x))
  tolerance = 1e-5 if dtype == "float32" else 0.01  # of the largest; bfloat16: a unit in the last place
  for a, b in zip(*(jax.tree.leaves(with_gradients(f, params, x)) for f in (ours, theirs)), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape
    a, b = (np.asarray(v, np.float32) for v in (a, b))
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
  of_images = 2 * shape[0] * shape[-1] + 2 * shape[-1]  # float32: mean and deviation, scale and bias
  assert kept(ours, params, x) == x.size * x.dtype.itemsize + 4 * of_images


@pytest.mark.parametrize("channels, groups", [(1, 1), (5, 1), (8, 4), (16, 8), (48, 8), (64, 32), (256, 32)])
def test_groups_fit_narrow_layers(channels, groups):
  assert groups_of(channels) == groups and channels % groups == 0


@pytest.mark.parametrize("height, width", [(8, 12), (7, 9), (8, 5), (1, 2)])
def test_max_pool_and_its_gradient_are_flaxs_to_the_bit(height, width):
  x = jax.random.randint(jax.random.key(0), (2, height, width, 3), -3, 3).astype(jnp.float32)  # many equals
  ours, theirs = with_gradients(max_pool, x), with_gradients(plain_pool, x)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  assert kept(max_pool, x) == ours[0].size
