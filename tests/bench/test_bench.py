"""Every kind of bench at toy size: valid lines, sane figures; the table; bad input."""

import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from iou_det.bench import against, steps, synthetic
from iou_det.bench.input import OURS, USUAL, UsualLoader, bench_input
from iou_det.bench.steps import bench_eval, bench_predict
from iou_det.bench.synthetic import Case
from iou_det.bench.table import markdown, read_lines
from iou_det.data import open_dataset
from iou_det.data.pipeline import Example
from iou_det.errors import UserError
from iou_det.training.fit import device_memory
from iou_det.training.step import make_train_step
from tests.command import iou_det
from tests.tiny import tinier_config, tiny_config

KEYS = {
  "bench", "what", "by", "hardware", "versions", "shapes", "batch", "dtype", "warmup", "repeats",
  "calls_per_repeat", "seconds_median", "seconds_iqr", "images_per_second", "program_memory_bytes",
  "device_peak_bytes", "lower_seconds", "compile_seconds", "model_flops", "model_flops_per_second",
  "share_of_peak",
}  # fmt: skip


def lines(capsys):
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_train_reports_step_pieces_and_compilation(capsys, monkeypatch):
  config, flops = tinier_config("made up"), {}
  parts = steps.parts

  def cheap_parts(*arguments):  # lowered, which counts their FLOPs, but not compiled
    every = parts(*arguments)
    flops.update({k: jax.jit(f).lower(*a).cost_analysis()["flops"] for k, (f, *a) in every.items()})
    return {"assignment": every["assignment"]}

  monkeypatch.setattr(steps, "parts", cheap_parts)
  case = Case(config, 3, 4, 8, jax.devices()[:1])
  steps.bench_train(case, repeats=2, pieces=True, orientations=True, out=None)
  rows = {row["what"]: row for row in lines(capsys)}
  assert all(row.keys() >= KEYS for row in rows.values())
  step = rows["step"]
  assert step["images_per_second"] == pytest.approx(8 / step["seconds_median"])
  assert step["shapes"]["network_input"] == [64, 96] and step["shapes"]["boxes"] == 4
  assert np.isfinite([step["loss_first"], step["loss_last"]]).all()
  assert step["loss_first"] != step["loss_last"], "the state did not change: it was no training"
  # What is counted without compiling: the compiler saves some of it, and adds other.
  assert device_memory(config, 3, "cpu", 1).total == pytest.approx(step["program_memory_bytes"], rel=0.25)
  # Weights' and inputs' gradients cost a forward pass each.
  assert 2.5 < flops["network forward and backward"] / flops["network forward"] < 3.2
  assert 2.5 < flops["backbone forward and backward"] / flops["backbone forward"] < 3.2
  assert flops["backbone forward"] < flops["network forward"]
  assert step["model_flops"] == pytest.approx(flops["network forward and backward"], rel=0.2)
  assert flops["assignment"] < flops["loss with assignment, forward and backward"] < flops["network forward"]
  assert rows["assignment"]["seconds_median"] < step["seconds_median"]
  cold, cached = rows["compile both, cold"], rows["compile both, from the cache"]
  assert cached["compile_seconds"] < cold["compile_seconds"] / 2


def test_what_is_rematerialised_is_counted_once(monkeypatch):
  nothing = SimpleNamespace(memory_analysis=lambda: None)
  written, stated = {}, {}
  for remat in (False, True):
    config = tinier_config("made up")
    config.model.remat = remat
    case = Case(config, 3, 4, 8, jax.devices()[:1])
    with monkeypatch.context() as patch:
      patch.setattr(jax.stages.Lowered, "compile", lambda lowered: nothing)  # FLOPs are counted before it
      stated[remat] = case.compile_step().flops
    step = make_train_step(config, case.model, case.optimizer, 1000, case.mesh, case.state)
    written[remat] = step.lower(case.state, case.host, False).cost_analysis()["flops"]
  assert written[True] > 1.02 * written[False], "nothing is done again: this test shows nothing"
  assert stated == {False: written[False], True: written[False]}


