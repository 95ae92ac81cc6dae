"""Box maths against float64 loops, torchvision, pycocotools, identities and hypothesis."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iou_det.ops import boxes as ops
from tests import oracles

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "ops.npz")
N, M = 6, 4

coordinate = st.floats(-2000, 2000, width=32)
side = st.floats(0.5, 1500, width=32)  # positive: `encode` takes the logarithm of sizes
maybe_empty_side = st.one_of(st.just(0.0), side)


@st.composite
def box_lists(draw, count, sides=side):
  rows = []
  for _ in range(count):
    x, y, w, h = draw(coordinate), draw(coordinate), draw(sides), draw(sides)
    rows.append([x, y, x + w, y + h])
  return jnp.asarray(np.array(rows, np.float32))


pairwise_iou = jax.jit(ops.pairwise_iou)
iou = jax.jit(ops.iou)
encode = jax.jit(ops.encode)
decode = jax.jit(ops.decode)
clip = jax.jit(ops.clip)


def draw_boxes(seed, count, size=100.0):
  rng = np.random.default_rng(seed)
  xy = rng.uniform(-20, size, (count, 2))
  return np.concatenate([xy, xy + rng.uniform(1, size, (count, 2))], axis=1).astype(np.float32)


def test_area_of_hand_worked_boxes():
  boxes = jnp.array([[0, 0, 2, 3], [1, 1, 1, 5], [4, 4, 2, 6], [-1.5, -2, 0.5, 0]], jnp.float32)
  np.testing.assert_array_equal(ops.area(boxes), [6, 0, 0, 4])


def test_iou_of_hand_worked_boxes():
  a = jnp.array([[0, 0, 10, 10]] * 5 + [[3, 3, 3, 3]], jnp.float32)
  b = [[0, 0, 10, 10], [0, 5, 10, 15], [10, 0, 20, 10], [2, 2, 7, 4], [30, 30, 40, 40], [3, 3, 3, 3]]
  b = jnp.array(b, jnp.float32)
  np.testing.assert_allclose(iou(a, b), [1, 1 / 3, 0, 0.1, 0, 0], rtol=1e-6)


@given(box_lists(N, maybe_empty_side), box_lists(M, maybe_empty_side))
@settings(deadline=None, max_examples=60)
def test_pairwise_iou_equals_the_oracle_and_is_symmetric(a, b):
  got = pairwise_iou(a, b)
  np.testing.assert_allclose(got, oracles.pairwise_iou(np.asarray(a), np.asarray(b)), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(got, pairwise_iou(b, a).T, rtol=1e-6)
  assert np.all((got >= 0) & (got <= 1 + 1e-6))


@given(box_lists(N))
@settings(deadline=None, max_examples=30)
def test_iou_with_itself_is_one(a):
  np.testing.assert_allclose(iou(a, a), 1.0, rtol=1e-6)


def test_iou_is_invariant_to_scale_and_shift():
  a, b = jnp.asarray(draw_boxes(0, N)), jnp.asarray(draw_boxes(1, M))
  before = pairwise_iou(a, b)
  assert np.sum(before > 0.05) > 3
  np.testing.assert_allclose(pairwise_iou(a * 8, b * 8), before, rtol=1e-6)
  np.testing.assert_allclose(pairwise_iou(a + 64, b + 64), before, atol=1e-5)


def test_iou_equals_torchvision_and_pycocotools():
  got = ops.pairwise_iou(jnp.asarray(GOLDEN["iou_a"]), jnp.asarray(GOLDEN["iou_b"]))
  np.testing.assert_allclose(got, GOLDEN["iou_torchvision"], rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(got, GOLDEN["iou_pycocotools"], rtol=1e-4, atol=1e-6)


def test_leading_axes_batch_and_broadcast():
  a = jnp.asarray(draw_boxes(2, 2 * N).reshape(2, N, 4))
  b = jnp.asarray(draw_boxes(3, 2 * M).reshape(2, M, 4))
  batched = pairwise_iou(a, b)
  for i in range(2):
    np.testing.assert_allclose(batched[i], pairwise_iou(a[i], b[i]), rtol=1e-6)
  deltas = encode(a, a[0])  # [2, N, 4] from [N, 4]
  assert deltas.shape == (2, N, 4)
  np.testing.assert_allclose(decode(deltas, a[0]), a, atol=1e-4)
  np.testing.assert_allclose(iou(a, a[0])[0], 1.0)


def test_no_boxes():
  none = jnp.zeros((0, 4))
  assert ops.pairwise_iou(none, jnp.zeros((3, 4))).shape == (0, 3)
  assert ops.encode(none, none).shape == ops.decode(none, none).shape == (0, 4)


@pytest.mark.parametrize(
  "b", [[0, 0, 0, 0], [5, 5, 5, 5], [20, 20, 30, 30], [10, 0, 20, 10], [0, 0, 10, 10], [4, 8, 4, 1]]
)
def test_iou_gradient_is_finite(b):
  """Empty, degenerate, apart, touching, equal and inverted boxes."""
  for a in ([0, 0, 10, 10], [0, 0, 0, 0]):
    gradients = jax.grad(ops.iou, argnums=(0, 1))(jnp.array(a, jnp.float32), jnp.array(b, jnp.float32))
    assert np.all(np.isfinite(gradients))


def test_encode_and_decode_of_a_hand_worked_box():
  anchor = jnp.array([0, 0, 10, 20], jnp.float32)
  box = jnp.array([5, 0, 25, 10], jnp.float32)  # centre (15, 5) from (5, 10); 20 x 10 from 10 x 20
  deltas = ops.encode(box, anchor)
  np.testing.assert_allclose(deltas, [1.0, -0.25, math.log(2), -math.log(2)], rtol=1e-6)
  np.testing.assert_allclose(ops.decode(deltas, anchor), box, atol=1e-5)


@given(box_lists(N), box_lists(N))
@settings(deadline=None, max_examples=60)
def test_encode_and_decode_equal_the_oracle(boxes, anchors):
  deltas = encode(boxes, anchors)
  pairs = list(zip(np.asarray(boxes), np.asarray(anchors), strict=True))
  np.testing.assert_allclose(deltas, [oracles.encode(*pair) for pair in pairs], rtol=1e-5, atol=1e-4)
  decoded = decode(deltas, anchors)
  pairs = zip(np.asarray(deltas), np.asarray(anchors), strict=True)
  np.testing.assert_allclose(decoded, [oracles.decode(*pair) for pair in pairs], rtol=1e-4, atol=1e-2)


@given(box_lists(N), box_lists(N))
@settings(deadline=None, max_examples=60)
def test_decode_inverts_encode(boxes, anchors):
  size = np.asarray(boxes)[:, 2:] - np.asarray(boxes)[:, :2]
  ratio = size / (np.asarray(anchors)[:, 2:] - np.asarray(anchors)[:, :2])
  within = np.all(np.abs(np.log(ratio)) < math.log(1000 / 16), axis=1)
  back = decode(encode(boxes, anchors), anchors)
  np.testing.assert_allclose(np.asarray(back)[within], np.asarray(boxes)[within], rtol=1e-5, atol=1e-2)


def test_coder_equals_torchvision():
  anchors, boxes = jnp.asarray(GOLDEN["coder_anchors"]), jnp.asarray(GOLDEN["coder_boxes"])
  np.testing.assert_allclose(ops.encode(boxes, anchors), GOLDEN["coder_encoded"], rtol=1e-5, atol=1e-5)
  deltas = jnp.asarray(GOLDEN["coder_deltas"])
  assert deltas.max() > math.log(1000 / 16) > -deltas[:, 2:].min()  # torchvision has no lower clamp
  np.testing.assert_allclose(ops.decode(deltas, anchors), GOLDEN["coder_decoded"], rtol=1e-5, atol=1e-3)


def test_sizes_are_clamped_on_both_sides():
  anchor = jnp.array([0, 0, 10, 10], jnp.float32)
  box = ops.decode(jnp.array([0, 0, 1e4, -1e4], jnp.float32), anchor)
  np.testing.assert_allclose(box[2:] - box[:2], [625, 0.16], rtol=1e-5)
  box = ops.decode(jnp.array([0, 0, 3, -3], jnp.float32), anchor, max_log_ratio=math.log(2))
  np.testing.assert_allclose(box[2:] - box[:2], [20, 5], rtol=1e-6)
  gradient = jax.grad(lambda d: ops.decode(d, anchor).sum())(jnp.array([1e4, -1e4, 1e4, -1e4], jnp.float32))
  assert np.all(np.isfinite(gradient))


def test_clip_equals_torchvision():
  got = ops.clip(jnp.asarray(GOLDEN["coder_decoded"]), jnp.asarray(GOLDEN["clip_size"]))
  np.testing.assert_array_equal(got, GOLDEN["clipped"])


@given(box_lists(N, maybe_empty_side), st.integers(1, 1000), st.integers(1, 1000))
@settings(deadline=None, max_examples=30)
def test_clip_keeps_boxes_in_the_image_and_is_idempotent(boxes, height, width):
  size = jnp.array([height, width])
  got = clip(boxes, size)
  assert np.all(got >= 0) and np.all(got[:, ::2] <= width) and np.all(got[:, 1::2] <= height)
  assert np.all(got[:, 2:] >= got[:, :2])
  np.testing.assert_array_equal(clip(got, size), got)


def test_clip_of_a_batch_uses_each_image_size():
  boxes = jnp.broadcast_to(jnp.array([-5, -5, 50, 60], jnp.float32), (2, 3, 4))
  got = ops.clip(boxes, jnp.array([[20, 30], [100, 40]]))
  np.testing.assert_array_equal(got[:, 0], [[0, 0, 30, 20], [0, 0, 40, 60]])
