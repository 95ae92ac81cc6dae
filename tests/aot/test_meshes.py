"""On TPUs the mesh is as good as jax's own helpers make it; slices exchange what they must."""

import json

import pytest

from tests.compilers import run

pytestmark = pytest.mark.aot
SUMMED = 4096 * 2304  # floats

PROGRAM = f"""
import json, re
import jax, jax.numpy as jnp
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from iou_det.aot.count import count, exchanged
from iou_det.aot.target import get_target, quiet
from iou_det.parallel import device_mesh, replicated, split_batch

jax.config.update("jax_platforms", "cpu")

def text(mesh):  # of a sum over all devices
  x = jax.ShapeDtypeStruct((mesh.size, 4096, {SUMMED // 4096}), jnp.float32, sharding=split_batch(mesh))
  with quiet():
    program = jax.jit(lambda x: x.sum(axis=0), out_shardings=replicated(mesh)).lower(x).compile().as_text()
  return re.sub(r"metadata={{[^}}]*}}", "", program)

for name, slices in (("v5e:4x4", 1), ("v5p:2x2x4", 1), ("v5e:4x4", 2), ("v5p:2x2x2", 2)):
  devices = get_target(name, slices).devices
  each = len(devices) // slices
  laid = (
    create_hybrid_device_mesh((each,), (slices,), devices)
    if slices > 1
    else create_device_mesh((each,), devices)
  )
  ours, theirs = map(text, (device_mesh(len(devices), devices), Mesh(laid, "data")))
  print(json.dumps([each, slices, ours == theirs, exchanged(count(ours, one_memory=False))]))
"""


def test_a_sum_over_all_chips_is_the_program_that_mesh_utils_order_gives():
  for line in run(PROGRAM).splitlines():
    each, slices, same, exchanged = json.loads(line)
    assert same, (each, slices)
    if slices == 1:
      assert exchanged["all-reduce"]["count"] == 1 and exchanged["all-reduce"]["bytes"] == 4 * SUMMED
    else:  # summed within a slice first: a chip exchanges its part of the sum with the other slice
      assert exchanged["recv"]["count"] == 1
      assert 1 <= exchanged["recv"]["bytes"] / (4 * SUMMED / each) < 1.1
