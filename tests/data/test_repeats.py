"""Repeat factors against a loop over images; epochs have them by factor, in equally many batches."""

import logging
import math

import numpy as np

from iou_det.config import base_config
from iou_det.data.pipeline import EPOCHS, train_batches
from iou_det.data.plan import Index, Plan, TrainingFilter, make_plan, scan
from iou_det.data.repeats import draw_counts, in_units, repeat_factors
from iou_det.data.source import Category, Source, corners, from_rows
from tests.data.test_pipeline import encoded

CLASSES = 5  # the last has no box


def draw_source(seed=0, images=60):
  """Images with boxes of random classes, some rare; crowds, small boxes, small and empty images too."""
  rng = np.random.default_rng(seed)
  sizes = [tuple(int(v) for v in rng.integers(28, 64, 2)) for _ in range(images)]
  boxes = []
  for _ in sizes:
    labels = rng.choice(4, rng.integers(0, 4), p=[0.7, 0.2, 0.08, 0.02])
    boxes.append([
      (1, 2, float(rng.choice([0.5, 8])), 9, int(c), bool(rng.random() < 0.1), 72.0, 0) for c in labels
    ])  # fmt: skip
  rows = [(i, f"{i}.png", h, w) for i, (h, w) in enumerate(sizes)]
  categories = tuple(Category(c + 1, f"class{c}") for c in range(CLASSES))
  return Source("random", categories, from_rows(rows, boxes), lambda i: encoded(sizes, i)), sizes, boxes


def make_config(threshold, keep_empty=True, batch_size=4):
  config = base_config()
  config.data.update(canvas=(64, 96), max_boxes=8, threads=1, keep_empty=keep_empty)
  config.data.repeat_threshold = threshold
  config.train.batch_size = batch_size
  return config


def slow_factors(sizes, boxes, threshold, keep_empty):
  """r(i) of every usable image, by LVIS's rule in words."""
  good = [{b[4] for b in own if not b[5] and b[2] >= 1} for own in boxes]
  usable = [i for i, size in enumerate(sizes) if min(size) >= 32 and (good[i] or keep_empty)]
  of_class = {}
  for c in range(CLASSES):
    share = sum(c in good[i] for i in usable) / len(usable)
    of_class[c] = max(1.0, math.sqrt(threshold / share)) if share else 1.0
  return {i: max([1.0, *(of_class[c] for c in good[i])]) for i in usable}, of_class


def epochs_of(plan, number):
  """The batches of each epoch."""
  per = plan.steps_per_epoch
  return [[plan.batch(e * per + s) for s in range(per)] for e in range(number)]


def test_factors_are_the_loop_over_images():
  source, sizes, boxes = draw_source()
  for threshold in (0.01, 0.3, 1.0):
    for keep_empty in (True, False):
      keep = TrainingFilter(keep_empty=keep_empty)
      index = scan(source, keep)
      a = source.annotations
      good = keep.boxes(corners(a.bbox), a.crowd, a.area)
      got = repeat_factors(source, good, index.usable, threshold)
      expected, _ = slow_factors(sizes, boxes, threshold, keep_empty)
      assert list(np.flatnonzero(index.usable)) == list(expected)
      np.testing.assert_allclose(got[index.usable], list(expected.values()), rtol=1e-12)
  assert max(expected.values()) > 3


def test_an_epoch_has_an_image_by_its_factor_in_a_fixed_number_of_batches():
  source, sizes, boxes = draw_source()
  config = make_config(0.4)
  plan = make_plan(source, config)
  factors, _ = slow_factors(sizes, boxes, 0.4, True)
  groups = [[i for i in factors if (sizes[i][0] > sizes[i][1]) == portrait] for portrait in (False, True)]
  sums = [sum(factors[i] for i in group) for group in groups]
  assert plan.steps_per_epoch == sum(math.ceil(s / 4) for s in sums)
  totals = np.zeros(len(sizes))
  number = 300
  for batches in epochs_of(plan, number):
    counts = np.zeros(len(sizes), int)
    for portrait, group, total in zip((False, True), groups, sums, strict=True):
      mine = [b for b in batches if b.portrait == portrait]
      assert len(mine) == math.ceil(total / 4)
      records = np.concatenate([b.records for b in mine])
      assert set(records) == set(group)  # nothing is dropped: each factor is at least 1
      again = np.concatenate([b.again for b in mine])
      for i in group:  # each time of an epoch has its own random numbers
        assert sorted(again[records == i]) == list(range((records == i).sum()))
      own = np.bincount(records, minlength=len(sizes))
      fillers = len(records) - round(total)
      over = sum(max(0, own[i] - math.ceil(factors[i])) for i in group)
      assert over <= fillers + 1 and all(own[i] >= math.floor(factors[i]) for i in group)
      counts += own
    totals += counts
  filled = plan.steps_per_epoch * 4 - sum(sums)
  mean = np.array([totals[i] / number for i in factors])
  expected = np.array(list(factors.values()))
  assert abs((mean - expected).sum() - filled) < 1e-6
  np.testing.assert_allclose(mean, expected, atol=0.15 + filled / len(factors))


