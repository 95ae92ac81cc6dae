"""The largest values of a long vector, exactly, by two short sorts instead of a long one."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def top_k(x: Float[Array, " n"], k: int) -> tuple[Float[Array, " k"], Int[Array, " k"]]:
  """`jax.lax.top_k`: the best `k` values and their places, equal values by rising place.

  They lie in the k groups of neighbours with the best maxima: a value of another group has k better ones, or
  equal ones before it. -0.0 is equal to 0.0 here, as to every comparison, NaN the best of all.
  """
  x = jnp.where(x == 0, 0.0, x)
  size = math.isqrt(len(x) // k)
  if size < 4:  # nothing to save
    values, places = jax.lax.top_k(x, k)
    return values, places
  groups = jnp.pad(x, (0, -len(x) % size), constant_values=-jnp.inf).reshape(-1, size)
  # In order again, so that of equal values the one before the others still comes first.
  best = jnp.sort(jax.lax.top_k(groups.max(axis=1), k)[1])
  values, at = jax.lax.top_k(groups[best].reshape(-1), k)
  return values, best[at // size] * size + at % size
