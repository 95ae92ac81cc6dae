"""What the sections say against pycocotools, loops over single boxes, and cases worked by hand."""

import contextlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from iou_det.config import base_config
from iou_det.errors import UserError
from iou_det.evaluation.coco import evaluate
from iou_det.evaluation.overlap import as_boxes, save_candidates
from iou_det.report import errors, precision, ranking, scores
from iou_det.report.scores import Intervals, Scores, make_groups, settings_that_differ
from iou_det.report.summary import summary
from iou_det.report.whole import write_report
from tests.report.made import make_runs


def scored(images, found, **options):
  """Runs by hand with the config and the metrics that they would have; `found`: name: detections."""
  runs = make_runs(images, found, **options)
  metrics = [evaluate(r.truth, r.detections) | {"step": 1, "split": "val"} for r in runs]
  return [replace(r, config=base_config(), metrics=m) for r, m in zip(runs, metrics, strict=True)]


def drawn(seed=0, images=20):
  """Objects of two classes, some crowds; detections near them and astray, scores with ties."""
  rng = np.random.default_rng(seed)
  objects, found = [], []
  for i in range(images):
    boxes = [(*rng.integers(0, 60, 2), *rng.integers(15, 40, 2)) for _ in range(rng.integers(0, 5))]
    objects.append([(*map(int, b), int(rng.integers(2)), *[True] * (rng.random() < 0.1)) for b in boxes])
    for box in [*objects[-1], *objects[-1], (70, 70, 20, 20, 0)]:
      moved = np.array(box[:4]) + rng.normal(0, 3, 4)
      right = box[4] if rng.random() < 0.8 else 1 - box[4]
      found.append((i, *moved[:2], *np.maximum(moved[2:], 5), right, round(rng.random(), 2)))
  return objects, found


def rows_of(markup):
  """The cells of all tables, row by row, as text."""
  rows = []

  class Reader(HTMLParser):
    def handle_starttag(self, tag, attrs):
      if tag == "tr":
        rows.append([])
      elif tag in ("td", "th"):
        rows[-1].append("")

    def handle_data(self, data):
      if rows and rows[-1]:
        rows[-1][-1] += data

  Reader().feed(markup)
  return rows


def test_curves_and_ap_are_pycocotools_mean_over_the_classes():
  (run,) = scored(drawn()[0], {"a": drawn()[1]})
  ours = Scores.of(run)
  with contextlib.redirect_stdout(io.StringIO()):
    truth, found = COCO(), COCO()
    truth.dataset = run.truth
    truth.createIndex()
    found = truth.loadRes(list(run.detections.rows()))
    theirs = COCOeval(truth, found, "bbox")
    theirs.evaluate(), theirs.accumulate(), theirs.summarize()
  np.testing.assert_allclose(ours.curves, theirs.eval["precision"][..., 0, 2].mean(axis=2), atol=1e-9)
  assert ours.ap_per_iou.mean() == pytest.approx(theirs.stats[0], abs=1e-9)


def matched_by_hand(run):
  """Score and rightness of each detection at IoU 0.5, those on crowds left out; COCO's rule, box by box."""
  corners = lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
  out = []
  for image in run.truth["images"]:
    for category in run.truth["categories"]:
      mine = lambda row, i=image["id"], c=category["id"]: (row["image_id"], row["category_id"]) == (i, c)
      objects = [a for a in run.truth["annotations"] if mine(a)]
      free = [True] * len(objects)
      for d in sorted(filter(mine, run.detections.rows()), key=lambda row: -row["score"]):
        best, place = 0.5, None
        for crowd in (0, 1):
          for k, a in enumerate(objects):
            if a["iscrowd"] != crowd or (not free[k] and not crowd) or (crowd and place is not None):
              continue
            (x1, y1, x2, y2), (u1, v1, u2, v2) = corners(d["bbox"]), corners(a["bbox"])
            inter = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
            own = (x2 - x1) * (y2 - y1)
            iou = inter / (own if crowd else own + (u2 - u1) * (v2 - v1) - inter)
            if iou >= best:
              best, place = iou, k
        if place is not None and objects[place]["iscrowd"]:
          continue
        if place is not None:
          free[place] = False
        out.append((d["score"], place is not None))
  return out, sum(not a["iscrowd"] for a in run.truth["annotations"])


def test_the_best_cut_is_the_best_of_all_cuts():
  for seed in (0, 1):
    objects, found = drawn(seed)
    (run,) = scored(objects, {"a": found})
    boxes, number = matched_by_hand(run)
    best = (0.0, 0.0)
    for cut in sorted({score for score, _ in boxes}):
      taken = [right for score, right in boxes if score >= cut]
      best = max(best, (2 * sum(taken) / (len(taken) + number), cut))
    ours = errors.f1_curve(Scores.of(run)).best
    assert ours is not None and (ours.f1, ours.score) == pytest.approx(best)
    taken = [right for score, right in boxes if score >= best[1]]
    assert (ours.precision, ours.recall) == pytest.approx((sum(taken) / len(taken), sum(taken) / number))


