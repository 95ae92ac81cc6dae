"""Every file of a checkpoint deleted, cut or changed: what is read is what was saved, or it is not used."""

import errno
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from iou_det.errors import UserError
from iou_det.parallel import abstract, device_mesh
from iou_det.storage import read_json, write_json
from iou_det.training.loop import train
from iou_det.weights.load import load_detector
from iou_det.weights.saved import read_saved, write_saved
from iou_det.workdir.checkpoints import Checkpoints
from iou_det.workdir.digest import digests
from tests.tiny import tiny_config


def state_of(step):
  key = jax.random.key(step)
  params = {"kernel": jax.random.normal(key, (40, 30)), "bias": jnp.full(3, step / 7)}
  return {"params": params, "step": jnp.int32(step)}


ABSTRACT = abstract(device_mesh(1, jax.devices()[:1]), state_of(0))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
  """A workdir with checkpoints of steps 3 and 6."""
  workdir = tmp_path_factory.mktemp("two")
  checkpoints = Checkpoints(workdir, keep=2)
  for step in (3, 6):
    checkpoints.save(step, state_of(step), {"made": [step, "Schritt"]})
  checkpoints.close()
  return workdir


def resume(workdir):
  return Checkpoints(workdir).resume(ABSTRACT, lambda run: None)


def files(folder):
  return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def flip(path, place=0.5):
  content = bytearray(path.read_bytes())
  content[int(len(content) * place)] ^= 0x10
  path.write_bytes(content)


