"""The loop on tiny shapes: devices do not change the numbers, a kill does not change the parameters."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from iou_det.config_args import read_config_file
from iou_det.data import open_dataset
from iou_det.data.pipeline import train_batches
from iou_det.data.plan import make_plan
from iou_det.data.shapes import Shapes, export_coco
from iou_det.errors import UserError
from iou_det.evaluation import coco
from iou_det.forms import ANY, BY_PLATFORM, forms
from iou_det.network import make_model
from iou_det.parallel import device_mesh, to_device
from iou_det.storage import read_json
from iou_det.training.loop import train
from iou_det.training.step import create_state, make_train_step
from iou_det.weights.load import load_detector
from iou_det.workdir.checkpoints import has_checkpoint
from tests.tiny import tiny_config

AS_ON_GPUS = ANY._replace(kernel_order=BY_PLATFORM["gpu"].kernel_order)
CONFIGS = Path(__file__).parents[2] / "configs"

# In a process of its own, so that it can be killed.
PROGRAM = """
import sys
from absl import flags
flags.FLAGS.mark_as_parsed()
import jax
from iou_det.training.loop import train
from tests.tiny import tiny_config
train(tiny_config(sys.argv[2]), sys.argv[1], devices=jax.devices()[:1])
"""


def parameters(workdir, step="last"):
  return jax.device_get(load_detector(workdir, step).variables["params"])


def rows(workdir):
  return [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def distance(a, b):
  return float(optax.tree.norm(jax.tree.map(lambda x, y: x.astype(np.float64) - y, a, b)))


def test_run_directory(reference):
  workdir, metrics = reference
  assert {"config.json", "metrics.jsonl", "tensorboard", "checkpoints", "eval"} <= {
    p.name for p in workdir.iterdir()
  }
  written = read_json(workdir / "eval/val/metrics.json", "")
  assert written == json.loads(json.dumps(metrics)) | {"detections_crc32": written["detections_crc32"]}
  logged = rows(workdir)
  train_rows = [row for row in logged if "loss" in row]
  assert [row["step"] for row in train_rows] == [1, 2, 4, 6, 8]
  for name in (
    "loss_classification",
    "loss_localization",
    "learning_rate",
    "gradient_norm",
    "positives_per_image",
    "images_per_second",
    "input_wait_share",
    "epoch",
  ):
    assert all(np.isfinite(row[name]) for row in train_rows), name
  assert [row["step"] for row in logged if "val/AP" in row] == [4, 8]


def three_steps(config, mesh):
  """Losses and parameters of the first three steps on a mesh."""
  source = open_dataset(config.data.path, "train")
  plan = make_plan(source, config)
  model = make_model(config, len(source.categories))
  state, optimizer = create_state(config, model, plan.steps_per_epoch, mesh, source.categories)
  step = make_train_step(config, model, optimizer, plan.steps_per_epoch, mesh, state)
  placed = jax.tree.map(lambda x: x.format, state)
  losses, states = [], [jax.device_get(state.params)]
  for batch, portrait in train_batches(source, plan, config.data, range(3), (0, 1)):
    state, metrics = step(state, to_device(batch, mesh), portrait)
    losses.append([float(metrics[k]) for k in ("loss", "gradient_norm", "positives_per_image")])
    states.append(jax.device_get(state.params))
  assert jax.tree.map(lambda x: x.format, state) == placed, "the state wandered"
  assert orders(state) == {forms(mesh).kernel_order or (0, 1, 2, 3)}
  assert step._cache_size() == 1
  return losses, states


def orders(variables):
  """Of the axes of all kernels in memory."""
  return {x.format.layout.major_to_minor for x in jax.tree.leaves(variables) if x.ndim == 4}


def mesh_config(shapes_folder):
  """Without group norm and with two levels: compiles in half the time."""
  config = tiny_config(shapes_folder)
  config.model.update(norm="frozen_bn", min_level=4)
  return config


def test_eight_devices_give_the_losses_and_parameters_of_one(shapes_folder, monkeypatch):
  config = mesh_config(shapes_folder)
  one_device = three_steps(config, device_mesh(8, jax.devices()[:1]))
  monkeypatch.setitem(BY_PLATFORM, "cpu", AS_ON_GPUS)
  losses, states = three_steps(config, device_mesh(8))
  np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
  # To float32 rounding, measured against how far training moved. (After some more steps a ReLU somewhere
  # falls on the other side of 0, and rounding is no longer all that differs.)
  start, *ours = one_device[1]
  for one, many in zip(ours, states[1:], strict=True):
    assert distance(one, many) < 1e-4 * distance(one, start)


def test_resuming_after_kill_9_is_bit_identical(reference, shapes_folder, tmp_path):
  workdir, _ = reference
  killed = subprocess.Popen(
    [sys.executable, "-c", PROGRAM, str(tmp_path), str(shapes_folder)],
    env=os.environ | {"PYTHONPATH": os.getcwd()},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  deadline = time.monotonic() + 240
  while not (tmp_path / "checkpoints" / "4").is_dir():
    assert killed.poll() is None and time.monotonic() < deadline, "it ended before the first checkpoint"
    time.sleep(0.02)
  killed.send_signal(signal.SIGKILL)
  killed.wait()
  steps = {p.name for p in (tmp_path / "checkpoints").iterdir()}
  assert "8" not in steps, "it was killed too late to show anything"
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 7, "loss"')  # what a kill in the middle of a line leaves
  config = tiny_config(shapes_folder)
  config.train.profile_steps = (3, 6)  # of which it has done 3 and 4
  train(config, tmp_path, devices=jax.devices()[:1])
  assert_same(parameters(workdir), parameters(tmp_path))
  assert [r["step"] for r in rows(tmp_path) if "loss" in r][-2:] == [6, 8]
  (profile,) = tmp_path.glob("tensorboard/plugins/profile/*/*.xplane.pb")  # where TensorBoard looks
  assert b"train_step" in profile.read_bytes()


def test_restore_on_another_number_of_devices_and_in_another_order(
  reference, shapes_folder, tmp_path, monkeypatch
):
  workdir, _ = reference
  train(tiny_config(shapes_folder), tmp_path, devices=jax.devices())
  shutil.rmtree(tmp_path / "checkpoints" / "8")
  saved = load_detector(tmp_path)
  assert saved.trained_steps == 4
  assert len(jax.tree.leaves(saved.params)[0].sharding.device_set) == 8
  monkeypatch.setitem(BY_PLATFORM, "cpu", AS_ON_GPUS)
  train(tiny_config(shapes_folder), tmp_path, devices=jax.devices()[:1])
  assert_same(jax.device_get(saved.variables["params"]), parameters(tmp_path, "4"))
  as_saved = load_detector(tmp_path)
  monkeypatch.undo()
  assert orders(as_saved.variables) == {(3, 0, 1, 2)}
  assert orders(load_detector(tmp_path).variables) == {(0, 1, 2, 3)}
  assert_same(jax.device_get(as_saved.variables["params"]), parameters(tmp_path))
  resumed, uninterrupted = (
    {r["step"]: r["loss"] for r in rows(w) if "loss" in r} for w in (tmp_path, workdir)
  )
  np.testing.assert_allclose(resumed[8], uninterrupted[8], rtol=1e-3)


@pytest.fixture
def scorers(monkeypatch):
  """The backend of every scoring."""
  made, scorer = [], coco._scorer
  monkeypatch.setattr(coco, "_scorer", lambda *args: made.append(args[-1]) or scorer(*args))
  return made


def test_finished_run_returns_its_metrics_and_another_config_is_refused(
  reference, shapes_folder, scorers, caplog
):
  workdir, metrics = reference
  with caplog.at_level("INFO"):
    again = train(tiny_config(shapes_folder), workdir, devices=jax.devices()[:1])
  assert again == json.loads(json.dumps(metrics))
  assert scorers == ["hotcoco"]  # "auto" in an environment that has it
  assert caplog.text.count("hotcoco scores the evaluations (config.eval.backend=auto)") == 1
  with pytest.raises(UserError, match=r"another config.*loss.eta: 1.5 != 0.0"):
    train(tiny_config(shapes_folder, eta=0.0), workdir, devices=jax.devices()[:1])


def test_other_data_in_the_same_workdir_are_refused(reference, shapes_folder, tmp_path):
  export_coco(Shapes("train", images=20, height=64, width=96), tmp_path)
  shutil.copytree(shapes_folder / "val", tmp_path / "val")
  shutil.copy(shapes_folder / "annotations/instances_val.json", tmp_path / "annotations")
  message = r"trained on other data \(4 categories and 4 steps an epoch; .* 4 and 3"
  with pytest.raises(UserError, match=message):
    train(tiny_config(tmp_path), reference[0], devices=jax.devices()[:1])
  config = tiny_config(tmp_path)
  config.data.val_split = "dev"  # what is wrong with the others is not all that is said
  with pytest.raises(UserError, match=rf"no split 'dev'; .* was trained on {shapes_folder}\)"):
    train(config, reference[0], devices=jax.devices()[:1])
  # As many of the same names: only the boxes differ.
  export_coco(Shapes("train", images=32, height=64, width=96, seed=1), tmp_path)
  with pytest.raises(UserError, match=r"trained on other data: image ids, sizes, boxes"):
    train(tiny_config(tmp_path), reference[0], devices=jax.devices()[:1])


@pytest.mark.parametrize("end, message", [(100, "or not whole"), (0, "or not whole"), ("[]", "no settings")])
def test_damaged_config_is_one_clear_error(reference, tmp_path, end, message):
  whole = (reference[0] / "config.json").read_text()
  (tmp_path / "config.json").write_text(end if isinstance(end, str) else whole[:end])
  with pytest.raises(UserError, match=rf"config.json .*{message}"):
    load_detector(tmp_path)


def test_loss_that_is_not_finite_stops_with_step_and_images(shapes_folder, tmp_path):
  config = tiny_config(shapes_folder)
  config.train.update(learning_rate=1e12, warmup_steps=0, clip_norm=1e30)
  with pytest.raises(UserError, match=r"step \d+: the loss is (nan|inf).*images with ids \d+"):
    train(config, tmp_path, devices=jax.devices()[:1])
  assert not has_checkpoint(tmp_path)


def test_bad_settings_leave_no_trace(shapes_folder, tmp_path, monkeypatch):
  config = tiny_config(shapes_folder)
  config.train.batch_size = 12
  with pytest.raises(UserError, match="multiples of 8"):
    train(config, tmp_path / "w")
  config = tiny_config(shapes_folder)
  config.data.max_boxes = 1
  with pytest.raises(UserError, match="max_boxes"):
    train(config, tmp_path / "w", devices=jax.devices()[:1])
  config = tiny_config(shapes_folder)
  config.data.val_split = "dev"
  with pytest.raises(UserError, match="dev"):
    train(config, tmp_path / "w", devices=jax.devices()[:1])
  config = tiny_config(shapes_folder)
  config.eval.backend = "hotcoco"
  monkeypatch.setitem(sys.modules, "hotcoco", None)  # not installed
  with pytest.raises(UserError, match=r"'hotcoco' is not installed; pip install .*fast-eval"):
    train(config, tmp_path / "w", devices=jax.devices()[:1])
  assert not (tmp_path / "w").exists()


def test_damaged_checkpoint_is_one_clear_error(reference, tmp_path):
  workdir, _ = reference
  copy = tmp_path / "copy"
  shutil.copytree(workdir, copy)
  for file in (copy / "checkpoints" / "8" / "state").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  with pytest.raises(UserError, match=r"checkpoints/8 cannot be read.*other steps there: 4; give one"):
    load_detector(copy, "8")
  assert load_detector(copy, "4").trained_steps == 4
  with pytest.raises(UserError, match="last, best or a saved step"):
    load_detector(copy, "7")


def test_the_papers_recipe_trains_on_both_orientations(tmp_path, scorers):
  """Frozen batch norm, legacy anchors, sums per level, at toy size; two programs, landscape and portrait."""
  for split, images in (("train", 24), ("val", 5)):
    export_coco(Shapes(split, images=images, height=64, width=96, portrait_share=0.5), tmp_path / "data")
  config = read_config_file(CONFIGS / "retinanet.py", "eta=1.5,lambd=1.5")
  config.model.update(depth=18, width=8, fpn_channels=16, head_convs=1, max_level=5, pretrained="")
  config.data.update(
    path=str(tmp_path / "data"), train_split="train", val_split="val", short=64, long=96, canvas=(64, 96),
    max_boxes=16, threads=2)  # fmt: skip
  config.train.update(batch_size=4, epochs=1, warmup_steps=2, decay_epochs=(), log_every=1)
  config.eval.update(batch_size=2, score_threshold=0.001, backend="pycocotools")
  metrics = train(config, tmp_path / "run", devices=jax.devices()[:1])
  assert metrics["images"] == 5 and scorers == ["pycocotools"]
  losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
  assert len(losses) >= 6 and np.isfinite(losses).all()  # the loop asserts that at most two were compiled