def test_predict_reports_throughput_and_latency(capsys, tmp_path):
  out = tmp_path / "bench.jsonl"
  rows = bench_predict(tinier_config("made up"), 3, jax.devices()[:1], repeats=2, out=out)
  assert "called on a list / loop" in markdown(read_lines(out))
  *printed, called, loop, beside = lines(capsys)
  assert rows == printed
  assert [(r["what"], r["batch"]) for r in rows] == [("throughput", 8), ("latency", 1)]
  assert called["images_in_a_batch"] == loop["images_in_a_batch"] == 7, "20 images in 3 batches of at most 8"
  assert beside["ratio"] == pytest.approx(called["seconds_median"] / loop["seconds_median"])
  assert [r["hardware"]["devices"] for r in rows] == [1, 1]
  assert rows[0]["model_flops"] == pytest.approx(8 * rows[1]["model_flops"], rel=0.05)
  assert all(r.keys() >= KEYS and r["seconds_median"] > 0 for r in rows)


def test_eval_backends_agree(capsys):
  row = bench_eval(30, 1500, 5, repeats=2, out=None)
  *scored, last = lines(capsys)
  assert last == row and row["largest_difference_of_12_figures"] < 1e-9
  assert 0.1 < row["AP"] < 0.9, "nothing to tell the backends apart"
  assert [(r["by"], r["shapes"]["detections"]) for r in scored] == [("pycocotools", 1500), ("hotcoco", 1500)]
  assert row["ratio"] == pytest.approx(scored[0]["seconds_median"] / scored[1]["seconds_median"])


def test_input_pipelines_are_timed_over_the_same_number_of_images(shapes_folder, capsys):
  config = tiny_config(shapes_folder)
  rows = bench_input(config, 24, repeats=1, out=None)
  printed = lines(capsys)
  measured = [r for r in printed if "ratio" not in r]
  assert [r["by"] for r in measured] == ["opencv", "iou-det", "iou-det", "usual"]
  assert {(r["batch"], r["calls_per_repeat"]) for r in measured} == {(8, 3)}
  ours, usual = (next(r for r in measured if r["what"].startswith(name)) for name in (OURS, USUAL))
  rest = 2 * 2 * 4 + 16 * (16 + 4 + 1) + 3 * 4 + 1  # sizes; boxes, labels, valid; index, epoch, seed, example
  assert ours["bytes_to_device_per_image"] == 64 * 96 * 3 + rest
  assert usual["bytes_to_device_per_image"] == 4 * 64 * 96 * 3
  assert ours["host_memory_bytes"] is not None
  for ratio in (r for r in printed if "ratio" in r):
    a, b = (rows[name]["images_per_second"] for name in ratio["by"].split(" / "))
    assert ratio["ratio"] == pytest.approx(a / b)


def test_the_usual_loader_makes_what_the_network_sees(shapes_folder):
  config = tiny_config(shapes_folder)
  source = open_dataset(shapes_folder, "train")
  image = UsualLoader(source, config)(Example(0, 0, False, True))
  assert image.shape == (64, 96, 3) and image.dtype == np.float32
  assert abs(image.mean()) < 3 and image.std() > 0.1


def test_made_up_boxes_are_inside_their_images():
  batch = synthetic.batch(tiny_config("made up"), 4, 3, 6, portrait=True)
  assert batch["image"].shape == (4, 96, 64, 3) and batch["valid"].sum() == 4 * 6
  boxes = batch["boxes"][batch["valid"]]
  assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [64, 96]).all()
  assert (boxes[:, 2:] > boxes[:, :2]).all()


MEASURED = {
  "samples": [0.2, 0.1, 0.3], "warmup": 3, "calls": 1, "first_call_seconds": 1.0, "dtype": "bfloat16",
  "device_peak_bytes": 5, "loss_last": 1.5, "mode": "eager", "batch": 8, "device": "a GPU",
  "versions": {"torch": "9"},
}  # fmt: skip


