"""A number for each array of a state: what is read again is what was saved, or it is not used.

Neither Zarr nor OCDBT keep checksums of our arrays, and a flipped byte is a number like any other.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, UInt32


def digests(state: PyTree) -> dict[str, int]:
  """`digest` of every array, by its place ("params/backbone/stem/kernel"); computed where the arrays lie."""
  named = jax.tree_util.tree_leaves_with_path(state)
  names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in named]
  leaves = [leaf for _, leaf in named]
  if not leaves:
    return {}
  lies = getattr(leaves[0], "sharding", None)
  everywhere = NamedSharding(lies.mesh, PartitionSpec()) if isinstance(lies, NamedSharding) else None
  numbers = np.asarray(jax.jit(all_digests, out_shardings=everywhere)(leaves))
  return {name: int(n) for name, n in zip(names, numbers, strict=True)}


def all_digests(arrays: list[Array]) -> UInt32[Array, " arrays"]:
  return jnp.stack([digest(x) for x in arrays])


def digest(x: Array) -> UInt32[Array, ""]:
  """The sum of x_i (2 i + 1) modulo 2^32, over the bits x_i of its elements in row-major order.

  Exact, so the same however the array is split and in whatever order it is summed up. No change of a single
  element leaves it as it was, nor does one of many in all but 2^-32 of cases.
  """
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  width = min(x.dtype.itemsize, 4)
  bits = jax.lax.bitcast_convert_type(x, f"uint{8 * width}").astype(jnp.uint32)
  place: Any = jnp.uint32(0)
  for axis in range(bits.ndim):
    stride = math.prod(bits.shape[axis + 1 :]) % 2**32
    place = place + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
  return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
