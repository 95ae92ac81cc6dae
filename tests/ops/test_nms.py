"""NMS against float64 loops, torchvision's batched_nms (golden/nms.npz) and hand-made cases."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iou_det.ops.nms import nms, soft_nms
from tests import oracle_nms

GOLDEN = Path(__file__).parents[1] / "golden" / "nms.npz"
SQUARE = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]


def draw(seed, n=40, classes=3, groups=6):
  """Clusters of overlapping boxes; all scores differ."""
  rng = np.random.default_rng(seed)
  group = rng.integers(groups, size=n)
  centre = rng.uniform(0, 100, (groups, 2))[group] + rng.normal(0, 3, (n, 2))
  half = rng.uniform(5, 20, (groups, 2))[group] * rng.uniform(0.7, 1.4, (n, 2))
  scores = rng.permutation(n * classes).reshape(n, classes) / (n * classes)
  return jnp.float32(np.concatenate([centre - half, centre + half], axis=1)), jnp.float32(scores)


def pairs(kept):
  """[(box, class, score)] of the valid rows, after checking that the others are zeros at the end."""
  box, label, score, valid = map(np.asarray, kept)
  count = valid.sum()
  assert valid[:count].all()
  for column in (box, label, score):
    np.testing.assert_array_equal(column[count:], 0)
  return list(zip(box[:count].tolist(), label[:count].tolist(), score[:count].tolist(), strict=True))


def assert_same(kept, expected, tolerance=0.0):
  got = pairs(kept)
  assert [g[:2] for g in got] == [e[:2] for e in expected]
  np.testing.assert_allclose([g[2] for g in got], [e[2] for e in expected], rtol=tolerance)


LIMITS = ("iou_threshold", "score_threshold", "max_detections")
hard = jax.jit(nms, static_argnames=(*LIMITS, "block"))


@pytest.mark.parametrize("max_detections", [7, 60])
def test_nms_is_the_scalar_oracle(max_detections):
  suppressed = 0
  for seed in range(10):
    boxes, scores = draw(seed)
    kept = hard(boxes, scores, iou_threshold=0.5, score_threshold=0.3, max_detections=max_detections)
    expected = oracle_nms.nms(np.asarray(boxes), np.asarray(scores), 0.5, 0.3, max_detections)
    assert_same(kept, expected)
    suppressed += len(expected) < (scores > 0.3).sum()
  assert suppressed == 10


def test_nms_is_torchvisions():
  golden = np.load(GOLDEN)
  kept = nms(
    jnp.asarray(golden["boxes"]), jnp.asarray(golden["scores"]), iou_threshold=float(golden["iou_threshold"]),
    score_threshold=float(golden["score_threshold"]), max_detections=int(golden["kept"]) + 10)  # fmt: skip
  expected = list(zip(golden["box"].tolist(), golden["label"].tolist(), strict=True))
  assert [p[:2] for p in pairs(kept)] == expected


@pytest.mark.parametrize("block, most", [(4, 30), (50, 300), (1024, 30)])
def test_nms_by_blocks_is_the_scalar_oracle(block, most):
  """In one program for images that need few and many blocks: equal scores and boxes, NaN, infinite scores."""
  rng = np.random.default_rng(block)
  images, n, classes = 6, 40, 7
  corner = rng.integers(0, 30, (images, n, 2))
  boxes = np.float32(np.concatenate([corner, corner + rng.integers(0, 16, (images, n, 2))], axis=2))
  levels = np.array([3, 3, 8, 8, 1000, 1000])[:, None, None]
  scores = np.float32(rng.integers(-1, levels, (images, n, classes)) / levels)
  scores[rng.random(scores.shape) < 0.1] = np.nan
  scores[0, 1, 2] = scores[0, 7, 0] = np.inf
  scores[1] = np.where(scores[1] == 0, -0.0, scores[1])
  scores[5, 3:] = 0.0  # few pairs, fewer than a block
  limits = dict(iou_threshold=0.5, score_threshold=-0.2, max_detections=most)
  found = jax.jit(jax.vmap(partial(nms, **limits, block=block)))(boxes, scores)
  for image in range(images):
    expected = oracle_nms.nms(boxes[image], scores[image], 0.5, -0.2, most)
    assert_same([column[image] for column in found], expected)


def test_a_chain_of_boxes_that_each_suppress_the_next_alone():
  left = 4.0 * jnp.arange(50)  # IoU of neighbours 6/14, of the next ones 2/18
  boxes = jnp.stack([left, 0 * left, left + 10, 0 * left + 10], axis=1)
  scores = jnp.linspace(0.9, 0.1, 50)[:, None]
  for block in (None, 7, 1024):
    kept = hard(boxes, scores, iou_threshold=0.4, score_threshold=0.05, max_detections=30, block=block)
    assert [p[0] for p in pairs(kept)] == list(range(0, 50, 2))


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_nms_is_the_scalar_oracle(method):
  soft = jax.jit(partial(soft_nms, method=method), static_argnames=(*LIMITS, "sigma"))
  for seed in range(10):
    boxes, scores = draw(seed)
    kept = soft(boxes, scores, iou_threshold=0.3, sigma=0.5, score_threshold=0.05, max_detections=50)
    expected = oracle_nms.soft_nms(np.asarray(boxes), np.asarray(scores), method, 0.3, 0.5, 0.05, 50)
    assert_same(kept, expected, tolerance=1e-4)


def test_linear_soft_nms_by_hand():
  boxes = jnp.array([SQUARE, [0.0, 0.0, 10.0, 8.0], FAR])  # IoU of the first two: 0.8
  run = partial(soft_nms, boxes, jnp.array([[0.9], [0.8], [0.5]]), method="linear", max_detections=3)
  kept = run(score_threshold=0.1)
  assert_same(kept, [(0, 0, 0.9), (2, 0, 0.5), (1, 0, 0.16)], tolerance=1e-5)
  kept = run(score_threshold=0.2)
  assert_same(kept, [(0, 0, 0.9), (2, 0, 0.5)], tolerance=1e-5)


def test_iou_at_the_threshold_stays():
  boxes = jnp.array([SQUARE, [0.0, 0.0, 10.0, 5.0]])  # IoU 0.5 exactly
  run = partial(nms, boxes, jnp.array([[0.9], [0.8]]), score_threshold=0.0, max_detections=2)
  assert len(pairs(run(iou_threshold=0.5))) == 2
  assert len(pairs(run(iou_threshold=0.499))) == 1


def test_classes_do_not_suppress_each_other_and_a_box_may_have_two():
  boxes = jnp.array([SQUARE, SQUARE])
  scores = jnp.array([[0.9, 0.7], [0.8, 0.75]])
  kept = nms(boxes, scores, iou_threshold=0.5, score_threshold=0.05, max_detections=4)
  assert_same(kept, [(0, 0, 0.9), (1, 1, 0.75)], tolerance=1e-6)


def test_equal_scores_go_by_box_then_class():
  boxes = jnp.array([FAR, SQUARE, [100.0, 0.0, 110.0, 10.0]])
  kept = nms(boxes, jnp.full((3, 2), 0.5), iou_threshold=0.5, score_threshold=0.05, max_detections=5)
  assert [p[:2] for p in pairs(kept)] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]


def test_empty_boxes_do_not_suppress_and_nan_scores_stay_out():
  boxes = jnp.array([[5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0], SQUARE])
  scores = jnp.array([[0.9], [0.8], [jnp.nan]])
  kept = nms(boxes, scores, iou_threshold=0.5, score_threshold=0.05, max_detections=3)
  assert [p[0] for p in pairs(kept)] == [0, 1]


def test_nothing_above_the_threshold():
  boxes, scores = draw(0)
  assert pairs(nms(boxes, scores, iou_threshold=0.5, score_threshold=1.0, max_detections=5)) == []
  soft = soft_nms(boxes, scores, method="gaussian", score_threshold=1.0, max_detections=5)
  assert pairs(soft) == []


def test_vmap_is_a_loop_and_compiles_once():
  count = 0

  def traced(boxes, scores):
    nonlocal count
    count += 1
    return nms(boxes, scores, iou_threshold=0.5, score_threshold=0.1, max_detections=12)

  run = jax.jit(jax.vmap(traced))
  for first in (0, 3):
    drawn = [draw(seed) for seed in range(first, first + 3)]
    batch = run(jnp.stack([d[0] for d in drawn]), jnp.stack([d[1] for d in drawn]))
    for i, (boxes, scores) in enumerate(drawn):
      alone = hard(boxes, scores, iou_threshold=0.5, score_threshold=0.1, max_detections=12)
      for a, b in zip(batch, alone, strict=True):
        np.testing.assert_array_equal(a[i], b)
  assert count == 1


@settings(deadline=None, max_examples=40)
@given(
  corners=st.lists(st.tuples(*[st.integers(0, 12)] * 4), min_size=8, max_size=8),
  ranks=st.permutations(range(16)),
  iou_threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_any_boxes(corners, ranks, iou_threshold):
  """Nested, touching, equal, empty and inverted boxes on a small grid."""
  boxes, scores = np.float32(corners), np.float32(ranks).reshape(8, 2) / 16
  kept = hard(
    jnp.asarray(boxes), jnp.asarray(scores), iou_threshold=iou_threshold, score_threshold=0.2,
    max_detections=16)  # fmt: skip
  # The threshold as float32 sees it: an IoU of 3/10 is not above it.
  expected = oracle_nms.nms(boxes, scores, float(np.float32(iou_threshold)), 0.2, 16)
  assert_same(kept, expected)


@pytest.mark.parametrize(
  "wrong, message",
  [
    ({"method": "cosine"}, "'cosine' is not known; use 'linear' or 'gaussian'"),
    ({"score_threshold": -0.1}, "score threshold >= 0, got -0.1"),
    ({"max_detections": 0}, "at least 1 box, 1 class and 1 detection, got 40, 3 and 0"),
  ],
)
def test_wrong_arguments(wrong, message):
  boxes, scores = draw(0)
  with pytest.raises(ValueError, match=message):
    soft_nms(boxes, scores, **({"method": "linear", "score_threshold": 0.1, "max_detections": 5} | wrong))
