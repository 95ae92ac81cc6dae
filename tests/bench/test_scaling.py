"""What devices exchange in a step, and the estimate on paper."""

import json

import pytest

from iou_det.bench.scaling import estimates, measure_step, plot
from iou_det.bench.synthetic import Case
from tests.tiny import tinier_config


def test_estimate_of_a_ring():
  rows = {(r["link"], r["chips"]): r["all_reduce_s"] for r in estimates(900_000_000)}
  assert rows["NVLink (H100)", 8] == pytest.approx(2 * 7 / 8 * 2e-3)
  assert rows["InfiniBand (DGX H100)", 256] == pytest.approx(2 * 255 / 256 * 18e-3)


def test_a_step_on_eight_devices_exchanges_its_gradients_once(tmp_path):
  out = tmp_path / "scaling.jsonl"
  case = Case(tinier_config("made up"), num_classes=4, boxes=5, batch_size=8)
  row = measure_step(case, "devices", repeats=1, out=out)
  assert row["hardware"]["devices"] == 8
  gradients = 4 * 202_000  # bytes of the tiny network's parameters, about
  assert 0.9 * gradients < row["collectives"]["all-reduce"]["bytes"] < 1.3 * gradients
  assert json.loads(out.read_text())["collectives"] == row["collectives"]
  plot([row], tmp_path / "scaling.png")
  assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
