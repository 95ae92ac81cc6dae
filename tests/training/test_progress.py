"""What training says: the time that is left, counted by hand, and where it is said."""

import io
import sys

import pytest

from iou_det.training.progress import Progress, duration, evaluations_left
from iou_det.training.stopping import stops_early


@pytest.mark.parametrize("every", [1, 3, 4, 10, 11])
def test_evaluations_left_are_those_that_the_loop_will_make(every):
  last = 10
  due = lambda step: step == last or step % every == 0  # the loop's rule
  for step in range(last + 1):
    assert evaluations_left(step, last, every) == sum(due(later) for later in range(step + 1, last + 1))


def test_durations_are_short():
  seconds = (0.4, 40.0, 99.0, 100.0, 720.0, 5999.0, 7000.0, 12300.0)
  shown = ["0 s", "40 s", "99 s", "2 min", "12 min", "1 h 40 min", "1 h 57 min", "3 h 25 min"]
  assert [duration(s) for s in seconds] == shown


def row(loss=0.5, speed=20.0):
  return {"loss": loss, "images_per_second": speed, "epoch": 1.25}


def test_the_time_left_has_the_evaluations_and_forgets_the_first_step(caplog):
  progress = Progress(0, 1000, 250, scores := {}, None)
  progress.logged(row(), 1, 60.0)  # compiled
  progress.step = 100
  assert progress.eta() == ""  # nothing is known yet
  progress.logged(row(), 99, 198.0)
  assert progress.eta() == ", ETA 30 min + 4 evaluations"  # 900 steps of 2 s
  progress.step = 250
  scores[250] = 0.25
  with caplog.at_level("INFO"):
    figures = {"AP": 0.25, "AP50": 0.5, "loss": 0.75, "loss_classification": 0.5, "loss_localization": 0.25}
    progress.scored(250, "val", figures | {"seconds": 60.0})
  said = (
    "step 250, val: AP 0.250, AP50 0.500, loss 0.750 (classification + localization: 0.500 + 0.250); 60.0 s"
  )
  assert said in caplog.text
  assert progress.eta() == ", ETA 28 min"  # 750 steps of 2 s, 3 evaluations of a minute
  scores[500] = 0.125
  with caplog.at_level("INFO"):
    progress.scored(500, "val", {"AP": 0.125, "seconds": 30.0})
  assert "step 500, val: AP 0.125 (best: 0.250, step 250); 30.0 s" in caplog.text


def test_a_resumed_run_counts_from_where_it_is_by_its_own_speed():
  progress = Progress(900, 1000, 250, {250: 0.25}, 120.0)
  progress.logged(row(), 1, 1.0)
  progress.step = 950
  progress.logged(row(), 49, 49.0)
  assert progress.eta() == ", ETA 3 min"  # 50 s and the last evaluation


def test_without_a_terminal_it_is_a_line_a_minute(monkeypatch, caplog, capsys):
  clock = [1000.0]
  monkeypatch.setattr("iou_det.training.progress.time.monotonic", lambda: clock[0])
  progress = Progress(0, 100, 50, {}, None)
  with caplog.at_level("INFO"):
    for _ in range(12):  # 10 s each
      progress.stepped()
      progress.logged(row(), 1, 10.0)
      clock[0] += 10
  lines = [r.message for r in caplog.records]
  assert len(lines) == 2 and lines[1].startswith("step 7 of 100, epoch 1.25: loss 0.500, 20.0 img/s, ETA ")
  progress.close()
  assert capsys.readouterr().err == ""


def test_in_a_terminal_the_bar_has_it_all(monkeypatch, caplog):
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(sys, "stderr", terminal)
  progress = Progress(10, 20, 5, {5: 0.125}, 3.0)
  progress.logged(row(), 1, 60.0)
  progress.stepped()
  progress.logged(row(), 1, 4.0)
  with caplog.at_level("INFO"):
    progress.stepped()
    progress.bar.refresh()
  assert "| 12/20 [" in terminal.getvalue()
  assert "loss 0.500, AP 0.125, 20.0 img/s, ETA 38 s" in terminal.getvalue()  # 8 steps, evaluated twice
  assert not caplog.records
  progress.close()


@pytest.mark.parametrize(
  ("scores", "stop_after", "stops"),
  [
    ([], 1, False),
    ([0.1], 1, False),
    ([0.2, 0.1], 1, True),
    ([0.2, 0.2], 1, True),  # no better
    ([0.2, 0.1, 0.19], 3, False),
    ([0.2, 0.1, 0.19, 0.2], 3, True),
    ([0.2, 0.1, 0.3], 1, False),
    ([0.2, 0.1, 0.1, 0.1], 0, False),  # off
  ],
)
def test_it_stops_after_so_many_evaluations_without_a_higher_ap(scores, stop_after, stops):
  steps = {100 * (i + 1): score for i, score in enumerate(scores)}
  for order in (steps, dict(reversed(steps.items()))):
    assert stops_early(order, stop_after) == stops
