"""The largest values against numpy's stable sort."""

import jax
import numpy as np
import pytest

from iou_det.ops.top_k import top_k


@pytest.mark.parametrize("n, k", [(1000, 7), (1003, 20), (160, 10), (159, 10), (12, 12), (5, 1)])
def test_is_a_stable_sort(n, k):
  """Few and many different values, both zeros, infinite ones and NaN."""
  run = jax.jit(top_k, static_argnums=1)
  for seed, levels in enumerate((2, 5, 50, 100_000)):
    rng = np.random.default_rng(seed)
    x = np.float32(rng.integers(-levels, levels, n))
    x[rng.random(n) < 0.1] = -0.0
    x[rng.random(n) < 0.1] = -np.inf
    if seed % 2:
      x[rng.integers(0, n, 3)] = np.inf
      x[rng.integers(0, n, 3)] = np.nan
    values, places = run(x, k)
    expected = np.lexsort((-x, ~np.isnan(x)))[:k]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_array_equal(values, x[expected])
