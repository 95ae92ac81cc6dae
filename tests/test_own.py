"""configs/own.py: what is chosen for hand-worked data, that what is given wins, and that a run keeps it."""

import json
import math
import re
import shutil
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from iou_det.config import differences, from_dict, to_choose
from iou_det.config_args import find_config, read_config_file
from iou_det.data.shapes import Shapes, export_coco
from iou_det.data.source import Category, Source, from_rows
from iou_det.errors import Preempted, UserError
from iou_det.training import own
from iou_det.training.choice import best_overlap
from iou_det.training.own import choose_splits, settle, settle_run, table
from tests.command import ROOT, iou_det

SMALL = {  # a network that compiles in seconds
  "model.width": 8, "model.fpn_channels": 16, "model.head_convs": 0, "model.min_level": 5,
  "model.norm": "frozen_bn", "model.head_norm": "none", "data.short": 64, "data.long": 96, "loss.w_loc": 2.0,
  "train.optimizer": "sgd", "train.learning_rate": 0.01, "train.ema": 0.0, "train.batch_size": 8,
  "eval.batch_size": 8, "eval.score_threshold": 0.001}  # fmt: skip


def config_of(arg="", path="made up", **given):
  config = read_config_file(find_config("own"), arg)
  config.data.path = str(path)
  config.update_from_flattened_dict({name.replace("__", "."): value for name, value in given.items()})
  return config


def source_of(images, boxes):
  """Images of (width, height), the boxes of each as (width, height, label), all at 10, 20."""
  rows = [[(10, 20, w, h, label, False, w * h, 1) for w, h, label in of_image] for of_image in boxes]
  named = [(i, f"{i}.jpg", height, width) for i, (width, height) in enumerate(images)]
  categories = tuple(Category(k, f"class {k}") for k in range(3))
  return Source("made up", categories, from_rows(named, rows), lambda i: b"")


def chosen(images, boxes, arg="", **given):
  """The fields that are chosen for such a training split, and the reasons as one text."""
  sources = {"train": source_of(images, boxes), "val": source_of(images, boxes)}
  config, rows = settle(config_of(arg, **given), sources=sources)
  assert (
    not to_choose(config) and differences(config, from_dict(json.loads(json.dumps(config.to_dict())))) == []
  )
  return {row.field: row.value for row in rows}, " ".join(f"{row.field}: {row.why}" for row in rows)


def test_boxes_are_as_large_in_the_input_as_the_smallest_class_needs():
  # Class 1's 60 px of 480 become 32 px, four cells of the finest level; that they are few does not matter.
  boxes = [[(120, 120, 0)] * 20 + [(60, 60, 1)]] * 25
  fields, why = chosen([(640, 480)] * 25, boxes)
  assert (fields["data.short"], fields["data.long"]) == (256, 352)
  assert fields["data.canvas"] == (320, 440) and "25 of 25 images are larger" in why
  assert fields["data.max_boxes"] == 24  # 21 to a multiple of 8
  assert (fields["data.train_split"], fields["data.val_split"]) == ("train", "val")
  assert (
    "10% of the boxes of class 1, the smallest class, are below 60 px there (root of the area), 32" in why
  )


def test_tiny_boxes_get_what_can_be_afforded_and_a_word_of_it():
  fields, why = chosen([(640, 480)], [[(8, 8, 0)] * 30])
  # 131,072 pixels at 4:3: 313 x 418, in whole cells of the fifth level
  assert (fields["data.short"], fields["data.long"]) == (320, 416)
  assert fields["anchors.scale"] == 1.0  # 8 px, and the boxes 8 * 0.65 = 5.2: (5.2 / 8)^2 = 0.42 < 0.5
  assert "at most 131,072 px an image" in why and "0.0% of 30 boxes" in why
  assert "train by their best anchor alone: give larger" in why
  short = lambda arg: chosen([(640, 480)], [[(8, 8, 0)] * 30], arg)[0]["data.short"]
  assert (short("size=medium"), short("device=gpu"), short("size=medium,device=gpu")) == (448, 544, 896)


def test_huge_boxes_need_no_large_input():
  fields, why = chosen([(640, 480)] * 3, [[(400, 400, 0)]] * 3)
  assert (fields["data.short"], fields["data.long"]) == (128, 160) and "no side below 128 px" in why
  assert "100.0% of 3 boxes" in why and fields["model.max_level"] == 5
  assert fields["anchors.scale"] == 4.0  # at stride 16 the third octave's: 101.6 px, the boxes 100


