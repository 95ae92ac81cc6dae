"""Runs that go on, or stop early: the same parameters as if they had been meant so from the start."""

import json
import shlex
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from iou_det.config import base_config
from iou_det.errors import UserError
from iou_det.storage import read_json
from iou_det.training.loop import train
from iou_det.training.summary import summary
from iou_det.weights.load import load_detector
from iou_det.workdir.run import check_workdir
from tests.command import iou_det
from tests.tiny import tiny_config


def rows(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def run(shapes_folder, workdir, **changes):
  config = tiny_config(shapes_folder)
  config.train.update(changes)
  return train(config, workdir, devices=jax.devices()[:1])


def test_more_epochs_equal_a_longer_run_and_it_stops_early(reference, shapes_folder, tmp_path, caplog):
  """The finished run of 2 epochs, as if its first was the best by far, goes on: the third is its last."""
  whole, longer = tmp_path / "whole", tmp_path / "longer"
  run(shapes_folder, whole, epochs=3)
  shutil.copytree(reference[0], longer)
  lines = [row | {"val/AP": 0.99} if row["step"] == 4 and "val/AP" in row else row for row in rows(longer)]
  lines = [{name: value for name, value in row.items() if name != "crc32"} for row in lines]
  (longer / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
  with caplog.at_level("INFO"):
    metrics = run(shapes_folder, longer, epochs=4, stop_after=2)
  assert "2 evaluations without a higher AP than 0.990 of step 4: the run is finished" in caplog.text
  params = [jax.device_get(load_detector(w).variables["params"]) for w in (whole, longer)]
  jax.tree.map(np.testing.assert_array_equal, *params)
  steps = {p.name for p in (longer / "checkpoints").iterdir() if p.name.isdigit()}
  assert steps == {"4", "8", "12"}  # the last two, and the best
  assert metrics["step"] == read_json(longer / "eval/val/metrics.json", "")["step"] == 12
  assert [row["step"] for row in rows(longer) if "val/AP" in row] == [4, 8, 12]
  assert read_json(longer / "config.json", "")["train"]["epochs"] == 4

  # Given again it trains no step and says so; fewer epochs than were trained are refused.
  before = rows(longer)
  caplog.clear()
  with caplog.at_level("INFO"):
    again = run(shapes_folder, longer, epochs=4, stop_after=2)
  assert "the run is finished (train.stop_after=2; 0 trains on)" in caplog.text
  assert again == json.loads(json.dumps(metrics)) and rows(longer) == before
  with pytest.raises(
    UserError, match=r"trained for 12 steps.*epochs=1 are 4; give --config.train.epochs=3 or"
  ):
    run(shapes_folder, longer, epochs=1)
  assert read_json(longer / "config.json", "")["train"]["epochs"] == 4


def test_the_summary_says_best_and_last_and_its_command_runs_as_it_stands(reference, tmp_path):
  workdir = epath.Path(tmp_path / "a run")
  shutil.copytree(reference[0], workdir)
  scored = {row["step"]: row for row in rows(reference[0]) if "val/AP" in row}
  best = max(scored, key=lambda step: (scored[step]["val/AP"], step))
  lines = summary(workdir, "val", 251.0).splitlines()
  for name, step in (("best", best), ("last", 8)):
    ap, ap50, ap75 = (scored[step][f"val/{f}"] for f in ("AP", "AP50", "AP75"))
    assert f"{name}  step {step}: AP {ap:.3f}, AP50 {ap50:.3f}, AP75 {ap75:.3f}" in lines
  assert "time  4 min (this start)" in lines and "checkpoints/ (steps 4, 8)" in lines[3]
  predict, report = (shlex.split(line[6:]) for line in lines[-2:])
  assert report == ["iou-det", "report", f"--workdirs={workdir}", f"--out={workdir}/report"]
  done = iou_det(*predict[1:])
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "a run/pictures/detections.json").exists()


def stored(workdir, **changes):
  """A workdir with nothing but a config.json; the config."""
  config = base_config()
  config.data.path = "shapes"
  config.train.update(changes)
  workdir.mkdir()
  (workdir / "config.json").write_text(json.dumps(config.to_dict()))
  return config


def test_a_cosine_schedule_cannot_be_prolonged_and_the_refusal_says_what_can(tmp_path):
  workdir = tmp_path / "a run"
  config = stored(workdir, schedule="cosine", epochs=1)
  config.train.epochs = 2
  with pytest.raises(UserError) as error:
    check_workdir(workdir, config)
  text = str(error.value)
  assert "train.epochs: 1 != 2" in text and "cosine" in text and "\n" not in text
  assert f"'--config.model.init={workdir}' '--workdir={workdir}_more'" in text
  assert f"--config.train.schedule=step '--config.train.decay_epochs=()' '--workdir={workdir}_step'" in text


def test_the_step_schedule_can_unless_its_rates_change(tmp_path):
  config = stored(tmp_path / "w", epochs=12, decay_epochs=(8, 11))
  config.train.epochs = 24
  check_workdir(tmp_path / "w", config)
  config.train.decay_epochs = (16, 22)
  with pytest.raises(UserError, match=r"decay_epochs: \[8, 11\] != \[16, 22\].*model.init=.*trains on"):
    check_workdir(tmp_path / "w", config)
  config.train.decay_epochs = (8, 11)
  config.loss.eta = 1.0
  with pytest.raises(UserError, match=r"belongs to another config \(there != here: loss.eta"):
    check_workdir(tmp_path / "w", config)
