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
import pytest

from iou_det.errors import UserError
from iou_det.training.loop import train
from iou_det.training.state import load_run
from tests.tiny import tiny_config

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
  return jax.device_get(load_run(workdir, step).state.params)


def rows(workdir):
  return [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def assert_same(a, b, **tolerance):
  compare = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
  jax.tree.map(lambda x, y: compare(x, y, **tolerance), a, b)


def test_run_directory(reference):
  workdir, metrics = reference
  assert {"config.json", "metrics.jsonl", "tensorboard", "checkpoints", "eval"} <= {
    p.name for p in workdir.iterdir()
  }
  assert json.loads((workdir / "eval/val/metrics.json").read_text()) == json.loads(json.dumps(metrics))
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


def test_eight_devices_give_the_same_losses_and_parameters(reference, shapes_folder, tmp_path):
  workdir, _ = reference
  train(tiny_config(shapes_folder), tmp_path, devices=jax.devices())
  one, eight = rows(workdir), rows(tmp_path)
  for name in ("loss", "gradient_norm", "positives_per_image"):
    a, b = ([r[name] for r in logged if name in r] for logged in (one, eight))
    np.testing.assert_allclose(b[0], a[0], rtol=1e-5)
    np.testing.assert_allclose(b, a, rtol=2e-3)  # eight steps of training amplify the first one's rounding
  assert_same(parameters(workdir), parameters(tmp_path), rtol=1e-3, atol=1e-5)


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
  train(tiny_config(shapes_folder), tmp_path, devices=jax.devices()[:1])
  assert_same(parameters(workdir), parameters(tmp_path))
  assert [r["step"] for r in rows(tmp_path) if "loss" in r][-2:] == [6, 8]


def test_restore_on_another_number_of_devices(reference, shapes_folder, tmp_path):
  workdir, _ = reference
  train(tiny_config(shapes_folder, epochs=1), tmp_path, devices=jax.devices())
  # Its first epoch is that of the reference: with a constant learning rate nothing else depends on `epochs`.
  (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
  train(tiny_config(shapes_folder), tmp_path, devices=jax.devices()[:1])
  assert load_run(tmp_path).step == 8
  assert_same(parameters(workdir), parameters(tmp_path), rtol=1e-3, atol=1e-5)


def test_finished_run_returns_its_metrics_and_another_config_is_refused(reference, shapes_folder):
  workdir, metrics = reference
  again = train(tiny_config(shapes_folder), workdir, devices=jax.devices()[:1])
  assert again == json.loads(json.dumps(metrics))
  with pytest.raises(UserError, match=r"another config.*loss.eta: 1.5 != 0.0"):
    train(tiny_config(shapes_folder, eta=0.0), workdir, devices=jax.devices()[:1])


def test_loss_that_is_not_finite_stops_with_step_and_images(shapes_folder, tmp_path):
  config = tiny_config(shapes_folder)
  config.train.update(learning_rate=1e12, warmup_steps=0, clip_norm=1e30)
  with pytest.raises(UserError, match=r"step \d+: the loss is (nan|inf).*images with ids \d+"):
    train(config, tmp_path, devices=jax.devices()[:1])
  assert not any((tmp_path / "checkpoints").iterdir())


def test_bad_settings_leave_no_trace(shapes_folder, tmp_path):
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
  assert not (tmp_path / "w").exists()


def test_damaged_checkpoint_is_one_clear_error(reference, tmp_path):
  workdir, _ = reference
  copy = tmp_path / "copy"
  shutil.copytree(workdir, copy)
  for file in (copy / "checkpoints" / "8" / "state").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  with pytest.raises(UserError, match=r"checkpoints/8 cannot be read.*other steps there: 4"):
    load_run(copy)
  assert load_run(copy, "4").step == 4
  with pytest.raises(UserError, match="last, best or a saved step"):
    load_run(copy, "7")
