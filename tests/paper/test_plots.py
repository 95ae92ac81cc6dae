"""Plots: files with their words and numbers, and the same bytes twice."""

import csv
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from iou_det.evaluation.overlap import Overlaps, ScorePerIou
from iou_det.paper import plots
from iou_det.paper.output import Output, Plot

RNG = np.random.default_rng(0)
STAMP = "smoke, not a result"
IOUS = np.arange(50, 100, 5) / 100
EDGES = np.linspace(0.5, 1.0, 6)
NAN = np.nan


def rounded(*shape):
  return RNG.uniform(0.0, 1.0, shape).round(3)


SCORES = {
  "a": ScorePerIou(EDGES, rounded(5), np.array([900, 40, 7, 0, 31])),
  "b": ScorePerIou(EDGES, rounded(5), np.array([1, 2, 3, 4, 5])),
}
SHARES = {"a": np.linspace(0.9, 0.0, 10), "b": np.linspace(0.95, 0.0, 10)}
POINTS = {"a": Overlaps(rounded(400), rounded(400), 0), "b": Overlaps(np.zeros(0), np.zeros(0), 0)}
SPEARMAN = {"a": 0.5, "b": None}
RANKS = ["400 detections", "Spearman 0.500", "0 detections", "not defined"]
GAPS = {"cls": np.array([rounded(10), rounded(10) - 1, rounded(10) + 1]), "loc": np.array([rounded(10)] * 3)}
WEIGHTS = np.array([1.0, 2.0, 3.049])
CURVES = {"with": np.array([WEIGHTS, *rounded(5, 3)]), "without": np.array([WEIGHTS[:2], *rounded(5, 2)])}
OURS = [34.0, 35.5, 33.0], [0.25, NAN, 0.0]
PAPER = [34.4, NAN, 35.2]
BARS = (["none", "cls", "loc"], np.array([*OURS, PAPER]))
GRADIENT = np.array([[1.0, 1.0, 2.0, 0.0, 0.0], [0.0] * 5, [0.0, 3.0, 0.0, 0.0, 1.0]])
COUNTS = np.array([[5.0, 5.0, 0.0, 0.0, 0.0], [0.0] * 5, [0.0, 0.0, 1.0, 1.0, 2.0]])
STEPS = np.array([0, 50, 100])
AMOUNTS = {"localization gradient": GRADIENT, "positives": COUNTS}

CASES = {
  "mean_scores": ((SCORES,), ["mean score", "a: 978 detections", "5 bins of IoU, 0.1 wide"]),
  "shares_above": ((IOUS, SHARES), ["share of detections (%)", "a (points)", "+5.00", "IoU"]),
  "score_against_iou": ((POINTS, SPEARMAN), RANKS),
  "ap_differences": ((IOUS, GAPS), ["AP - AP of plain (points)", "cls", "loc", "95% intervals"]),
  "sweep": ((CURVES,), ["AP (%)", "AP90 (%)", "localization weight w_loc", "effective weight", "without"]),
  "ap_bars": (BARS, ["paper (COCO)", "+1.5", "-1.0", "+0.8", "AP (%)"]),
  "diagnostics": ((STEPS, EDGES, AMOUNTS), ["training step", "share (%)", "Share of the positives"]),
}  # fmt: skip


def draw(folder, name, arguments=None, smoke=True):
  output = Output(folder, "", "make it", smoke)
  plot = Plot(output, f"{name}_1.5", f"Title of {name}", "Matched at 0.5; best score first.")
  more = {"baseline": "plain"} if name == "ap_differences" else {}
  getattr(plots, name)(plot, *(CASES[name][0] if arguments is None else arguments), **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("plots") / "new"
  for name in CASES:
    draw(folder, name)
  return folder


def texts(path):
  elements = [e for e in ElementTree.parse(path).iter() if e.tag.endswith("}text")]
  return [" ".join(" ".join(e.itertext()).split()) for e in elements]


def rows(folder, name):
  with (folder / f"{name}_1.5.csv").open(newline="") as file:
    return list(csv.DictReader(file))


def numbers(rows, *columns):
  return [[float(row[c]) if row[c] else NAN for c in columns] for row in rows]


@pytest.mark.parametrize("name", CASES)
def test_files_hold_labels_caption_and_stamp(folder, name):
  assert (folder / f"{name}_1.5.png").read_bytes().startswith(b"\x89PNG")
  words = texts(folder / f"{name}_1.5.svg")
  shown = " ".join(words)
  assert STAMP in words and f"Title of {name}: {STAMP}" in words
  assert "mathdefault" not in shown
  for word in [*CASES[name][1], "Matched at 0.5; best score first."]:
    assert word in shown, word
  assert {row["stamp"] for row in rows(folder, name)} == {STAMP}


def test_no_stamp_unless_asked(tmp_path):
  draw(tmp_path, "sweep", smoke=False)
  assert not any("smoke" in path.read_text() for path in tmp_path.glob("*.[sc]*"))
  assert "Title of sweep" in texts(tmp_path / "sweep_1.5.svg")
  assert "stamp" not in rows(tmp_path, "sweep")[0]


def test_the_same_bytes_whatever_the_users_settings_and_no_pyplot(tmp_path, folder):
  with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "path", "axes.facecolor": "red"}):
    for name in ("score_against_iou", "diagnostics"):
      draw(tmp_path, name)
      for path in tmp_path.glob(f"{name}*"):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name
    assert matplotlib.rcParams["font.size"] == 20
  assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_csv_of_mean_scores(folder):
  table = rows(folder, "mean_scores")
  assert [row["run"] for row in table] == ["a"] * 5 + ["b"] * 5
  expected = []
  for _, mean, counts in SCORES.values():
    mean = np.where(counts > 0, mean, NAN)
    expected += np.stack([EDGES[:-1], EDGES[1:], mean, counts], axis=1).tolist()
  np.testing.assert_array_equal(numbers(table, "iou_from", "iou_to", "mean_score", "detections"), expected)


