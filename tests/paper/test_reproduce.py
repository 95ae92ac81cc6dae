"""`iou-det reproduce all --smoke`: every table and figure from nothing, at toy size, by the command line."""

import csv
import json
import re
import time

import numpy as np
import pytest

from iou_det.paper.experiments import EXPERIMENTS
from tests.command import COMPILE_QUICKLY, iou_det

STAMP = "smoke, not a result"


def reproduce(*arguments):
  return iou_det("reproduce", *arguments, XLA_FLAGS=COMPILE_QUICKLY)  # on one device


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
  """A workdir with all experiments, and what the command printed."""
  workdir = tmp_path_factory.mktemp("reproduce")
  done = reproduce("all", "--preset=shapes", "--smoke", f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr[-3000:]
  return workdir, done


def table(workdir, experiment, name=""):
  path = workdir / "shapes_smoke" / experiment / f"{name or experiment}.csv"
  with path.open() as file:
    return list(csv.DictReader(file))


def test_every_table_and_figure_is_written_and_stamped(everything):
  workdir, done = everything
  for experiment in EXPERIMENTS:
    folder = workdir / "shapes_smoke" / experiment
    files = {p.name for p in folder.iterdir()}
    plots = {p.removesuffix(".png") for p in files if p.endswith(".png")}
    assert plots, files
    for stem in plots:
      assert f"{stem}.svg" in files and f"{stem}.csv" in files
      assert STAMP in (folder / f"{stem}.svg").read_text()
    tables = [p for p in files if p.endswith(".md")]
    assert tables or experiment == "fig1", files
    for name in tables:
      text = (folder / name).read_text()
      assert STAMP in text and text.strip() in done.stdout
      assert "reproduce all --preset=shapes" in text
    for name in files:
      if name.endswith(".csv"):
        assert STAMP in (folder / name).read_text()


def test_table_2_holds_the_figures_of_the_runs(everything):
  workdir, _ = everything
  rows = table(workdir, "table2")
  names = ("baseline", "cls", "loc", "both", "baseline_effective", "baseline_w_loc", "loc_eq5", "both_eq5")
  assert len(rows) == len(names)
  for row, name in zip(rows, names, strict=True):
    run = workdir / "runs" / "shapes_smoke" / name / "seed0"
    metrics = json.loads((run / "eval" / "test" / "metrics.json").read_text())
    assert float(row["AP"]) == pytest.approx(100 * metrics["AP"])
    assert float(row["AP90"]) == pytest.approx(100 * metrics["AP_per_iou"]["0.90"])
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = [r["localization_weight"] for r in log if "loss" in r]
    assert float(row["effective weight"]) == pytest.approx(np.mean(weights))  # a row a step
  paper = [row["paper AP"] for row in rows]
  assert paper == ["34.4", "35.1", "35.2", "35.7", "", "", "", ""]
  loc, effective, w_loc = (rows[names.index(n)] for n in ("loc", "baseline_effective", "baseline_w_loc"))
  assert float(effective["w_loc"]) == pytest.approx(float(loc["effective weight"]))
  assert float(w_loc["w_loc"]) == pytest.approx(float(loc["w_loc"]))
  for row in rows[1:]:
    low, middle, high = (float(row[k]) for k in ("95% low", "difference", "95% high"))
    assert low <= high
    assert middle == pytest.approx(float(row["AP"]) - float(rows[0]["AP"]))


def test_contrasts_are_differences_of_table_2(everything):
  workdir, _ = everything
  ap = {row["run"]: row for row in table(workdir, "table2")}
  contrasts = table(workdir, "table2", "contrasts")
  assert len(contrasts) == 6
  for row in contrasts:
    for figure in ("AP", "AP75", "AP90"):
      expected = float(ap[row["run"]][figure]) - float(ap[row["minus"]][figure])
      assert float(row[figure]) == pytest.approx(expected, abs=1e-9)
      assert float(row[f"{figure} low"]) <= float(row[f"{figure} high"])
      assert row[f"{figure} spread"] == ""  # one seed


def test_the_comparison_holds_the_figures_of_the_runs_at_both_thresholds(everything):
  workdir, _ = everything
  names = (
    "baseline",
    "quality_focal",
    "quality_focal_scaled",
    "iou_branch_attached",
    "loc",
    "giou",
    "giou_effective",
  )
  for variant, scores in (("", "eval/test"), ("_threshold0", "eval/test_threshold0")):
    rows = table(workdir, "comparison", f"comparison{variant}")
    assert len(rows) == len(names)
    found = 0
    for row, name in zip(rows, names, strict=True):
      run = workdir / "runs" / "shapes_smoke" / name / "seed0"
      metrics = json.loads((run / scores / "metrics.json").read_text())
      assert float(row["AP"]) == pytest.approx(100 * metrics["AP"])
      assert float(row["AP75"]) == pytest.approx(100 * metrics["AP75"])
      found += len(json.loads((run / scores / "detections.json").read_text()))
      assert float(row["w_cls"]) == json.loads((run / "config.json").read_text())["loss"]["w_cls"]
      log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
      for column, key in (("cls", "classification"), ("loc", "localization")):
        norms = [r[f"{key}_gradient_norm"] for r in log if f"{key}_gradient_norm" in r]
        assert (row[f"{column} gradient"] != "") == bool(norms)
        if norms:
          assert float(row[f"{column} gradient"]) == pytest.approx(np.mean(norms))
    assert bool(rows[3]["published"]) is False and found > 0
  focal, quality, scaled = rows[:3]
  ratio = float(focal["cls gradient"]) / float(quality["cls gradient"])
  assert float(scaled["w_cls"]) == pytest.approx(ratio)


def test_the_sweep_holds_the_figures_of_the_runs(everything):
  workdir, _ = everything
  rows = table(workdir, "wloc_sweep", "wloc_sweep_table")
  names = ("baseline", "weight2.0", "loc_weight1.0", "loc_weight2.0")
  assert [(row["run"].split()[0], float(row["w_loc"])) for row in rows] == [
    ("without", 1.0), ("without", 2.0), ("with", 1.0), ("with", 2.0),
  ]  # fmt: skip
  for row, name in zip(rows, names, strict=True):
    run = workdir / "runs" / "shapes_smoke" / name / "seed0"
    metrics = json.loads((run / "eval" / "test" / "metrics.json").read_text())
    assert float(row["AP"]) == pytest.approx(100 * metrics["AP"])
    assert float(row["AP50"]) == pytest.approx(100 * metrics["AP50"])
    assert float(row["AP90"]) == pytest.approx(100 * metrics["AP_per_iou"]["0.90"])


def test_dry_run_of_all_lists_each_run_once(everything):
  workdir, _ = everything
  listed = reproduce("all", "--preset=shapes", "--smoke", "--dry_run", f"--workdir={workdir}")
  runs = re.findall(r"^(\w\S*/seed0) ", listed.stdout, re.MULTILINE)
  assert len(runs) == len(set(runs)) > 20 and {"both/seed0", "loc_weight2.0/seed0"} < set(runs)


def test_what_is_finished_is_not_trained_again(everything):
  workdir, _ = everything
  listed = reproduce("table2", "--preset=shapes", "--smoke", "--dry_run", f"--workdir={workdir}")
  assert listed.returncode == 0, listed.stderr
  assert len(re.findall(r"finished +16 +2$", listed.stdout, re.MULTILINE)) == 4
  assert "to do: 0 images" in listed.stdout
  # One run loses its scores: it alone is done again, to the same figures.
  before = (workdir / "shapes_smoke" / "table3" / "table3.csv").read_text()
  run = workdir / "runs" / "shapes_smoke" / "cls" / "seed0"
  (run / "eval" / "test" / "metrics.json").unlink()
  others = workdir / "runs" / "shapes_smoke" / "loc" / "seed0" / "eval" / "test" / "metrics.json"
  old, now = others.stat().st_mtime, time.time()
  again = reproduce("table3", "--preset=shapes", "--smoke", f"--workdir={workdir}")
  assert again.returncode == 0, again.stderr[-3000:]
  assert (run / "eval" / "test" / "metrics.json").stat().st_mtime > now
  assert others.stat().st_mtime == old
  assert (workdir / "shapes_smoke" / "table3" / "table3.csv").read_text() == before


def test_figures_of_any_workdirs(everything, tmp_path):
  workdir, _ = everything
  runs = [workdir / "runs" / "shapes_smoke" / name / "seed0" for name in ("baseline", "both")]
  done = reproduce("fig3", f"--workdirs={runs[0]},{runs[1]}", f"--workdir={tmp_path}")
  assert done.returncode == 0, done.stderr[-3000:]
  assert str(runs[1]) in (tmp_path / "fig3" / "shares.md").read_text()
  assert STAMP not in (tmp_path / "fig3" / "shares.md").read_text()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["table5", "--workdir=w"], "got table5; give one of table1"),
    (["--workdir=w"], "got no experiment"),
    (["table2", "--preset=coco", "--workdir=w"], "--preset=coco needs --data=DIR"),
    (["table2", "--preset=voc", "--workdir=w"], "value should be one of <coco|deeppcb|shapes>"),
    (["fig1", "--controls", "--workdir=w"], "--controls belongs to table2"),
    (["fig2", "--workdirs=a", "--workdir=w"], "two or more trained workdirs"),
    (["fig2", "--workdirs=a,b", "--workdir=w"], "a is not a training run"),
    (["fig2", "--workdirs=a,b,c,d,e,f,g,h", "--workdir=w"], "names 8 workdirs; a figure shows 7 at most"),
    (["table2", "--preset=deeppcb", "--data=nowhere", "--workdir=w"], "data path nowhere is not a folder"),
    (["table2", "--seeds=0", "--workdir=w"], "seeds"),
    (["table2", "--seeds=1001", "--dry_run", "--workdir=w"], "integer in the range [1, 1000]"),
    (["table2", "--dry_run", "--workdir="], "the path is empty; give one (. is the current folder)"),
    (["table2", "--dry_run", "--workdir=file"], "--workdir=file is a file; give a folder"),
    (["table2", "--smoke", "--workdir=file"], "--workdir=file is a file; give a folder"),
    (["table2", "--preset=deeppcb", "--smoke", "--workdir=w"], "--smoke runs on shapes"),
    (["table2", "--smoke", "--data=d", "--workdir=w"], "leave out --data"),
    (["fig2", "--workdirs=a,b", "--seeds=3", "--workdir=w"], "--seeds has no meaning with --workdirs"),
    (["fig2", "--workdirs=a,b", "--dry_run", "--workdir=w"], "--dry_run has no meaning with --workdirs"),
  ],
)
def test_bad_requests_end_in_one_line(arguments, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "file").touch()
  done = reproduce(*arguments)
  assert done.returncode == 2
  lines = [line for line in done.stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
  assert len(lines) == 1 and message in lines[0], done.stderr
