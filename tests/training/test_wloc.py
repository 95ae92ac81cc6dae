"""Fitted w_loc against a float64 loop, and the value that a run keeps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from iou_det.config import with_loss
from iou_det.data import open_dataset
from iou_det.errors import UserError
from iou_det.network import make_anchors
from iou_det.storage import write_json
from iou_det.training.loop import train
from iou_det.training.wloc import fit_w_loc
from tests import oracles
from tests.tiny import tiny_config

LAMBDAS = (0.5, 1.5)


def oracle(source, config):
  """sum(l1) / sum(iou^lambd l1), the matched anchors as predictions."""
  anchors = np.asarray(make_anchors(config, (64, 96))[0], np.float64)
  before, after = 0.0, np.zeros(len(LAMBDAS))
  for record in (source[i] for i in range(len(source))):
    valid = np.ones(len(record.boxes), bool)
    for anchor, index in zip(
      anchors, oracles.match(anchors, record.boxes, valid, **config.match.to_dict()), strict=True
    ):
      if index >= 0:
        box = record.boxes[index]
        l1 = sum(oracles.smooth_l1(d, config.loss.delta) for d in oracles.encode(box, anchor))
        before += l1
        after += [l1 * oracles.iou(anchor, box) ** x for x in LAMBDAS]
  return before / after


def test_fitted_weights_equal_the_loop(shapes_folder):
  config = tiny_config(shapes_folder)
  config.data.flip_horizontal = 0.0
  config.anchors.convention = "legacy"  # whole pixels: anchors that tie do so in float64 too
  source = open_dataset(shapes_folder, "val")
  fitted = fit_w_loc(config, [source], LAMBDAS)
  np.testing.assert_allclose(fitted, oracle(source, config), rtol=1e-4)
  network = fit_w_loc(config, [source], LAMBDAS, start="network")
  assert not np.allclose(network, fitted, rtol=1e-3)  # an untrained network does put something out


def test_impossible_requests_are_refused(shapes_folder):
  config = tiny_config(shapes_folder)
  source = open_dataset(shapes_folder, "val")
  with pytest.raises(UserError, match="must be one of anchors, network"):
    fit_w_loc(config, [source], [1.0], start="middle")
  with pytest.raises(UserError, match="keeps the loss sum by itself"):
    fit_w_loc(with_loss(config, loc_weights="eq5"), [source], [1.0])


def test_auto_is_fitted_once_and_kept_with_the_run(shapes_folder, tmp_path):
  config = with_loss(tiny_config(shapes_folder, epochs=1), w_loc="auto")
  config.train.diagnostics_every = 2
  train(config, tmp_path / "run")
  kept = json.loads((tmp_path / "run" / "w_loc.json").read_text())
  expected = fit_w_loc(config, [open_dataset(shapes_folder, "train")], [1.5])
  np.testing.assert_allclose(kept["w_loc"], expected[0], rtol=1e-6)
  assert json.loads((tmp_path / "run" / "config.json").read_text())["loss"]["w_loc"] == "auto"

  rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  first = next(row for row in rows if "loss" in row)
  # The network's first boxes are near the anchors, so the weight is near 1 on average.
  assert 0.7 < first["localization_weight"] < 1.4
  measured = [row for row in rows if "eq2_normalizer" in row]
  assert [row["step"] for row in measured] == [2, 4]
  for row in measured:
    for name in ("positive_share", "localization_gradient_share"):
      np.testing.assert_allclose(sum(v for k, v in row.items() if k.startswith(name)), 1.0, rtol=1e-5)

  # Resuming reads the value that is there.
  write_json(tmp_path / "run" / "w_loc.json", {"w_loc": 2.0})
  longer = with_loss(config)
  assert train(longer, tmp_path / "run")["images"] == 13
  assert json.loads((tmp_path / "run" / "w_loc.json").read_text())["w_loc"] == 2.0


@pytest.mark.real_data
def test_command_gives_the_papers_w_loc(real_data):
  """The README's command on the 125 images of coco_mini at [600,1000], legacy anchors.

  One image has crowds only and is not trained on. The last column is what a separate implementation gave.
  """
  done = subprocess.run(
    [sys.executable, "-c", "from iou_det.cli import main; main()", "fit-wloc"]
    + ["--config=configs/paper.py", f"--coco_root={real_data / 'coco_mini'}"],
    cwd=Path(__file__).parents[2],
    env=os.environ | {"XLA_FLAGS": ""},  # real images are worth optimised programs
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  rows = [[float(x) for x in line.split()[:3]] for line in done.stdout.splitlines()[1:]]
  separate = [1.533, 2.176, 2.991, 3.591]
  assert [row[0] for row in rows] == [0.5, 1.0, 1.5, 1.8]
  for (_, fitted, paper), other in zip(rows, separate, strict=True):
    assert abs(fitted / paper - 1) < 0.04
    assert abs(fitted / other - 1) < 0.005
  assert [row[2] for row in rows] == [1.575, 2.226, 3.049, 3.649]