def test_csv_of_shares(folder):
  got = np.array(numbers(rows(folder, "shares_above"), "iou", "share", "difference_points")).reshape(2, 10, 3)
  np.testing.assert_array_equal(got[:, :, 0], [IOUS, IOUS])
  np.testing.assert_array_equal(got[:, :, 1], list(SHARES.values()))
  np.testing.assert_array_equal(got[0, :, 2], 0.0)
  np.testing.assert_allclose(got[1, :, 2], 100 * (SHARES["b"] - SHARES["a"]), atol=1e-12)


def test_every_detection_is_in_a_cell_near_it(folder):
  table = rows(folder, "score_against_iou")
  assert {(row["run"], row["spearman"]) for row in table} == {("a", "0.5")}
  iou, score, count = np.array(numbers(table, "cell_iou", "cell_score", "detections")).T
  assert count.sum() == 400
  scores, ious, _ = POINTS["a"]
  np.testing.assert_allclose((iou * count).sum() / 400, ious.mean(), atol=0.01)
  np.testing.assert_allclose((score * count).sum() / 400, scores.mean(), atol=0.01)


def test_csv_of_ap_differences(folder):
  table = numbers(rows(folder, "ap_differences"), "iou", "difference", "low", "high")
  expected = np.concatenate([np.stack([IOUS, *arrays], axis=1) for arrays in GAPS.values()])
  np.testing.assert_array_equal(table, expected)


def test_csv_of_a_sweep(folder):
  columns = ("weight", "effective_weight", "ap", "ap_spread", "ap90", "ap90_spread")
  table = numbers(rows(folder, "sweep"), *columns)
  np.testing.assert_array_equal(table, np.concatenate([np.stack(c, axis=1) for c in CURVES.values()]))


def test_csv_of_ap_bars(folder, tmp_path):
  columns = ["ap", "ap_spread", "difference", "paper_ap", "paper_difference"]
  expected = [[34.0, 0.25, 0.0, 34.4, 0.0], [35.5, NAN, 1.5, NAN, NAN], [33.0, 0.0, -1.0, 35.2, 0.8]]
  np.testing.assert_allclose(numbers(rows(folder, "ap_bars"), *columns), expected, atol=1e-12)
  draw(tmp_path, "ap_bars", [["none", "cls", "loc"], np.array([*OURS, [NAN] * 3])])
  assert list(rows(tmp_path, "ap_bars")[0]) == ["run", *columns[:3], "stamp"]


def test_csv_of_diagnostics(folder):
  table = rows(folder, "diagnostics")
  got = np.array(numbers(table, "step", "iou_from", "iou_to", "share")).reshape(2, 3, 5, 4)
  np.testing.assert_array_equal(got[1, :, 2, 0], STEPS)
  np.testing.assert_array_equal(got[0, 1, :, 1:3], np.stack([EDGES[:-1], EDGES[1:]], axis=1))
  expected = [
    [[0.25, 0.25, 0.5, 0, 0], [NAN] * 5, [0, 0.75, 0, 0, 0.25]],
    [[0.5, 0.5, 0, 0, 0], [NAN] * 5, [0, 0, 0.25, 0.25, 0.5]],
  ]
  np.testing.assert_array_equal(got[..., 3], expected)


def test_the_axis_of_diagnostics_ends_with_the_last_step(tmp_path):
  draw(tmp_path, "diagnostics", [np.array([200, 400, 600]), EDGES, AMOUNTS])
  ticks = [int(word) for word in texts(tmp_path / "diagnostics_1.5.svg") if word.isdigit()]
  assert max(ticks) == 600 and 200 in ticks  # the first is held from 0 on


@pytest.mark.filterwarnings("error")
def test_what_a_smoke_run_may_have(tmp_path):
  """One seed, one step, no detections."""
  nothing = ScorePerIou(EDGES, np.full(5, NAN), np.zeros(5, int))
  draw(tmp_path, "mean_scores", [{"a": nothing, "b": nothing}])
  draw(tmp_path, "shares_above", [IOUS, {"a": np.zeros(10), "b": np.zeros(10)}])
  draw(tmp_path, "sweep", [{"with": np.array([WEIGHTS[:1], [1.0], [0.0], [NAN], [0.0], [NAN]])}])
  draw(tmp_path, "ap_bars", [["none"], np.array([[0.0], [NAN], [NAN]])])
  draw(tmp_path, "diagnostics", [STEPS[:1], EDGES, {name: values[:1] for name, values in AMOUNTS.items()}])
  assert [row["mean_score"] for row in rows(tmp_path, "mean_scores")] == [""] * 10
  assert len(list(tmp_path.glob("*.png"))) == 5


def test_one_to_seven_runs(tmp_path):
  seven = {f"a rather long name of run {i}": SCORES["a"] for i in range(7)}
  draw(tmp_path, "mean_scores", [seven])
  assert len(rows(tmp_path, "mean_scores")) == 35
  four = list(seven)[:4]
  draw(tmp_path, "score_against_iou", [dict.fromkeys(four, POINTS["a"]), dict.fromkeys(four, 0.5)])