def test_small_images_are_not_enlarged_without_end():
  assert chosen([(100, 100)], [[(4, 4, 0)] * 20])[0]["data.short"] == 192  # 2 times 100, in steps of 32


def test_tall_images():
  fields, _ = chosen([(200, 2000)] * 2, [[(100, 100, 0)] * 10] * 2)
  assert (fields["data.short"], fields["data.long"]) == (128, 1280)
  assert fields["data.canvas"] == (160, 1600)


def test_thousands_of_boxes_in_an_image():
  fields, why = chosen([(640, 480)], [[(20, 20, 2)] * 5000])
  assert fields["data.max_boxes"] == 5000 and fields["eval.max_detections"] == 1000
  assert "up to 5000 boxes, of which no more than these are found: cut the images into tiles" in why


def test_ratios_follow_the_boxes():
  fields, why = chosen([(640, 480)], [[(20, 160, 0), (24, 150, 0), (18, 140, 0)] * 10])
  assert fields["anchors.ratios"] == (3.9, 7.8, 16.0) and "100.0% of 30" in why  # around 140 / 18
  assert chosen([(640, 480)], [[(60, 60, 0), (50, 80, 0)] * 10])[0]["anchors.ratios"] == (0.5, 1.0, 2.0)


def test_what_is_given_wins_and_the_rest_follows_it():
  boxes = [[(40, 40, 0)] * 20] * 4
  free, _ = chosen([(640, 480)] * 4, boxes)
  given = {"data__short": 144, "data__long": 192, "data__max_boxes": 99, "train__epochs": 7}
  fields, why = chosen([(640, 480)] * 4, boxes, **given)
  assert [fields[name.replace("__", ".")] for name in given] == list(given.values())
  assert "data.max_boxes: given" in why and fields["data.canvas"] == (200, 240)
  assert fields["anchors.scale"] < free["anchors.scale"]  # the boxes are half as large there
  for side in ({"data__short": 480}, {"data__long": 640}):  # the other follows it
    fields, why = chosen([(640, 480)] * 4, boxes, **side)
    assert (fields["data.short"], fields["data.long"]) == (480, 640) and "in proportion to the" in why
  with pytest.raises(UserError, match="--config=own:init=runs/a, whose network"):
    chosen([(640, 480)] * 4, boxes, model__init="runs/a")
  fields, why = chosen([(640, 480)] * 4, boxes, anchors__scale=2.0)
  assert (
    fields["anchors.scale"] == 2.0 and fields["data.short"] == 192
  )  # 40 px become 16, its smallest anchor
  assert "anchors.scale: given: 100.0% of 80 boxes" in why


def test_data_without_boxes_or_at_no_place_are_refused(tmp_path):
  with pytest.raises(UserError, match="made up has nothing to train on: 0 of 1 images and 0 of 0 boxes"):
    chosen([(640, 480)], [[]])
  with pytest.raises(UserError, match="data path nowhere is not a folder"):
    settle(config_of(path="nowhere"))
  with pytest.raises(UserError, match=r"config\.data\.path is empty: give "):
    settle(config_of(path=""))


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("size=big", "size=big: must be small or medium"),
    ("device=tpu", "device=tpu: must be cpu or gpu"),
    ("minutes=long", "'long' is not a number"),
    ("seconds=3", "known, with defaults: size=small, device=cpu, minutes=20.0, init="),
    ("init=nowhere", "nowhere: there is no such file or folder"),
  ],
)
def test_arguments_are_checked(arg, message):
  with pytest.raises(UserError, match=message):
    config_of(arg)


@pytest.mark.parametrize(
  ("there", "expected"),
  [
    (["test", "train", "valid"], ("train", "valid")),
    (["train2017", "val2017"], ("train2017", "val2017")),
    (["test", "train"], ("train", "test")),
    (["training", "train", "validation"], ("train", "validation")),
    (["a", "b"], ("train", "val")),  # which opening them refuses, naming those
  ],
)
def test_splits_are_found_by_their_usual_names(there, expected):
  chooser = own.Chooser(config_of())
  choose_splits(chooser, there)
  assert (chooser.config.data.train_split, chooser.config.data.val_split) == expected
  assert ("the best step is chosen on it too" in str(chooser.rows)) == (expected[1] == "test")