DAMAGES = {
  "deleted": lambda path: path.unlink(),
  "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
  "emptied": lambda path: path.write_bytes(b""),
  "flipped": flip,
  "flipped near its end": lambda path: flip(path, 0.97),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_the_last_checkpoint_changes_no_number(damage, two_steps, tmp_path):
  """The state of step 6 to the bit, or that of step 3 and the damaged folder set aside."""
  used = []
  for i, file in enumerate(files(two_steps / "checkpoints" / "6")):
    if not (two_steps / "checkpoints/6" / file).stat().st_size:
      continue
    workdir = tmp_path / str(i)
    shutil.copytree(two_steps, workdir)
    DAMAGES[damage](workdir / "checkpoints" / "6" / file)
    left = files(workdir / "checkpoints" / "6")
    state = resume(workdir)
    step = int(state["step"])
    jax.tree.map(np.testing.assert_array_equal, state, state_of(step))
    assert step in (3, 6)
    used.append(step)
    if step == 3:
      assert files(workdir / "checkpoints_damaged" / "6") == left  # nothing is deleted
      assert Checkpoints(workdir).steps() == [3]
    else:
      assert not (workdir / "checkpoints_damaged").exists()
      if file.name == "_CHECKPOINT_METADATA":  # which Orbax reads before it saves
        again = Checkpoints(workdir, keep=3)
        again.save(9, state_of(9), {})
        again.close()
        assert again.steps() == [3, 6, 9]
  assert used.count(3) >= 3  # or nothing was damaged that matters


def test_a_folder_that_was_half_renamed_is_set_aside_whole(two_steps, tmp_path, caplog):
  workdir = tmp_path / "run"
  shutil.copytree(two_steps, workdir)
  last = workdir / "checkpoints" / "6"
  half = workdir / "checkpoints" / "6.orbax-checkpoint-tmp"
  half.mkdir()
  (last / "commit_success.txt").rename(half / "commit_success.txt")
  (last / "run").rename(half / "run")
  with caplog.at_level(logging.ERROR, "absl"):
    assert int(resume(workdir)["step"]) == 3
  assert "checkpoints/6 cannot be read (FileNotFoundError: it has no commit_success.txt)" in caplog.text
  assert "checkpoints_damaged/6, and the run goes on from step 3" in caplog.text
  there = [p.name for p in (workdir / "checkpoints_damaged").iterdir()]
  assert sorted(there) == ["6", "6.orbax-checkpoint-tmp"]
  assert (workdir / "checkpoints_damaged/6.orbax-checkpoint-tmp/run").is_dir()


def test_a_save_that_was_cut_off_is_no_damage(two_steps, tmp_path):
  """Where folders are not renamed, the folder has its name before its content."""
  workdir = tmp_path / "run"
  shutil.copytree(two_steps, workdir)
  last = workdir / "checkpoints" / "6"
  (last / "commit_success.txt").unlink()
  about = json.loads((last / "_CHECKPOINT_METADATA").read_text())
  (last / "_CHECKPOINT_METADATA").write_text(json.dumps(about | {"commit_timestamp_nsecs": None}))
  assert int(resume(workdir)["step"]) == 3
  assert not (workdir / "checkpoints_damaged").exists()


def test_two_damaged_in_a_row_stop_the_run(two_steps, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(two_steps, workdir)
  for step in ("3", "6"):
    shutil.rmtree(workdir / "checkpoints" / step / "state" / "d")
  before = files(workdir)
  with pytest.raises(UserError, match=r"checkpoints/6 cannot .*checkpoints/3 cannot .*nothing was changed"):
    resume(workdir)
  assert files(workdir) == before


def test_a_run_with_a_damaged_checkpoint_ends_as_without(reference, shapes_folder, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(reference[0], workdir)
  for part in (workdir / "checkpoints/8/state").rglob("d/*"):
    for place in range(100):  # in the parameters too, which are all that a detector reads
      flip(part, place / 100)

  # Whoever only reads takes the one before, changes nothing, and names the others.
  detector = load_detector(workdir)
  assert detector.trained_steps == 4
  with pytest.raises(UserError, match=r"checkpoints/8 cannot be read .*other steps there: 4; give one"):
    load_detector(workdir, "8")
  assert (workdir / "checkpoints/8").is_dir()

  train(tiny_config(shapes_folder), workdir, devices=jax.devices()[:1])
  assert (workdir / "checkpoints_damaged/8").is_dir()
  ends = [load_detector(w, "8").variables for w in (workdir, reference[0])]
  jax.tree.map(np.testing.assert_array_equal, *ends)


def test_digests_are_the_definition_and_do_not_depend_on_the_devices():
  rng = np.random.default_rng(0)
  arrays = {
    "float32": rng.normal(size=(8, 5, 3)).astype(np.float32), "int32": np.array(-7, np.int32),
    "bfloat16": rng.normal(size=(8, 3)).astype(ml_dtypes.bfloat16), "int8": np.arange(-4, 4, dtype=np.int8),
    "bool": np.array([True, False, True]), "empty": np.zeros((0, 3), np.float32)}  # fmt: skip
  expected = {}
  for name, array in arrays.items():
    words = array.reshape(-1).view(f"u{array.dtype.itemsize}").tolist()
    expected[name] = sum(word * (2 * i + 1) for i, word in enumerate(words)) % 2**32
  assert digests(jax.tree.map(jnp.asarray, arrays)) == expected
  mesh = Mesh(np.array(jax.devices()), ("x",))
  split = lambda x: NamedSharding(mesh, PartitionSpec("x") if x.ndim and x.shape[0] == 8 else PartitionSpec())
  assert digests({k: jax.device_put(x, split(x)) for k, x in arrays.items()}) == expected


def test_sealed_json_is_read_as_it_was_written_or_not_at_all(tmp_path):
  path, value = tmp_path / "a.json", {"w_loc": 3.049, "by": {"2": [1, None, "é"], "10": True}}
  write_json(path, value)
  assert read_json(path, "") == value
  whole = path.read_bytes()
  for place in range(len(whole) - 1):
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x01]) + whole[place + 1 :])
    try:
      read = read_json(path, "do it again")
    except UserError as error:
      assert "do it again" in str(error)
    else:  # a key of the seal's own, or space between
      assert {k: v for k, v in read.items() if k in value} == value
  path.write_text('{"w_loc": 2.0}')  # of an earlier version
  assert read_json(path, "") == {"w_loc": 2.0}


def test_an_exported_detector_is_read_as_it_was_written_or_not_at_all(reference, tmp_path):
  from iou_det.weights.load import read_detector

  path = tmp_path / "detector.safetensors"
  write_saved(path, read_detector(reference[0]))
  read_saved(path)
  whole = path.read_bytes()
  header = whole.index(b'"step"')
  for place in (len(whole) - 5, len(whole) // 2, header + 10):
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x04]) + whole[place + 1 :])
    with pytest.raises(UserError, match=r"damaged|not a whole"):
      read_saved(path)


def test_the_best_step_is_not_replaced_in_silence(two_steps, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(two_steps, workdir)
  (workdir / "metrics.jsonl").write_text('{"step": 3, "val/AP": 0.1}\n{"step": 6, "val/AP": 0.2}\n')
  assert Checkpoints(workdir).step_number("best") == 6
  (workdir / "checkpoints/6/commit_success.txt").unlink()
  with pytest.raises(UserError, match=r"checkpoints/6 has no commit_success.txt; there are 3 in"):
    Checkpoints(workdir).step_number("best")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "no answer"), ConnectionResetError("gone")])
def test_a_storage_that_does_not_answer_is_no_damage(two_steps, monkeypatch, error):
  def read(self, step):
    raise error

  monkeypatch.setattr(Checkpoints, "own_run_information", read)
  with pytest.raises(type(error)):
    Checkpoints(two_steps).last(Checkpoints(two_steps).run_information)
