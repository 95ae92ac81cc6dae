"""Runs of earlier versions, and that what is evaluated and predicted with are the chosen step's parameters.

tests/golden/workdir is a run that commit b4a70ee made (see make_workdir.py): config fields were added since.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from iou_det.config import FIELDS
from iou_det.data import open_dataset
from iou_det.errors import UserError
from iou_det.network import variable_shapes
from iou_det.parallel import abstract, device_mesh
from iou_det.training.loop import train
from iou_det.training.validation import mean_loss, validation_loss
from iou_det.weights.load import load_detector
from iou_det.workdir.checkpoints import Checkpoints
from iou_det.workdir.run import read_config
from tests.same import assert_same_detections
from tests.tiny import tiny_config

GOLDEN = Path(__file__).parents[1] / "golden" / "workdir"


def iou_det(*arguments):
  command = [sys.executable, "-c", "from iou_det.cli import main; main()", *map(str, arguments)]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return done.stdout


def read(path):
  return json.loads(path.read_text())


@pytest.fixture
def older_run(tmp_path, shapes_folder):
  """A copy of the golden run, on data that are there."""
  workdir = tmp_path / "run"
  shutil.copytree(GOLDEN, workdir)
  config = read(workdir / "config.json")
  config["data"]["path"] = str(shapes_folder)
  (workdir / "config.json").write_text(json.dumps(config))
  return workdir


def test_an_older_run_is_evaluated_and_predicted_with(older_run, tmp_path, shapes_folder):
  stored = read(older_run / "config.json")
  assert any(name.split(".")[-1] not in stored[name.split(".")[0]] for name in FIELDS if "." in name)
  (older_run / "eval" / "val" / "metrics.json").unlink()
  iou_det("eval", f"--workdir={older_run}")
  expected = read(GOLDEN / "eval" / "val" / "metrics.json")
  metrics = read(older_run / "eval" / "val" / "metrics.json")
  assert metrics.keys() == expected.keys() | {"crc32", "detections_crc32"}
  assert metrics["step"] == 4
  np.testing.assert_allclose(metrics["AP"], expected["AP"], rtol=0.02)
  detections = read(GOLDEN / "eval" / "val" / "detections.json")
  assert_same_detections(read(older_run / "eval" / "val" / "detections.json"), detections)

  images = sorted((shapes_folder / "val").iterdir())[:3]
  iou_det("predict", f"--workdir={older_run}", f"--out={tmp_path / 'out'}", *images)
  rows = read(tmp_path / "out" / "detections.json")
  ids = {Path(image).stem: int(Path(image).stem) for image in images}
  found = [{"image_id": ids[Path(row["file"]).stem], **row} for row in rows]
  assert_same_detections(found, [d for d in detections if d["image_id"] in ids.values()])


def test_an_older_run_is_resumed(older_run):
  train(read_config(older_run), older_run, devices=jax.devices()[:1])
  expected = read(GOLDEN / "expected.json")
  rows = [json.loads(line) for line in (older_run / "metrics.jsonl").read_text().splitlines()]
  losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
  assert sorted(losses) == list(range(1, 9))
  for step, loss in expected["losses"].items():
    np.testing.assert_allclose(losses[int(step)], loss, rtol=1e-4)
  assert read(older_run / "eval" / "val" / "metrics.json")["AP"] == pytest.approx(
    expected["metrics"]["AP"], rel=0.1
  )


def averaging_config(shapes_folder):
  """With all that a run may carry along: AdamW's moments, an average; and steps of two parts."""
  config = tiny_config(shapes_folder)
  config.train.update(ema=0.9, optimizer="adamw", learning_rate=0.004, batch_size=4, accumulate=2)
  return config


@pytest.fixture(scope="module")
def averaging_run(tmp_path_factory, shapes_folder):
  workdir = tmp_path_factory.mktemp("averaging")
  train(averaging_config(shapes_folder), workdir, devices=jax.devices()[:1])
  return workdir


