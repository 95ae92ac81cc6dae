"""The device mesh and how batches and state lie on it."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from iou_det.errors import UserError


def data_mesh(
  batch_size: int, devices: Sequence[jax.Device] | None = None, *, setting: str = "batch_size"
) -> Mesh:
  """A mesh with the one axis `data` over all devices.

  Args:
    batch_size: images in the global batch.
    devices: defaults to every device of every process.
    setting: what the user calls the batch size, for the message.

  Raises:
    UserError: if the batch cannot be split evenly.
  """
  devices = jax.devices() if devices is None else devices
  if batch_size % len(devices):
    raise UserError(
      f"{setting}={batch_size} is not divisible by the {len(devices)} devices; "
      f"allowed are multiples of {len(devices)}"
    )
  return Mesh(np.array(devices), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec("data"))


def to_device(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's rows of a batch -> global arrays split along `data`."""
  sharding = split_batch(mesh)
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
