"""Matching against loops and torchvision's matcher, and each rule by itself."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iou_det.ops.boxes import pairwise_iou
from iou_det.ops.matching import match
from tests import oracles

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "ops.npz")
A, N = 12, 4
RULES = [
  {"positive_iou": 0.5, "negative_iou": 0.4, "force_match": True, "min_forced_iou": 0.0},
  {"positive_iou": 0.5, "negative_iou": 0.4, "force_match": False, "min_forced_iou": 0.0},
  {"positive_iou": 0.7, "negative_iou": 0.3, "force_match": True, "min_forced_iou": 0.25},
  {
    "positive_iou": 0.5,
    "negative_iou": 0.4,
    "force_match": True,
    "min_forced_iou": 0.0,
    "forced_target": "best",
  },
]
COMPILED = [jax.jit(partial(match, **rules)) for rules in RULES]
compiled_match = jax.jit(match, static_argnames=("force_match", "min_forced_iou", "forced_target"))


def coded(matched):
  """The oracle's coding: number of the ground truth, -1 negative, -2 ignored."""
  assert not np.any(matched.positive & matched.ignored)
  np.testing.assert_array_equal(np.where(matched.positive, 0, matched.index), 0)
  return np.where(matched.positive, matched.index, np.where(matched.ignored, -2, -1))


# Whole numbers up to 10 give exact ties and exact thresholds, and no IoUs that differ by a rounding only.
corner, extent = st.integers(0, 6), st.integers(0, 4)


@st.composite
def grid_boxes(draw, count):
  rows = [(draw(corner), draw(corner), draw(extent), draw(extent)) for _ in range(count)]
  return np.array([[x, y, x + w, y + h] for x, y, w, h in rows], np.float32)


def flags(count):
  return st.lists(st.booleans(), min_size=count, max_size=count)


@given(grid_boxes(A), grid_boxes(N), flags(N), flags(A))
@settings(deadline=None, max_examples=150)
def test_equals_the_loops_with_ties_and_duplicates(anchors, boxes, valid, inside):
  candidates = np.where(np.array(inside)[:, None], anchors, 0)  # a point's IoU with everything is 0
  for rules, compiled in zip(RULES, COMPILED, strict=True):
    got = compiled(jnp.asarray(anchors), jnp.asarray(boxes), jnp.array(valid), jnp.array(inside))
    expected = oracles.match(candidates, boxes, valid, **rules)
    np.testing.assert_array_equal(coded(got), expected, err_msg=str(rules))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", range(len(RULES)))
def test_equals_the_loops_on_random_boxes(seed, rule):
  rng = np.random.default_rng(seed)
  xy = rng.uniform(0, 60, (150 + 12, 2))
  boxes = np.concatenate([xy, xy + rng.uniform(5, 50, xy.shape)], axis=1).astype(np.float32)
  anchors, boxes, valid = boxes[:150], boxes[150:], np.arange(12) % 4 != 1
  got = COMPILED[rule](jnp.asarray(anchors), jnp.asarray(boxes), jnp.asarray(valid))
  expected = oracles.match(anchors, boxes, valid, **RULES[rule])
  assert len(set(expected)) > 5
  np.testing.assert_array_equal(coded(got), expected)


def test_equals_torchvision():
  anchors, boxes = jnp.asarray(GOLDEN["anchors"].astype(np.float32)), jnp.asarray(GOLDEN["match_boxes"])
  valid = jnp.ones(len(boxes), bool)
  plain = coded(compiled_match(anchors, boxes, valid, force_match=False))
  np.testing.assert_array_equal(plain, GOLDEN["match_plain"])
  got, expected = coded(compiled_match(anchors, boxes, valid)), GOLDEN["match_all"]
  np.testing.assert_array_equal(np.minimum(got, 0), np.minimum(expected, 0))
  assert np.sum(got >= 0) > np.sum(plain >= 0)
  # A forced anchor finds the ground truth that forced it here, its own best one in torchvision.
  differs = got != expected
  overlaps = np.asarray(pairwise_iou(boxes, anchors))
  best_of_box = overlaps.max(axis=1)
  anchor = np.arange(len(anchors))[differs]
  assert len(anchor) <= len(boxes)
  np.testing.assert_array_equal(overlaps[got[differs], anchor], best_of_box[got[differs]])
  best = coded(compiled_match(anchors, boxes, valid, forced_target="best"))
  assert len(anchor) > 0
  np.testing.assert_array_equal(best, expected)


def run(anchors, boxes, valid=None, **rules):
  boxes = jnp.array(boxes, jnp.float32).reshape(-1, 4)
  valid = jnp.ones(len(boxes), bool) if valid is None else jnp.array(valid)
  return coded(compiled_match(jnp.array(anchors, jnp.float32), boxes, valid, **rules))