def test_reliability_is_the_share_that_is_right_in_each_bin():
  pytest.importorskip("hotcoco")
  (run,) = scored(drawn()[0], {"a": drawn()[1]})
  boxes, _ = matched_by_hand(run)
  found = Scores.of(run).scorer.calibration()
  for k, b in enumerate(found["bins"]):
    inside = [(s, right) for s, right in boxes if min(int(10 * s + 1e-9), 9) == k]
    assert b["count"] == len(inside)
    if inside:
      assert (b["avg_confidence"], b["avg_accuracy"]) == pytest.approx(tuple(np.mean(inside, axis=0)))


BOX, FAR = (0, 0, 20, 20), (60, 60, 20, 20)


@pytest.mark.parametrize(
  ("objects", "found", "kind", "points"),
  [
    # Precision 1 up to a recall of 1/2: 51 of 101 recalls; mended: 1.
    ([(*BOX, 0), (*FAR, 0)], [(0, *BOX, 0, 0.9), (0, 66, 66, 20, 20, 0, 0.8)], "poorly placed", 49.5),
    # Right, wrong, right: 51 recalls at 1, 50 at 2/3.
    (
      [(*BOX, 0), (*FAR, 0)],
      [(0, *BOX, 0, 0.9), (0, 1, 0, 20, 20, 0, 0.8), (0, *FAR, 0, 0.7)],
      "duplicate",
      16.5,
    ),
    # One class right, of the other nothing; the box on it says the first.
    ([(*BOX, 0), (*FAR, 1)], [(0, *BOX, 0, 0.9), (0, *FAR, 0, 0.8)], "wrong class", 50.0),
    # Wrong, right: 1/2 up to a recall of 1/2; without the wrong one 1.
    ([(*BOX, 0), (*FAR, 0)], [(0, 30, 30, 20, 20, 0, 0.9), (0, *BOX, 0, 0.8)], "false: on no object", 25.2),
    # The same, and one object less to find: 1/2 at all recalls.
    ([(*BOX, 0), (*FAR, 0)], [(0, 30, 30, 20, 20, 0, 0.9), (0, *BOX, 0, 0.8)], "missed", 24.8),
  ],
)
def test_what_an_error_costs(objects, found, kind, points):
  pytest.importorskip("hotcoco")
  columns, cells = rows_of(errors.tide_table(make_groups(scored([objects], {"a": found}))))
  cell = cells[columns.index(kind)]
  assert float(cell.split()[0]) == points and " 1 (" in cell


def test_what_is_taken_for_what():
  """Two discs and a star: one disc found, one taken for a star, the star missed, a box on nothing."""
  pytest.importorskip("hotcoco")
  objects = [(*BOX, 0), (*FAR, 0), (0, 60, 20, 20, 1)]
  found = [(0, *BOX, 0, 0.9), (0, *FAR, 1, 0.8), (0, 30, 30, 8, 8, 0, 0.7), (0, 62, 0, 20, 20, 1, 0.1)]
  (group,) = make_groups(scored([objects], {"a": found}))
  everything = errors.F1(*(np.array([x]) for x in (0.5, 1.0, 1.0)))  # a cut at 0.5
  head, *rows = rows_of(errors.confusion(group, [everything]))
  assert head == ["object \\ box", "disc", "star", "no box"]
  assert rows == [["disc", "1", "1", "0"], ["star", "0", "0", "1"], ["no object", "1", "0", "0"]]


def test_confusions_of_many_classes_are_listed():
  names = [f"class{k}" for k in range(errors.MATRIX + 1)]
  total = np.diag([5] * (len(names) + 1))
  total[3, 7], total[2, 1] = 4, 9
  assert rows_of(errors.confused_classes("", names, total))[1:] == [
    ["class2", "class1", "9", "14"],
    ["class3", "class7", "4", "9"],
  ]


def test_intervals_are_those_of_a_share():
  """Of 400 images one run finds all, the other half: AP50 of a share p is (100 p + 1) / 101."""
  rng = np.random.default_rng(0)
  half = rng.random(400) < 0.5
  every = [(i, *BOX, 0, 0.9) for i in range(400)]
  runs = scored([[(*BOX, 0)]] * 400, {"all": every, "half": [d for d in every if half[d[0]]]})
  groups = make_groups([runs[0], replace(runs[1], config=changed(**{"loss.eta": 0.25}))])
  low, high = Intervals(groups).between(groups[1], groups[0], (0.5,))
  wide = 2 * 1.96 * np.sqrt(half.mean() * (1 - half.mean()) / 400)
  assert high - low == pytest.approx(wide, rel=0.1)
  assert (low + high) / 2 == pytest.approx(half.mean() - 1, abs=0.01)
  assert Intervals(groups).of(groups[0]) == pytest.approx((1.0, 1.0))


def changed(**fields):
  config = base_config()
  for name, value in fields.items():
    section, _, field = name.rpartition(".")
    (config[section] if section else config)[field] = value
  return config


