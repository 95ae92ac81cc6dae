"""Rows of a table: means and spreads over seeds, paired differences and their intervals."""

import csv
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from iou_det.evaluation.bootstrap import score_detections
from iou_det.evaluation.coco import Results as CocoResults
from iou_det.evaluation.coco import evaluate
from iou_det.evaluation.results import Results
from iou_det.paper import report
from iou_det.paper.output import Output

IMAGES = 12
TRUTH = {
  "images": [{"id": i, "file_name": f"{i}.png", "height": 100, "width": 100} for i in range(IMAGES)],
  "annotations": [
    {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0}
    for i in range(IMAGES)
  ],
  "categories": [{"id": 1, "name": "thing"}],
}


def detections(shift, seed):
  """A box an image, off by about `shift` pixels."""
  rng = np.random.default_rng(seed)
  off = shift * rng.uniform(0.5, 1.5, IMAGES)
  return [
    {"image_id": i, "category_id": 1, "bbox": [10 + float(off[i]), 10, 40, 40], "score": float(rng.uniform())}
    for i in range(IMAGES)
  ]


@pytest.fixture
def results(monkeypatch):
  """Makes the results of a run whose boxes are off by some pixels."""
  made = {}

  def make(shift, seed):
    found = CocoResults.of(detections(shift, seed))
    one = Results(Path(), Path(), ConfigDict(), evaluate(TRUTH, found), [])
    made[id(one)] = score_detections(TRUTH, found)
    return one

  monkeypatch.setattr(report, "scored_run", lambda r: made[id(r)])
  return make


def test_difference_and_spread_are_those_of_the_seeds(results, tmp_path):
  plain = report.Row("plain", [results(8.0, s) for s in range(3)], {"AP": 34.4})
  same = report.Row("same", [results(8.0, s) for s in range(3)], baseline=plain)
  better = report.Row("better", [results(4.0, s) for s in range(3)], {"AP": 35.7}, plain, {"w_loc": 2.5})
  rows = [plain, same, better]
  intervals = report.Intervals(rows)
  assert intervals.between(rows[1], rows[0]) == (0.0, 0.0, 0.0, 0.0)
  value, low, high, spread = intervals.between(rows[2], rows[0])
  aps = np.array([[100 * r.metrics["AP"] for r in row.results] for row in rows])
  assert value == pytest.approx((aps[2] - aps[0]).mean())
  assert 0 < low < value < high
  assert spread == pytest.approx((aps[2] - aps[0]).std(ddof=1))
  at_90 = intervals.between(rows[2], rows[0], "AP90")
  assert at_90[0] == pytest.approx(
    100 * np.mean([a.metrics["AP_per_iou"]["0.90"] - b.metrics["AP_per_iou"]["0.90"]
                   for a, b in zip(rows[2].results, rows[0].results, strict=True)]))  # fmt: skip

  output = Output(tmp_path, "here", "make it")
  text = report.ap_table(output, "table", intervals, ("AP", "AP60"), caption="A table.", compared="AP")
  assert "A table." in text and "Made by `make it`" in text
  with (tmp_path / "table.csv").open() as file:
    plain, _, better = csv.DictReader(file)
  assert float(better["AP"]) == pytest.approx(aps[2].mean())
  assert float(better["AP60"]) == pytest.approx(
    100 * np.mean([r.metrics["AP_per_iou"]["0.60"] for r in rows[2].results])
  )
  assert float(better["difference spread"]) == pytest.approx((aps[2] - aps[0]).std(ddof=1))
  assert float(better["spread"]) == pytest.approx(aps[2].std(ddof=1))
  assert float(better["paper difference"]) == pytest.approx(1.3)
  assert (plain["difference"], plain["w_loc"], better["w_loc"]) == ("", "", "2.5")


def test_an_interval_contains_the_seeds_spread(results):
  """Every image is off by the same, so that images bring next to nothing."""
  shifts = (4.0, 6.0, 8.0, 10.0, 12.0)
  plain = report.Row("plain", [results(8.0, s) for s in range(5)])
  other = report.Row("other", [results(shift, s) for s, shift in enumerate(shifts)])
  intervals = report.Intervals([plain, other])
  value, low, high, spread = intervals.between(other, plain)
  own = []
  for a, b in zip(plain.results, other.results, strict=True):
    pair = report.Row("plain", [a]), report.Row("other", [b])
    own.append(report.Intervals(pair).between(*reversed(pair)))
  of_images = np.mean([(d.high - d.low) ** 2 for d in own]) / 5
  expected = np.hypot(2 * 1.96 * spread / np.sqrt(5), np.sqrt(of_images))
  assert low < value < high
  assert high - low == pytest.approx(expected, rel=0.2)
  assert spread > 3 * np.sqrt(of_images) / 4  # so that images alone would give less than half of it


def test_one_seed_has_no_spread(results):
  row = report.Row("plain", [results(8.0, 0)])
  assert row.spread("AP") is None and row.mean("APl") is None