@pytest.mark.parametrize("convention", ["modern", "legacy"])
def test_best_overlap_is_that_of_all_anchors(convention):
  rng = np.random.default_rng(0)
  low = rng.uniform(0, 90, (20, 2))
  boxes = np.concatenate([low, low + rng.uniform(3, 60, (20, 2))], axis=1)
  sides, ratios = [8 * s * 1.5 * 2 ** (o / 2) for s in (1, 2) for o in (0, 1)], (0.5, 1.7)
  best = []
  for x1, y1, x2, y2 in boxes:
    found = 0.0
    for n, side in enumerate(sides):
      stride = 8 if n < 2 else 16
      for ratio in ratios:
        w, h = side / math.sqrt(ratio), side * math.sqrt(ratio)
        for row in range(math.ceil(96 / stride)):
          for column in range(math.ceil(160 / stride)):
            a1, a2 = column * stride - w / 2, column * stride + w / 2
            b1, b2 = row * stride - h / 2, row * stride + h / 2
            if convention == "legacy":  # inclusive, whole pixels, in the middle of the cell
              half = (stride - 1) / 2
              a1, a2 = (column * stride + round(half + s * (w - 1) / 2) for s in (-1, 1))
              b1, b2 = (row * stride + round(half + s * (h - 1) / 2) for s in (-1, 1))
              a2, b2 = a2 + 1, b2 + 1
            common = max(0, min(x2, a2) - max(x1, a1)) * max(0, min(y2, b2) - max(y1, b1))
            union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - common
            found = max(found, common / union)
    best.append(found)
  size = np.tile([96, 160], (20, 1))
  shape = {"scale": 1.5, "octaves": 2, "ratios": ratios, "convention": convention}
  np.testing.assert_allclose(best_overlap(boxes, size, (8, 16), **shape), best, atol=1e-6)


def run(config, workdir, stopped=lambda: False):
  return settle_run(config, workdir, None, stopped)


@pytest.fixture
def half_a_second(monkeypatch):
  """A step takes so long."""
  monkeypatch.setattr(own, "step_seconds", lambda *_: 0.5)


def test_the_schedule_fits_the_time(shapes_folder, tmp_path, half_a_second):
  # 32 images by 4: epochs of 8 steps, 4 s. 13 images to score, by 0.4 of a step's time: 0.65 s.
  config = run(config_of("minutes=2", shapes_folder), tmp_path)
  t = config.train
  assert t.epochs == 29 == int((120 - 4 * 0.65) / 4)
  assert (t.eval_epochs, t.checkpoint_epochs) == (8, 8)  # at 8, 16, 24 and 29
  assert t.warmup_steps == 12  # of 232
  # 3 s are too little: an epoch and its evaluation take 4.65.
  with pytest.raises(
    UserError, match=r"minutes=0\.05: a step of 4 images takes 0\.5 s here.*give minutes=0\.1 "
  ):
    run(config_of("minutes=0.05", shapes_folder), tmp_path)
  with pytest.raises(UserError, match="minutes=0: must be above 0"):
    run(config_of("minutes=0", shapes_folder), tmp_path)
  assert run(config_of("minutes=0.1", shapes_folder), tmp_path).train.epochs == 1


def test_a_run_keeps_what_was_chosen(shapes_folder, tmp_path, half_a_second, monkeypatch):
  begun = run(config_of("minutes=2", shapes_folder), tmp_path)
  (tmp_path / "config.json").write_text(json.dumps(begun.to_dict()))
  monkeypatch.setattr(own, "step_seconds", None)  # whoever measures again fails
  monkeypatch.setattr(own, "open_dataset", None)  # or looks again
  assert differences(run(config_of("minutes=2", shapes_folder), tmp_path), begun) == []
  assert differences(settle(config_of("minutes=2", shapes_folder), tmp_path)[0], begun) == []
  # What is asked otherwise stays so, and `check_workdir` refuses it.
  other = run(config_of("minutes=3", shapes_folder, train__epochs=9), tmp_path)
  assert differences(other, begun) == ["own.minutes: 3.0 != 2.0", "train.epochs: 9 != 29"]


def test_given_epochs_are_not_measured(shapes_folder, tmp_path, monkeypatch):
  monkeypatch.setattr(own, "step_seconds", None)
  t = run(config_of("", shapes_folder, train__epochs=6), tmp_path).train
  assert (t.epochs, t.eval_epochs) == (6, 2)


class Step:
  """Takes half a second to compile for each orientation, 20 ms else."""

  def __init__(self):
    self.compiled, self.calls = set(), 0

  def __call__(self, state, batch, portrait):
    time.sleep(0.02 if portrait in self.compiled else 0.5)
    self.compiled.add(portrait)
    self.calls += 1
    return state, {"loss": np.float32(0)}

  def _cache_size(self):
    return len(self.compiled)


@pytest.fixture
def step(monkeypatch):
  step = Step()
  monkeypatch.setattr(own, "create_state", lambda *_: (None, None))
  monkeypatch.setattr(own, "make_train_step", lambda *_: step)
  monkeypatch.setattr(own, "SECONDS", 0.3)
  return step


