"""In which order devices lie in the mesh, which part of a batch each process loads, and what cannot be."""

from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from iou_det.data.pipeline import part_rows
from iou_det.errors import UserError
from iou_det.parallel import device_mesh, in_order, input_share


@dataclass(frozen=True)
class Chip:
  slice_index: int
  process_index: int
  id: int
  device_kind: str = "made up"
  platform: str = "made up"


@pytest.mark.parametrize("slices", [1, 2, 4])
def test_slices_and_processes_lie_side_by_side_and_each_loads_its_devices_rows(monkeypatch, slices):
  """Whatever numbers they have: here slices are dealt out to the processes, and ids to all in turn."""
  processes, each = 8, 2
  chips = [Chip(p % slices, p, 100 * k + p) for k in range(each) for p in range(processes)]
  order = in_order(chips)
  mesh = Mesh(np.array(order), "data")
  assert set(order) == set(chips) and len(order) == len(chips)
  for name in ("slice_index", "process_index"):
    indices = [getattr(chip, name) for chip in order]
    runs = [a for a, b in zip(indices, [*indices[1:], None], strict=True) if a != b]
    assert len(runs) == len(set(runs)), f"{name} {indices} comes back"
  for process in range(processes):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    places = [i for i, chip in enumerate(order) if chip.process_index == process]
    assert list(part_rows(32, *input_share(mesh))) == [2 * i + k for i in places for k in range(2)]


def test_one_process_loads_all():
  assert input_share(device_mesh(8)) == (0, 1)
  assert input_share(device_mesh(8, jax.devices()[:2])) == (0, 1)


def test_a_batch_that_cannot_be_split():
  with pytest.raises(UserError, match=r"batch_size=3 is not divisible by the 8 devices; .* multiples of 8"):
    device_mesh(3)
