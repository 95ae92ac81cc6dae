"""The device mesh, how batches, state and images lie on it, and several processes as one program.

Three axes. `data` and `fsdp` split the batch; `fsdp` also splits every large array of the parameters and of
the optimizer, which a step gathers; `space` splits the height of the images that the network sees, and XLA
exchanges the rows that convolutions need from their neighbours. None changes a result by more than rounding.
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

BATCH = ("data", "fsdp")  # the axes that split the batch
SMALLEST_SPLIT = 1024  # values; smaller arrays lie on all devices, splitting them saves nothing


def device_mesh(
  batch_size: int,
  devices: Sequence[jax.Device] | None = None,
  *,
  fsdp: int = 1,
  space: int = 1,
  setting: str = "batch_size",
) -> Mesh:
  """A mesh over all devices of all processes, or those given; `data` gets what `fsdp` and `space` leave.

  Args:
    batch_size: images in the global batch; a UserError that calls it `setting` if it cannot be split evenly.
  """
  devices = jax.devices() if devices is None else devices
  if len(devices) % (fsdp * space):
    raise UserError(
      f"config.mesh.fsdp={fsdp} times config.mesh.space={space} does not divide the {len(devices)} devices; "
      f"allowed are products that divide {len(devices)}"
    )
  shares = len(devices) // space
  if batch_size % shares:
    groups = "devices" if space == 1 else f"groups of {space} devices"
    raise UserError(
      f"{setting}={batch_size} is not divisible by the {shares} {groups}; allowed are multiples of {shares}"
    )
  # A process's devices side by side: its rows of a batch are then one range, and `space` stays on a machine.
  ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
  return Mesh(np.array(ordered).reshape(-1, fsdp, space), (*BATCH, "space"))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec(BATCH))


def split_state(mesh: Mesh, state: PyTree) -> PyTree[NamedSharding]:
  """Where a state's arrays (or shapes) lie: the largest axis that `fsdp` divides is split over it."""
  parts = mesh.shape["fsdp"]

  def place(x):
    axes = [axis for axis, side in enumerate(x.shape) if side % parts == 0]
    if parts == 1 or not axes or x.size < SMALLEST_SPLIT:
      return replicated(mesh)
    axis = max(axes, key=lambda a: x.shape[a])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

  return jax.tree.map(place, state)


def state_formats(mesh: Mesh, state: PyTree) -> PyTree[Format]:
  """Where a state's arrays (or shapes) lie, and the kernels of convolutions in which order of their axes."""
  order = kernel_order(mesh)
  layout = lambda x: Layout(order) if order and len(x.shape) == 4 else None
  return jax.tree.map(lambda x, s: Format(layout(x), s), state, split_state(mesh, state))


def kernel_order(mesh: Mesh) -> tuple[int, ...] | None:
  """Axes of a convolution's kernel (window, inputs, outputs) from the outermost in memory; None: as they are.

  On GPUs outputs come first, as cuDNN takes kernels and gives their gradients: else each step turns each.
  """
  return (3, 0, 1, 2) if mesh.devices.flat[0].platform == "gpu" else None


def abstract(mesh: Mesh, state: PyTree) -> PyTree:
  """Shapes and types of a state's arrays, and how they lie: what a checkpoint is restored to."""
  place = lambda x, how: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=how)
  return jax.tree.map(place, state, state_formats(mesh, state))


def input_share(mesh: Mesh) -> tuple[int, int]:
  """Which part of every batch this process loads, and of how many parts; see `share`."""
  first = min(d.process_index for d in mesh.devices.flat)  # a mesh need not have the devices of all processes
  return share(jax.process_index() - first, len(mesh.local_devices), mesh.size, mesh.shape["space"])


def share(process: int, local: int, devices: int, space: int) -> tuple[int, int]:
  """Part of a batch that a process loads, and how many parts there are.

  Processes whose devices hold rows of the same images (`space` reaches over them) load the same part; a
  UserError if a process's devices hold a fraction of such a group and more.

  Args:
    local, devices: devices of each process, and of all.
  """
  if local % space and space % local:
    raise UserError(
      f"config.mesh.space={space} neither divides the {local} devices of a process nor is a multiple of them"
    )
  together = max(space // local, 1)
  return process // together, devices // local // together


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
