"""The device mesh, how batches and state lie on it, and several processes as one program.

One axis, `data`, over all devices splits the batch; parameters and the optimizer's state lie whole on each.
How many there are changes no result by more than rounding.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree
from tqdm import tqdm

from iou_det.errors import UserError
from iou_det.forms import forms

BATCH = "data"  # the axis


def device_mesh(
  batch_size: int, devices: Sequence[jax.Device] | None = None, *, setting: str = "batch_size"
) -> Mesh:
  """A mesh over all devices of all processes, or those given.

  Args:
    batch_size: images in the global batch; a UserError that calls it `setting` if it cannot be split evenly.
  """
  devices = jax.devices() if devices is None else devices
  if batch_size % len(devices):
    raise UserError(
      f"{setting}={batch_size} is not divisible by the {len(devices)} devices; allowed are multiples of "
      f"{len(devices)}"
    )
  return Mesh(np.array(in_order(devices)), (BATCH,))


def in_order(devices: Sequence[Any]) -> list[Any]:
  """A slice's devices side by side, and in it a process's, whose rows of a batch are then one range.

  What XLA makes of a sum over all of them does not depend on more: it finds slices and links by itself.
  """
  return sorted(devices, key=lambda d: (getattr(d, "slice_index", 0), d.process_index, d.id))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec(BATCH))


def state_formats(mesh: Mesh, state: PyTree) -> PyTree[Format]:
  """How a state's arrays (or shapes) lie: whole on each device, kernels in the order that suits it."""
  order = forms(mesh).kernel_order
  layout = lambda x: Layout(order) if order and len(x.shape) == 4 else None
  return jax.tree.map(lambda x: Format(layout(x), replicated(mesh)), state)


def abstract(mesh: Mesh, state: PyTree) -> PyTree:
  """Shapes and types of a state's arrays, and how they lie: what a checkpoint is restored to."""
  place = lambda x, how: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=how)
  return jax.tree.map(place, state, state_formats(mesh, state))


def input_share(mesh: Mesh) -> tuple[int, int]:
  """Which part of every batch this process loads, and of how many parts: one for each process of the mesh."""
  processes = list(dict.fromkeys(d.process_index for d in mesh.devices.flat))
  assert jax.process_index() in processes, "this process has none of the mesh's devices"
  return processes.index(jax.process_index()), len(processes)


def to_device(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's rows of a batch -> global arrays split over the mesh."""
  sharding = split_batch(mesh)
  _, parts = input_share(mesh)
  return {
    k: jax.make_array_from_process_local_data(sharding, v, (len(v) * parts, *v.shape[1:]))
    for k, v in batch.items()
  }


def progress_bar(*, hide: bool = False, **options: Any) -> tqdm:
  """One for all processes; a log file needs no smooth one."""
  seconds = 0.5 if sys.stderr.isatty() else 15
  return tqdm(disable=hide or jax.process_index() != 0, mininterval=seconds, **options)