def test_seeds_of_a_detector_stand_together_and_nothing_else():
  objects, found = drawn(images=4)
  names = ["base/seed0", "base/seed1", "eta/seed0", "eta/seed1", "base/again"]
  runs = scored(objects, dict.fromkeys(names, found))
  configs = [
    changed(seed=0), changed(seed=1, **{"train.log_every": 7}), changed(seed=0, **{"loss.eta": 1.5}),
    changed(seed=1, **{"loss.eta": 1.5}), changed(seed=0)]  # fmt: skip
  groups = make_groups([replace(r, config=c) for r, c in zip(runs, configs, strict=True)])
  assert [(g.name, len(g.seeds)) for g in groups] == [("base", 2), ("eta", 2), ("base/again", 1)]
  assert len({g.look for g in groups}) == 3
  differ = settings_that_differ([configs[0], configs[2]])
  assert differ == {"loss.eta": [configs[0].loss.eta, 1.5]}


def test_figures_of_the_summary_are_the_means_of_the_seeds():
  objects, found = drawn()
  runs = scored(objects, {"d/0": found, "d/1": found[: len(found) // 2]})
  runs = [replace(r, config=changed(seed=i)) for i, r in enumerate(runs)]
  groups = make_groups(runs)
  head, row, *_ = rows_of(summary(groups, Intervals(groups)).html)
  assert row[0] == "d (mean of 2 seeds)"
  for name in ("AP50", "APs"):
    mean = np.mean([r.metrics[name] for r in runs])
    assert float(row[head.index(name)].split()[0]) == pytest.approx(mean, abs=5e-4)


def test_regret_counts_boxes_that_nms_dropped_for_worse_ones(tmp_path):
  """The kept box has an IoU of 0.6 with the object, the one that it suppressed 1; another stands alone."""
  objects = [[(*BOX, 0), (*FAR, 0)]]
  kept = [(0, 0, 0, 20, 12, 0, 0.9), (0, *FAR, 0, 0.5)]
  (run, before) = scored(objects, {"a": kept, "before": [*kept, (0, *BOX, 0, 0.8)]})
  save_candidates(tmp_path / "candidates.npz", before.detections)
  assert len(as_boxes(before.detections).score) == 3
  (group,) = make_groups([replace(run, candidates=tmp_path / "candidates.npz")])
  assert ranking.regret(group) == (0.5, pytest.approx(0.4))
  assert "--nms_regret" not in ranking.ranking_table([group], {"a": ranking.pool(group)})
  (without,) = make_groups([run])
  assert "--nms_regret" in ranking.ranking_table([without], {"a": ranking.pool(without)})


def test_another_truth_than_was_scored_is_refused():
  objects, found = drawn()
  (run,) = scored(objects, {"a": found})
  moved = [a | {"bbox": [a["bbox"][0] + 5, *a["bbox"][1:]]} for a in run.truth["annotations"]]
  with pytest.raises(UserError, match=r"a was scored against other boxes than made has now .*iou-det eval"):
    Scores.of(replace(run, truth=run.truth | {"annotations": moved}))


@pytest.mark.parametrize(("objects", "found"), [([], [(0, *BOX, 0, 0.9)]), ([(*BOX, 0)], [])])
def test_a_page_of_nothing(tmp_path, objects, found):
  """No objects, or no detections: said in words."""
  runs = scored([objects, []], {"a": found, "b": []})
  runs[1] = replace(runs[1], config=changed(**{"loss.eta": 0.25}))
  write_report(tmp_path / "index.html", runs)
  page = (tmp_path / "index.html").read_text()
  assert ("The split has no objects" in page) == (not objects)
  assert not re.search(r"\bnan\b", page.split('<script type="application/json"')[0])


def test_without_hotcoco_the_page_says_what_to_install_and_names_cannot_act(monkeypatch, tmp_path):
  monkeypatch.setattr(scores.coco, "choose_backend", lambda backend: "pycocotools")
  objects, found = drawn(images=4)
  runs = scored(objects, {"<img src=x>": found}, classes=("<b>&$x$", "star"))
  write_report(tmp_path / "index.html", [replace(r, workdir=Path("<i>x")) for r in runs])
  page = (tmp_path / "index.html").read_text().split('<script type="application/json"')[0]
  assert not any(name in page for name in ("<img src=x", "<b>&", "<i>x"))
  assert "&lt;b&gt;&amp;$x$" in page
  assert page.count("[fast-eval]") == 2


def test_ap_by_objects_is_that_of_these_images_alone(monkeypatch):
  pytest.importorskip("hotcoco")
  objects, found = drawn(images=30)
  (run,) = scored(objects, {"a": found})
  seen = {}
  keep = lambda groups, name, title, reading, rows, found: (
    seen.update(zip(rows, found["a"], strict=True)) or ""
  )
  monkeypatch.setattr(precision, "dots", keep)
  precision.by_objects(make_groups([run]))
  counts = [sum(len(o) == 5 for o in row) for row in objects]
  assert len(seen) >= 2
  for name, ap in seen.items():
    low, *_, high = [int(n) for n in re.findall(r"\d+", name.split("(")[0])] * 2
    inside = [10 + i for i, n in enumerate(counts) if low <= n <= high]
    assert f"({len(inside)} image" in name
    assert ap == pytest.approx(evaluate(run.truth, run.detections, image_ids=inside)["AP"], abs=1e-9)