def test_thresholds_are_inclusive():
  """IoU 0.5 is positive, 0.4 is ignored, less is negative."""
  anchors = [[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4], [0, 0, 10, 3.9], [50, 50, 60, 60]]
  np.testing.assert_array_equal(run(anchors, [[0, 0, 10, 10]], force_match=False), [0, 0, -2, -1, -1])


def test_an_anchor_takes_its_best_ground_truth():
  boxes = [[0, 0, 10, 8], [0, 0, 10, 10], [0, 0, 10, 9]]
  np.testing.assert_array_equal(run([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8]], boxes), [1, 2, 0])


def test_forced_match_takes_every_tied_anchor():
  anchors = [[0, 0, 10, 10], [2, 0, 12, 10], [0, 0, 10, 11], [40, 0, 50, 10]]
  np.testing.assert_array_equal(run(anchors, [[4, 4, 6, 6]]), [0, 0, -1, -1])
  np.testing.assert_array_equal(run(anchors, [[4, 4, 6, 6]], force_match=False), [-1, -1, -1, -1])


def test_ties_survive_scaling_by_any_factor():
  """Ties that are exact in whole numbers stay ties after an image is resized."""
  anchors = np.array([[0, 0, 10, 10], [2, 0, 12, 10], [0, 2, 10, 12], [40, 0, 50, 10]])
  for factor in np.linspace(0.1, 3, 50):
    np.testing.assert_array_equal(run(anchors * factor, np.array([[4, 4, 6, 6]]) * factor), [0, 0, 0, -1])


def test_later_ground_truths_overwrite_earlier_and_plain_matches():
  anchors = [[0, 0, 10, 10]]
  np.testing.assert_array_equal(run(anchors, [[0, 0, 3, 3], [7, 7, 10, 10]]), [1])
  # The second box forces its best anchor although the anchor is the first one's exact copy.
  np.testing.assert_array_equal(run(anchors, [[0, 0, 10, 10], [0, 0, 3, 3]]), [1])
  np.testing.assert_array_equal(run(anchors, [[0, 0, 3, 3], [0, 0, 10, 10]]), [1])


def test_a_forced_anchor_may_keep_its_own_best_ground_truth():
  """The only anchor near two boxes: the later one forces it, its IoU is higher with the first."""
  anchors, boxes = [[0, 0, 10, 10], [30, 30, 40, 40]], [[0, 0, 6, 6], [7, 7, 10, 10]]
  np.testing.assert_array_equal(run(anchors, boxes), [1, -1])
  np.testing.assert_array_equal(run(anchors, boxes, forced_target="best"), [0, -1])


def test_a_ground_truth_below_the_forced_minimum_takes_nothing():
  anchors, boxes = [[0, 0, 10, 10]], [[0, 0, 5, 5]]  # IoU 0.25
  np.testing.assert_array_equal(run(anchors, boxes, min_forced_iou=0.25), [0])
  np.testing.assert_array_equal(run(anchors, boxes, min_forced_iou=0.26), [-1])


@pytest.mark.parametrize("box", [[50, 50, 60, 60], [10, 0, 20, 10], [5, 5, 5, 5], [0, 0, 0, 0]])
def test_a_ground_truth_that_no_anchor_touches_takes_nothing(box):
  np.testing.assert_array_equal(run([[0, 0, 10, 10], [1, 1, 4, 4]], [box]), [-1, -1])


def test_padding_matches_nothing_whatever_its_coordinates():
  anchors = [[0, 0, 10, 10], [30, 30, 40, 40]]
  boxes = [[0, 0, 10, 10], [30, 30, 40, 40], [0, 0, 0, 0], [0, 0, 9, 9]]
  np.testing.assert_array_equal(run(anchors, boxes, [False, True, False, False]), [-1, 1])
  np.testing.assert_array_equal(run(anchors, boxes, [False] * 4), [-1, -1])


def test_no_boxes_and_no_anchors():
  np.testing.assert_array_equal(run([[0, 0, 10, 10], [1, 1, 4, 4]], []), [-1, -1])
  assert match(jnp.zeros((3, 4)), jnp.zeros((0, 4)), jnp.zeros(0, bool)).index.dtype == jnp.int32


def test_a_batch_is_its_images():
  rng = np.random.default_rng(5)
  xy = rng.uniform(0, 40, (3, 20 + N, 2))
  boxes = jnp.asarray(np.concatenate([xy, xy + rng.uniform(5, 50, xy.shape)], axis=-1).astype(np.float32))
  anchors, boxes = boxes[0, :20], boxes[:, 20:]
  valid = jnp.array([[True, True, False, True], [False] * N, [True] * N])
  batch = jax.jit(jax.vmap(match, (None, 0, 0)))(anchors, boxes, valid)
  for i in range(3):
    for got, expected in zip(batch, compiled_match(anchors, boxes[i], valid[i]), strict=True):
      np.testing.assert_array_equal(got[i], expected)
