"""Which part of a batch each process loads, and meshes that cannot be."""

import jax
import pytest

from iou_det.data.pipeline import part_rows
from iou_det.errors import UserError
from iou_det.parallel import device_mesh, input_share, share


@pytest.mark.parametrize(
  ("processes", "local", "space"), [(1, 8, 1), (2, 4, 2), (4, 2, 2), (4, 2, 8), (8, 1, 4)]
)
def test_processes_load_every_row_and_the_same_only_for_the_same_images(processes, local, space):
  devices, batch = processes * local, 16
  rows_of_device = batch // (devices // space)
  for process in range(processes):
    part, parts = share(process, local, devices, space)
    # What its devices need: device d holds the rows of group d // space.
    groups = {d // space for d in range(process * local, (process + 1) * local)}
    needed = [row for g in sorted(groups) for row in range(g * rows_of_device, (g + 1) * rows_of_device)]
    assert list(part_rows(batch, part, parts)) == needed


def test_one_process_loads_all():
  assert input_share(device_mesh(8)) == (0, 1)
  assert input_share(device_mesh(8, jax.devices()[:2], space=2)) == (0, 1)


def test_meshes_that_cannot_be():
  with pytest.raises(UserError, match=r"fsdp=3 .* does not divide the 8 devices"):
    device_mesh(8, fsdp=3)
  with pytest.raises(UserError, match=r"batch_size=3 is not divisible by the 4 groups of 2 devices"):
    device_mesh(3, space=2)
  with pytest.raises(UserError, match=r"space=4 neither divides the 3 devices"):
    share(0, 3, 12, 4)
