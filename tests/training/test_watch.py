"""Warnings come when they should, once, and not on what the shipped configs' runs logged."""

import pytest

from iou_det.config import base_config
from iou_det.data.source import Category, Source, from_rows
from iou_det.training.fit import best_ious, unmatched_classes
from iou_det.training.watch import Watch, before_training
from tests import oracles

# step: loss, norm of the gradient; as logged by runs of these configs (the first of Eq. 2's and 4's losses).
REAL = {
  "shapes": (3000, 100, 10.0, {
    1: (1.755, 7.90), 50: (1.150, 3.17), 100: (0.931, 1.80), 150: (0.848, 1.43), 250: (0.742, 1.14),
    400: (0.682, 1.04), 600: (0.627, 1.01), 800: (0.6, 1.0), 1500: (0.470, 1.19), 3000: (0.361, 1.16)}),
  "deeppcb": (2520, 300, 10.0, {
    1: (1.417, 9.12), 50: (1.332, 12.8), 100: (0.869, 3.18), 150: (0.724, 2.24), 250: (0.554, 2.83),
    400: (0.429, 2.42), 600: (0.332, 2.16), 1260: (0.173, 1.75), 2520: (0.114, 1.17)}),
  "bccd": (128, 0, 10.0, {  # its beginning, each step a row: the warm-up is left out here
    1: (1.650, 7.88), 2: (1.610, 5.89), 3: (1.624, 6.20), 6: (1.543, 9.98), 9: (1.374, 6.63),
    13: (1.083, 6.98), 65: (0.778, 4.88), 128: (0.707, 2.56)}),
}  # fmt: skip


def train_config(warmup_steps, clip_norm, **changes):
  config = base_config()
  config.train.update(warmup_steps=warmup_steps, clip_norm=clip_norm, **changes)
  return config


def feed(watch, rows, before=0):
  """What it says of rows, and at which step."""
  said = []
  for step, (loss, norm) in rows.items():
    steps = [{"gradient_norm": norm}] * (step - before)
    said += [(step, finding) for finding in watch.logged(step, steps, {"loss": loss})]
    before = step
  return said


@pytest.mark.parametrize("name", REAL)
def test_runs_that_learned_are_warned_of_nothing(name):
  last, warmup, clip, rows = REAL[name]
  assert feed(Watch(train_config(warmup, clip), [], last), rows) == []


def test_a_loss_that_stays_is_said_once_with_what_to_change():
  rows = {step: (1.1 + 0.02 * (step % 100 == 0), 3.0) for step in range(50, 3001, 50)}
  said = feed(Watch(train_config(500, 35.0), [], 20000), rows)
  assert [step for step, _ in said] == [1000]  # 500 steps after the warm-up
  assert "the loss does not fall: 1.11" in said[0][1].what and "1.100 at the beginning" in said[0][1].what
  assert "--config.train.learning_rate=0.001 (now 0.01)" in said[0][1].todo
  # The same rows, half of them before it was resumed: not said again.
  logged = [{"step": step, "loss": loss} for step, (loss, _) in rows.items() if step <= 1500]
  later = {step: row for step, row in rows.items() if step > 1500}
  assert feed(Watch(train_config(500, 35.0), logged, 20000), later, 1500) == []


def test_a_loss_that_comes_back_is_said_and_what_starts_from_a_detector_may_stay_low():
  rows = {step: (0.3, 3.0) for step in range(50, 1501, 50)}
  config = train_config(100, 35.0)
  config.model.init = "runs/other"
  assert feed(Watch(config, [], 1500), rows) == []
  rows |= {step: (0.5, 3.0) for step in range(1550, 2001, 50)}
  (only,) = feed(Watch(config, [], 1500), rows)
  assert only[0] in range(1600, 1751) and "does not fall" in only[1].what


def test_a_gradient_that_is_always_cut_is_said_once():
  rows = {step: (1 / step, 40.0 if step > 500 else 1.0) for step in range(50, 3001, 50)}
  (only,) = feed(Watch(train_config(500, 35.0), [], 20000), rows)
  step, finding = only
  assert step == 1000 and "cut to train.clip_norm=35 in 500 of the last 500 steps" in finding.what
  assert "--config.train.clip_norm=80" in finding.todo
  often = {step: (1 / step, 40.0 if step % 500 else 1.0) for step in range(50, 3001, 50)}  # 9 of 10
  assert feed(Watch(train_config(500, 35.0), [], 20000), often) == []


def source_of(sizes):
  """An image of 640x640 with a box of each (label, width, height); three classes."""
  boxes = [
    (10.0, 10.0, float(w), float(h), label, 0, float(w * h), i) for i, (label, w, h) in enumerate(sizes)
  ]
  categories = tuple(Category(i + 1, name) for i, name in enumerate(("cat", "dog", "eel")))
  return Source("made", categories, from_rows([(1, "a.png", 640, 640)], [boxes]), lambda i: b"")


def square_config(**match):
  config = base_config()
  config.anchors.convention = "modern"
  config.data.update(short=640, long=640)
  config.match.update(match)
  return config


def test_the_best_iou_is_that_of_anchors_that_lie_as_well_as_they_can():
  source, config = source_of([(0, 40, 40), (1, 300, 4), (2, 9, 9)]), square_config()
  every = oracles.anchors((1, 1), (8, 16, 32, 64, 128), 4.0, 3, (0.5, 1.0, 2.0), "modern")
  sides = every[:, 2:] - every[:, :2]
  for row, ours in zip(((40, 40), (300, 4), (9, 9)), best_ious(config, source.annotations), strict=True):
    centred = lambda w, h: (-w / 2, -h / 2, w / 2, h / 2)
    assert ours == pytest.approx(max(oracles.iou(centred(*row), centred(*side)) for side in sides))


def test_classes_that_no_anchor_reaches_are_named():
  source = source_of([(0, 40, 40), (1, 300, 4), (1, 200, 3), (2, 9, 9)])
  assert list(unmatched_classes(square_config(), source)) == []  # each box forces one
  (finding,) = unmatched_classes(square_config(force_match=False), source)
  assert finding.what.endswith("an IoU of 0.5 with their boxes: dog, eel") and "force_match" in finding.todo
  (finding,) = unmatched_classes(square_config(min_forced_iou=0.085), source)  # 0.091, and 0.079
  assert finding.what.endswith("an IoU of 0.085 with their boxes: eel")
  config = square_config()
  config.data.min_box_side = 3.5
  thin = source_of([(0, 40, 40), (1, 200, 3)])
  (finding,) = unmatched_classes(config, thin)
  assert "crowds or too small" in finding.what and finding.what.endswith(": dog")


def test_small_boxes_and_classes_without_a_box_are_said_beforehand():
  source = source_of([(0, 9, 9)] * 5 + [(1, 60, 60)] * 5)
  config = square_config()
  config.data.update(train_split="train", val_split="val")
  found = "\n".join(map(str, before_training(config, source, source)))
  assert "50% of the boxes are below" in found and "--config.anchors.scale=" in found
  assert "1 of 3 classes (eel) have no box" in found
  large = source_of([(0, 60, 60), (1, 60, 60), (2, 60, 60)])
  assert before_training(config, large, large) == []