def test_counts_are_neighbours_of_their_factors_and_those_on_average():
  rng = np.random.default_rng(0)
  factors = np.concatenate([np.ones(5), rng.uniform(1, 6, 20), [2.0, 3.0]])
  units, number = in_units(factors), 4000
  drawn = np.stack([draw_counts(units, rng) for _ in range(number)])
  assert (drawn >= np.floor(factors)).all() and (drawn <= np.ceil(factors)).all()
  assert set(drawn.sum(axis=1)) <= {math.floor(factors.sum()), math.ceil(factors.sum())}
  error = np.abs(drawn.mean(axis=0) - factors)
  assert error.max() < 4 * 0.5 / math.sqrt(number)
  assert not error[[0, 1, 2, 3, 4, -2, -1]].any()  # whole factors leave nothing to chance


def test_the_order_is_a_function_of_seed_and_epoch_and_copies_are_not_neighbours():
  index = Index(
    np.full(40, 40, np.int32), np.full(40, 50, np.int32), np.ones(40, np.int32), np.ones(40, bool)
  )
  make = lambda seed: Plan(index, batch_size=5, seed=seed, factors=np.full(40, 4.0))
  orders = lambda plan: [[b.records.tolist() for b in batches] for batches in epochs_of(plan, 2)]
  first = orders(make(0))
  assert first == orders(make(0)) != orders(make(1)) and first[0] != first[1]
  # 160 images of 40: in a random order a batch of 5 holds 4.63 different ones on average.
  assert np.mean([len(set(b)) for batches in first for b in batches]) > 4.3


def test_without_factors_the_order_is_as_it_was():
  """The same random numbers as before there were factors, written out."""
  rng = np.random.default_rng(1)
  heights, widths = (rng.integers(30, 60, 23).astype(np.int32) for _ in range(2))
  usable = np.arange(23) % 6 > 0
  plan = Plan(Index(heights, widths, np.ones(23, np.int32), usable), batch_size=4, seed=5)
  for epoch, batches in enumerate(epochs_of(plan, 3)):
    rng = np.random.default_rng([5, epoch])
    expected = []
    for portrait in (False, True):
      records = np.flatnonzero(usable & ((heights > widths) == portrait))
      whole = -(-len(records) // 4)
      expected += list(np.resize(rng.permutation(records), 4 * whole).reshape(whole, 4))
    expected = [expected[i].tolist() for i in rng.permutation(len(expected))]
    assert [b.records.tolist() for b in batches] == expected
    assert not any(b.again.any() for b in batches)


def test_loaded_batches_tell_copies_apart_and_hosts_share_them(caplog):
  source, *_ = draw_source(images=12)
  config = make_config(1.0)
  with caplog.at_level(logging.INFO):
    plan = make_plan(source, config)
  assert "come more often, as fewer than data.repeat_threshold=1" in caplog.text
  assert "images instead of" in caplog.text
  steps = range(2 * plan.steps_per_epoch)
  whole = [b for b, _ in train_batches(source, plan, config.data, steps, (0, 1))]
  parts = [[b for b, _ in train_batches(source, plan, config.data, steps, (p, 2))] for p in range(2)]
  for step, batch in enumerate(whole):
    for name in ("index", "epoch", "image"):
      np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), batch[name])
  seen = [(int(i), int(e)) for b in whole for i, e in zip(b["index"], b["epoch"], strict=True)]
  assert len(set(seen)) == len(seen)
  assert {e % EPOCHS for _, e in seen} == {0, 1} and max(e for _, e in seen) >= EPOCHS
