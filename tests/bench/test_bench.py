"""Each kind of bench at toy size: valid lines, figures that can be known otherwise, clear errors."""

import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from iou_det.bench.host import bench_eval, bench_input
from iou_det.bench.measure import Timing, compile_program, report, time_calls
from iou_det.bench.network import bench_predict, bench_train, random_batch
from iou_det.bench.scaling import collectives, estimates, plot
from iou_det.bench.table import COLUMNS, markdown
from iou_det.data.pipeline import Stack
from iou_det.errors import UserError
from iou_det.training.mesh import device_mesh
from tests.tiny import tiny_config


def test_timing_is_what_was_waited():
  timing = time_calls(lambda: time.sleep(0.02), repeats=3, warmup=1)
  assert 0.02 <= timing.median < 0.1 and len(timing.seconds) == 3
  assert Timing((1.0, 2.0, 3.0, 4.0, 100.0), 0).median == 3.0
  assert Timing((1.0, 2.0, 3.0, 4.0, 100.0), 0).spread == 2.0


def test_program_counts_a_matrix_product():
  program = compile_program(jax.jit(jnp.dot), jnp.ones((64, 32)), jnp.ones((32, 16)))
  assert program.flops == 2 * 64 * 32 * 16
  assert program.memory_bytes >= 4 * (64 * 32 + 32 * 16 + 64 * 16)
  np.testing.assert_array_equal(program.run(jnp.ones((64, 32)), jnp.ones((32, 16))), 32.0)


def test_collectives_of_a_known_program():
  """A sum over 8 devices is one all-reduce of a float; gathering 64 floats one all-gather of 256 bytes."""
  mesh = device_mesh(8)
  split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
  x = jax.device_put(jnp.arange(64.0), split)
  total = compile_program(jax.jit(jnp.sum, out_shardings=whole), x)
  assert collectives(total.text)["all-reduce"] == (1, 4)
  gathered = compile_program(jax.jit(lambda x: x + 1, out_shardings=whole), x)
  assert collectives(gathered.text)["all-gather"] == (1, 256)
  assert collectives("%r = (f32[2,3]{1,0}, bf16[]) all-reduce-start(%a, %b)")["all-reduce"] == (1, 26)


def test_estimate_of_a_ring():
  rows = {(r["link"], r["chips"]): r["all_reduce_s"] for r in estimates(900_000_000)}
  assert rows["NVLink (H100)", 8] == pytest.approx(2 * 7 / 8 * 2e-3)
  assert rows["InfiniBand (DGX H100)", 256] == pytest.approx(2 * 255 / 256 * 18e-3)


def test_train_and_predict_lines(tmp_path):
  config = tiny_config("made up")
  (step,) = bench_train(config, batch_size=8, boxes=3, classes=4, repeats=1, pieces=False)
  assert step["images_per_second"] == pytest.approx(8 / step["median_s"])
  assert step["flops"] > 1e6 and step["program_memory_bytes"] > 1e5 and step["compile_s"] > 0
  (detect,) = bench_predict(config, batch_size=8, classes=4, repeats=1)
  assert (detect["batch_size"], detect["input_size"]) == (8, (64, 96))
  assert detect["flops"] < step["flops"]
  line = report(detect)
  assert json.loads(json.dumps(line))["hardware"]["devices"] == 8
  plot([step | {"piece": "batch size", "s_per_image": 1.0, "devices_used": 1}], tmp_path / "plot.png")
  assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_batch_has_the_boxes_asked_for():
  batch = random_batch(tiny_config("made up"), batch_size=2, boxes=5, classes=3)
  assert batch["valid"].sum(axis=1).tolist() == [5, 5]
  boxes = batch["boxes"][batch["valid"]]
  assert (boxes[:, 2:] > boxes[:, :2]).all() and boxes.min() >= 0
  assert boxes[:, 2].max() <= 96 and boxes[:, 3].max() <= 64


def test_input_lines(shapes_folder):
  config = tiny_config(shapes_folder)
  rows = {r["piece"]: r for r in bench_input(config, batch_size=4, images=8, cores=2, repeats=1)}
  assert list(rows) == ["decode", "pipeline, threads", "pipeline, processes", "usual"]
  assert {r["images"] for r in rows.values()} == {8}
  assert rows["pipeline, threads"]["bytes_to_device_per_image"] == 64 * 96 * 3
  assert rows["decode"]["against_decode"] == rows["usual"]["against_usual"] == 1
  with pytest.raises(UserError, match="--images=3 is less than --batch_size=4"):
    list(bench_input(config, batch_size=4, images=3, cores=1, repeats=1))


def test_both_backends_give_the_same_figures():
  reference, fast = bench_eval(images=20, detections=400, classes=5)
  assert reference["largest_difference"] == 0 and 0.1 < reference["AP"] < 0.9
  assert fast["largest_difference"] < 1e-9
  assert fast["detections"] == 400 and fast["against_pycocotools"] > 0


def test_table():
  row = {"bench": "predict", "piece": "detect", "input_size": [800, 1344], "median_s": 0.5}
  row |= {"hardware": {"cpu": "x"}}
  head, blank, columns, rule, line = markdown([row]).splitlines()
  assert head == 'Hardware: {"cpu": "x"}' and blank == ""
  assert columns.count("|") == rule.count("|") == line.count("|") == len(COLUMNS) + 1
  assert "| 800x1344 |" in line and "| 500.00 |" in line


def test_stack_uses_memory_again_only_when_nothing_shows_it():
  rows = lambda value: [
    {"image": np.full((2, 3, 3), value, np.uint8), "image_size": np.array([2, 3]), "portrait": np.False_}
  ]
  stack = Stack((4, 6))
  first = stack(rows(1))["image"]
  second = stack(rows(2))["image"]
  assert first.shape == (1, 4, 6, 3) and not np.shares_memory(first, second)
  part = first[0, :2, :3]
  del first
  assert stack(rows(3))["image"].sum() == 3 * 18  # zeros beside the image
  assert (part == 1).all()  # what is still shown is not written to
  del part
  address = second.__array_interface__["data"][0]
  del second
  again = stack(rows(4))["image"]
  again_too = stack(rows(5))["image"]
  assert address in {x.__array_interface__["data"][0] for x in (again, again_too)}
  assert again.sum() == 4 * 18 and again_too.sum() == 5 * 18


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["train"], "--config is missing"),
    (["trian"], "give one of train, input, predict, eval, scaling"),
    (["eval", "--against=torchvision"], "is for bench train and predict"),
    (["train", "--against=detectron2"], "torchvision"),
    (["eval", "--images=0"], "images"),
  ],
)
def test_bad_arguments_are_one_line(arguments, message):
  command = [sys.executable, "-c", "from iou_det.cli import main; main()", "bench", *arguments]
  environment = os.environ | {"PYTHONPATH": os.getcwd()}
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