@pytest.mark.parametrize("averaged", [False, True], ids=["parameters", "averages"])
def test_evaluation_and_prediction_use_the_parameters_of_the_step(request, averaged, tmp_path):
  """The oracle reads the checkpoints by Orbax alone and detects with what lies there."""
  workdir = tmp_path / "run"
  made = request.getfixturevalue("averaging_run") if averaged else request.getfixturevalue("reference")[0]
  shutil.copytree(made, workdir)
  detector = load_detector(workdir)
  source = open_dataset(detector.config.data.path, "val")
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  logged = {row["step"]: row["val/AP"] for row in rows if "val/AP" in row}
  losses = {row["step"]: row["val/loss"] for row in rows if "val/AP" in row}
  detector.also = validation_loss(detector.config, detector.model, detector.mesh, source)
  expected = {}
  with ocp.PyTreeCheckpointer() as reader:
    for step in (4, 8):
      stored = jax.device_get(reader.restore(workdir / "checkpoints" / str(step) / "state"))
      params = stored["opt_state"]["average"]["params"] if averaged else stored["params"]
      variables = {"params": params, "batch_stats": stored.get("batch_stats") or {}}
      jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(load_detector(workdir, str(step)).variables), variables
      )
      detector.variables = variables
      metrics, results = detector.evaluate(source)
      expected[step] = list(results.rows())
      # What training scored at this step were this step's parameters too.
      assert logged[step] == pytest.approx(metrics["AP"], rel=1e-3, abs=1e-5)
      assert losses[step] == pytest.approx(mean_loss(detector.also.values)["loss"], rel=1e-4)
  assert abs(logged[4] - logged[8]) > 1e-4, (logged, "or the scores show nothing")
  with pytest.raises(AssertionError):  # or nothing below would show anything
    assert_same_detections(expected[4], expected[8])

  shutil.rmtree(workdir / "eval")
  iou_det("eval", f"--workdir={workdir}", "--step=4")
  assert read(workdir / "eval" / "val" / "metrics.json")["step"] == 4
  assert_same_detections(read(workdir / "eval" / "val" / "detections.json"), expected[4])

  out = tmp_path / "out"
  iou_det("predict", f"--workdir={workdir}", "--step=4", f"--out={out}", "--split=val")
  names = dict(zip(source.annotations.file_name, source.annotations.image_id.tolist(), strict=True))
  found = [{"image_id": names[row["file"]], **row} for row in read(out / "detections.json")]
  assert_same_detections(found, expected[4])


def test_a_run_with_an_average_is_resumed_to_the_bit(averaging_run, shapes_folder, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(averaging_run, workdir)
  shutil.rmtree(workdir / "checkpoints" / "8")
  train(averaging_config(shapes_folder), workdir, devices=jax.devices()[:1])
  with ocp.PyTreeCheckpointer() as reader:
    states = [
      jax.device_get(reader.restore(w / "checkpoints" / "8" / "state")) for w in (averaging_run, workdir)
    ]
  jax.tree.map(np.testing.assert_array_equal, *states)
  params, average = states[0]["params"], states[0]["opt_state"]["average"]["params"]
  assert not any(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (params, average)), strict=True))


def test_an_average_that_is_not_there_is_one_clear_error(reference, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(reference[0], workdir)
  config = read(workdir / "config.json")
  config["train"]["ema"] = 0.9
  (workdir / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match=r"train.ema: 0.9 != 0.0\); restore config.json"):
    load_detector(workdir)


@pytest.mark.parametrize("head_convs", [0, 2])
def test_a_checkpoint_of_another_network_is_refused(older_run, head_convs):
  """More arrays than the network has, or fewer: neither may be passed over, also where nothing is noted."""
  config = read_config(older_run)
  config.model.head_convs = head_convs
  (older_run / "config.json").write_text(json.dumps(config.to_dict()))
  with pytest.raises(UserError, match=rf"model.head_convs: {head_convs} != 1\); restore config.json"):
    load_detector(older_run)
  shapes = abstract(device_mesh(1, jax.devices()[:1]), variable_shapes(config, 3))
  with pytest.raises(UserError, match=r"cannot be read .*another network than config.json's"):
    Checkpoints(older_run).restore_variables(4, shapes)


def test_the_optimizers_state_is_not_read(tmp_path):
  def bytes_read(function):
    count = lambda: int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])
    before = count()
    function()
    return count() - before

  large = jax.random.normal(jax.random.key(0), (1000, 1000))  # 4 MB that cannot be compressed
  state = {"params": {"w": large}, "batch_stats": {}, "opt_state": {"w": large + 1.0}}
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, state, {})
  checkpoints.close()
  mesh = device_mesh(1, jax.devices()[:1])
  one, other = Checkpoints(tmp_path, read_only=True), Checkpoints(tmp_path, read_only=True)
  whole = bytes_read(lambda: one.restore(1, abstract(mesh, state)))
  some = {name: state[name] for name in ("params", "batch_stats")}
  assert bytes_read(lambda: other.restore_variables(1, abstract(mesh, some))) < 0.7 * whole
