"""Places that cannot keep checkpoints, or not enough of them, are told in one line; nothing is lost."""

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import psutil
import pytest
from etils import epath
from jax.sharding import SingleDeviceSharding

from iou_det import cli
from iou_det.errors import UserError
from iou_det.storage import on_object_store, shared_memory
from iou_det.training.loop import train
from iou_det.workdir import probe as probe_module
from iou_det.workdir.checkpoints import Checkpoints
from iou_det.workdir.metrics import read_metrics
from iou_det.workdir.probe import probe
from iou_det.workdir.run import check_workdir
from tests.tiny import tiny_config


def test_folders_are_not_renamed_where_buckets_are_mounted(tmp_path, monkeypatch):
  mount = SimpleNamespace(mountpoint=str(tmp_path), fstype="fuse.gcsfuse")
  root = SimpleNamespace(mountpoint="/", fstype="ext4")
  monkeypatch.setattr(psutil, "disk_partitions", lambda all: [root, mount])
  assert on_object_store(tmp_path / "run") and on_object_store(epath.Path("gs://bucket/run"))
  checkpoints = Checkpoints(tmp_path / "run")
  checkpoints.save(1, {"x": jax.numpy.ones(3)}, {})
  checkpoints.close()
  assert checkpoints.steps() == [1]
  monkeypatch.setattr(psutil, "disk_partitions", lambda all: [root])
  assert not on_object_store(tmp_path / "run")


def test_a_pattern_in_the_path_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"run\[lr=0.01\].* as \[ \] stand for a pattern"):
    check_workdir(tmp_path / "run[lr=0.01]", tiny_config(""))
  with pytest.raises(UserError, match="stand for a pattern"):
    probe(tmp_path / "a*" / "run")
  assert not any(tmp_path.iterdir())


def test_the_probe_finds_a_place_that_gives_nothing_back(tmp_path, monkeypatch):
  """Such a path is one: once this fails, Orbax reads there, and no path has to be refused."""
  monkeypatch.setattr(probe_module, "check_name", lambda workdir: None)
  with pytest.raises(UserError, match="does not come back"):
    probe(tmp_path / "a[b]" / "run")
  assert not any(tmp_path.iterdir())


def test_the_probe_leaves_what_was_there(tmp_path):
  probe(tmp_path / "new" / "run")
  assert not any(tmp_path.iterdir())
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "mine").touch()
  probe(tmp_path / "run")
  assert [p.name for p in tmp_path.rglob("*")] == ["run", "mine"]
  with pytest.raises(UserError, match="no checkpoint can be written there"):
    probe(tmp_path / "run" / "mine" / "below")


FILL = """
import sys, jax
from iou_det import cli
from iou_det.errors import UserError
from iou_det.workdir import checkpoints as module
cli.set_up_logging()
if len(sys.argv) > 2:  # what the check before does not see: a quota, others who write there
  module.room = lambda folder: 2**60
checkpoints = module.Checkpoints(sys.argv[1], keep=9)
try:
  for step in range(1, 9):
    state = {f"{i}": jax.random.normal(jax.random.key(99 * step + i), (2000,)) for i in range(50)}
    checkpoints.save(step, state, {"step": step})
  checkpoints.close()
except UserError as error:
  print(error)
"""


@pytest.fixture
def small_disk(tmp_path):
  """A folder on a file system of 1.5 MB."""
  place = tmp_path / "disk"
  place.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", place]
  if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("needs the right to mount a small file system")
  yield place
  subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("unseen", [[], ["unseen"]], ids=["seen before", "unseen"])
def test_a_full_disk_is_one_line_and_loses_nothing(unseen, small_disk):
  command = [sys.executable, "-c", FILL, small_disk, *unseen]
  done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
  assert done.stdout.startswith(f"no space left in {small_disk}"), done
  assert "earlier checkpoints are kept; make room" in done.stdout
  assert ("a checkpoint takes 0.7)" in done.stdout) == (not unseen)
  assert not done.stderr
  there = Checkpoints(small_disk, keep=9)
  steps = there.steps()
  assert steps == list(range(1, 1 + len(steps))) and 1 < len(steps) < 8
  shape = jax.ShapeDtypeStruct((2000,), "float32", sharding=SingleDeviceSharding(jax.devices()[0]))
  last, _, damaged = there.last(lambda step: there.restore(step, {f"{i}": shape for i in range(50)}))
  assert (last, damaged) == (steps[-1], {})
  subprocess.run(["mount", "-o", "remount,size=9m", small_disk], check=True)
  there.save(99, {"x": jax.numpy.ones(3)}, {})
  there.close()
  assert there.steps() == [*steps, 99]


def test_what_tensorstore_says_after_a_failed_save_is_held_back(monkeypatch):
  """It may come hundreds of times, or not at all: that depends on the moment."""
  shown = []
  monkeypatch.setattr(sys, "__unraisablehook__", shown.append)
  told = [SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "another")]
  for each in told:
    cli.show_unraisable(each)
  assert shown == told[1:]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_shared_memory_is_named(number):
  with pytest.raises(UserError, match=r"/dev/shm.*--shm-size=8g.*--config.data.workers=0"):
    with shared_memory("config.data.workers", " or --config.data.workers=0"):
      raise OSError(number, os.strerror(number))
  with pytest.raises(OSError, match=r"data/1.jpg"), shared_memory("config.data.workers"):
    raise OSError(number, os.strerror(number), "data/1.jpg")


def test_checkpoints_by_time_are_not_evaluated(shapes_folder, tmp_path):
  config = tiny_config(shapes_folder, epochs=1)
  config.train.update(checkpoint_minutes=1e-9, checkpoint_epochs=9, eval_epochs=9, keep_checkpoints=9)
  train(config, tmp_path, devices=jax.devices()[:1])
  assert Checkpoints(tmp_path).steps() == [1, 2, 3, 4]
  assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl") if "val/AP" in row] == [4]
