"""Whether a workdir's place keeps checkpoints: tried before hours are spent."""

import os

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from iou_det.errors import UserError
from iou_det.storage import absolute, in_bucket
from iou_det.workdir.checkpoints import Checkpoints, Damaged
from iou_det.workdir.place import check_name, is_full, no_room

PROBE = "checkpoint_probe"  # a folder in the workdir, while it lasts


def probe(workdir: str | os.PathLike[str]) -> None:
  """Writes, reads back and removes a small checkpoint; of all processes, which have to call it.

  Leaves no folder that was not there. A UserError says why the place will not do.
  """
  check_name(workdir)
  place = absolute(epath.Path(workdir)) / PROBE
  made = [] if in_bucket(place) else [p for p in place.parents if not p.exists()]
  lead = jax.process_index() == 0
  mesh = Mesh(np.array(jax.devices()), ("devices",))
  values = np.arange(jax.device_count(), dtype=np.int32)
  sharding = NamedSharding(mesh, PartitionSpec("devices"))
  array = jax.make_array_from_callback(values.shape, sharding, values.__getitem__)
  multihost_utils.sync_global_devices("all know what was there")
  try:
    if lead and place.exists():  # of a start that was killed
      place.rmtree()
    multihost_utils.sync_global_devices("nothing of another probe is there")
    checkpoints = Checkpoints(place)
    checkpoints.save(0, {"probe": array}, {})
    checkpoints.close()
    multihost_utils.sync_global_devices("the probe is written")
    shape = jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=sharding)
    checkpoints.restore(0, {"probe": shape})
    multihost_utils.sync_global_devices("the probe is read")
  except Damaged as error:
    raise UserError(
      f"--workdir={workdir}: a checkpoint that was written there for a trial does not come back ({error}); "
      "give another path"
    ) from None
  except OSError as error:
    if is_full(error):
      raise no_room(workdir) from None
    raise UserError(
      f"--workdir={workdir}: no checkpoint can be written there ({error.strerror or error}); give another "
      "path"
    ) from None
  finally:
    if lead:
      if place.exists():
        place.rmtree()
      for path in made:
        if path.is_dir() and not any(path.iterdir()):
          path.rmdir()