def test_a_comparison_has_the_other_line_and_the_ratio(capsys):
  own = {"bench": "train", "what": "step", "shapes": {"classes": 3}, "versions": {"jax": "1"}}
  rows = [own | {"batch": 1, "seconds_median": 9.0}, own | {"batch": 8, "seconds_median": 0.05}]
  against.report_beside(rows, MEASURED, None)
  theirs, ratio = lines(capsys)
  assert theirs["by"] == "torchvision eager" and theirs["images_per_second"] == pytest.approx(40)
  assert theirs["versions"] == {"jax": "1", "torch": "9"} and theirs["shapes"] == own["shapes"]
  assert ratio["ratio"] == pytest.approx(4.0) and ratio["batch"] == 8


def test_torchvision_missing_or_another_network_is_said(monkeypatch):
  find_spec = against.importlib.util.find_spec
  monkeypatch.setattr(
    against.importlib.util, "find_spec", lambda n: None if n.startswith("torch") else find_spec(n)
  )
  with pytest.raises(UserError, match="needs torch and torchvision; pip install"):
    against.run_torchvision("train", tiny_config("x"), 3, 4, repeats=1)
  monkeypatch.setattr(against.importlib.util, "find_spec", lambda n: find_spec("json"))
  with pytest.raises(UserError, match=r"config.model.width=8, but torchvision's RetinaNet has 64"):
    against.run_torchvision("train", tiny_config("x"), 3, 4, repeats=1)


def test_table_of_given_lines(tmp_path):
  row = dict.fromkeys(KEYS) | {
    "bench": "train", "what": "step", "by": "iou-det", "hardware": {"device": "D"}, "versions": {"jax": "1"},
    "shapes": {"depth": 50, "network_input": [800, 1344]}, "batch": 16, "dtype": "bfloat16",
    "seconds_median": 0.05, "seconds_iqr": 0.001, "images_per_second": 320.0, "program_memory_bytes": 13e9,
    "model_flops_per_second": 4e14, "share_of_peak": 0.404,
  }  # fmt: skip
  ratio = {"bench": "train", "what": "step", "by": "a / b", "ratio": 2.854, "batch": 16}
  path = tmp_path / "lines.jsonl"
  other = row | {"versions": {"torch": "2"}}
  path.write_text("\n".join(map(json.dumps, (row, other, ratio))))
  text = markdown(read_lines(path))
  assert text.startswith("Measured on device D; jax 1, torch 2.\n")
  cells = "| R50 800x1344 | bfloat16 | 320.0 | 50.00 (1.00) | 13.00 |  |  | 400.00 | 40.4% |"
  assert text.count("| train | step | iou-det | 16 " + cells) == 2
  assert "| train | step | a / b | 16 |  | 2.85 |" in text
  columns = {line.count("|") for line in text.splitlines() if line.startswith("|")}
  assert columns == {14, 7}
  path.write_text('{"bench": "train"}\n')
  with pytest.raises(UserError, match="line 1 is no line"):
    read_lines(path)


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    ([], "give one of train, input, predict, eval"),
    (["trian"], "got trian"),
    (["eval", "--against=torchvision"], "belongs to train and predict"),
    (["train"], "needs --config"),
    (["eval", "--against=mmdet"], "torchvision"),
    (["train", "--config=configs/shapes.py", "--batch=3"], "batch"),
  ],
)
def test_bad_input_is_one_line_and_exit_2(argv, message):
  done = iou_det("bench", *argv)
  assert done.returncode == 2 and message in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1


def test_the_script_refuses_what_it_does_not_know():
  done = subprocess.run(
    ["bash", "launch/bench_gpu.sh", "--toys"], capture_output=True, text=True, check=False
  )
  assert done.returncode == 2 and "usage: bench_gpu.sh" in done.stderr


def test_the_process_beside_ours_imports_no_jax():
  code = "import sys, iou_det.bench.torchvision_model; print('jax' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout == "False\n"