def test_compiling_does_not_count(tmp_path, step):
  for split in ("train", "val"):
    export_coco(Shapes(split, images=24, height=64, width=96, portrait_share=0.3), tmp_path / "data")
  t = run(config_of("minutes=1", tmp_path / "data", train__batch_size=8), tmp_path / "w").train
  assert len(step.compiled) == 2
  # 4 steps of 20 to 60 ms an epoch: some hundred of these; with half a second for a step below 30
  assert 150 < t.epochs < 800


def test_timing_can_be_stopped(shapes_folder, tmp_path, step):
  with pytest.raises(Preempted):
    run(config_of("", shapes_folder, train__batch_size=8), tmp_path, lambda: True)
  assert step.calls == 0 and list(tmp_path.iterdir()) == []


def test_a_detector_keeps_its_network_and_anchors(shapes_folder):
  workdir = ROOT / "tests/golden/workdir"
  theirs = from_dict(json.loads((workdir / "config.json").read_text()))
  config, rows = settle(config_of(f"init={workdir}", shapes_folder))
  for section in ("model", "anchors", "match", "loss"):
    one = [ConfigDict({section: c[section]}) for c in (config, theirs)]
    assert [d.split(":")[0] for d in differences(*one)] == ["model.init"] * (section == "model")
  (anchors,) = [row for row in rows if row.field == "anchors.scale"]
  assert anchors.value == theirs.anchors.scale and re.match(r"given: [0-9.]+% of \d+ boxes", anchors.why)
  assert config.data.max_boxes == 8 and config.data.mean == theirs.data.mean


def test_the_table_has_a_line_for_each_field(shapes_folder):
  config, rows = settle(config_of("", shapes_folder))
  lines = table(rows, config)
  assert {row.field for row in rows} == set(to_choose(config_of())) and max(map(len, lines)) <= 110
  assert all(any(line.startswith(f"  {row.field} ") for line in lines) for row in rows)


def test_train_measures_keeps_and_compares(shapes_folder, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  flags = [f"--config.{name}={value}" for name, value in SMALL.items()]
  command = [
    "train",
    "--config=own:minutes=0.15",
    f"--config.data.path={shapes_folder}",
    *flags,
    "--workdir=w",
  ]
  # It is timed, but taken for a second a step: an epoch of 4 fits.
  timed = (
    "from iou_det.training import own; real, own.SECONDS = own.step_seconds, 0.2; "
    "own.step_seconds = lambda *a: 1.0 if real(*a) > 0 else 0"
  )
  done = iou_det(*command, "--compare_baseline", before=timed)
  assert done.returncode == 0, done.stderr
  assert (
    "a step of 8 images takes 1 s here: 1 epochs of 4 steps and 1 evaluations"
    in " ".join(done.stderr.split())
    and "chosen for" in done.stderr
  )
  ours, plain = (
    from_dict(json.loads((tmp_path / p / "config.json").read_text())) for p in ("w", "w/baseline")
  )
  assert differences(ours, plain) == [
    "loss.eta: 1.5 != 0.0", "loss.lambd: 1.5 != 0.0", "loss.w_loc: 2.0 != 1.0"]  # fmt: skip
  head, *rows = done.stdout.splitlines()[-6:-1]
  assert head.split() == ["AP", "AP50", "AP75", "AP90"]
  scores = [json.loads((tmp_path / p / "eval/val/metrics.json").read_text()) for p in ("w", "w/baseline")]
  for row, score in zip(rows, scores, strict=False):
    assert row.split()[-4] == f"{100 * score['AP']:.1f}"
  assert rows[0].startswith("eta=1.5, lambd=1.5, w_loc=2") and rows[2].startswith("difference")

  again = iou_det(*command)  # goes on from what is there: nothing is measured again
  assert again.returncode == 0, again.stderr
  assert "takes" not in again.stderr
  assert "as w/config.json has it: " in again.stderr and "data.train_split=train" in again.stderr
  shutil.copytree("w", "v")
  refused = iou_det(*command[:-1], "--workdir=v", "--config.own.minutes=5")
  assert refused.returncode == 2 and "own.minutes: 0.15 != 5.0" in refused.stderr
  doctor = iou_det(
    "doctor", "--config=own", "--config.train.batch_size=8", f"--data={shapes_folder}", "--pictures=0"
  )
  assert doctor.returncode < 2 and "\n  anchors.scale " in doctor.stdout, doctor.stderr + doctor.stdout
