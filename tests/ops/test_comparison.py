"""Losses of other papers against float64 loops over their equations, identities and extremes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iou_det.ops import comparison, losses
from iou_det.ops.boxes import encode


def f32(x):
  return jnp.asarray(x) if x.dtype in (bool, np.int32) else jnp.float32(x)


def oracle_balanced_l1(d, delta, alpha, gamma):
  b = math.exp(gamma / alpha) - 1
  x = abs(d) / delta
  inside = lambda x: alpha / b * (b * x + 1) * math.log(b * x + 1) - alpha * x
  return delta * (inside(x) if x < 1 else gamma * x + inside(1.0) - gamma)


@pytest.mark.parametrize(("delta", "alpha", "gamma"), [(1.0, 0.5, 1.5), (0.11, 0.5, 1.5), (0.5, 0.3, 1.0)])
def test_balanced_l1_is_its_equations_and_its_slope_has_no_jump(delta, alpha, gamma):
  d = np.concatenate([np.linspace(-3, 3, 121), [delta, -delta, delta * 0.999, 0.0, 1e30]])
  got = comparison.balanced_l1(jnp.float32(d), delta=delta, alpha=alpha, gamma=gamma)
  np.testing.assert_allclose(
    got, [oracle_balanced_l1(x, delta, alpha, gamma) for x in d], rtol=2e-5, atol=1e-6
  )
  slope = jax.vmap(jax.grad(lambda x: comparison.balanced_l1(x, delta=delta, alpha=alpha, gamma=gamma)))
  b = math.exp(gamma / alpha) - 1
  # Eq. (7): alpha ln(b |x| + 1) inside, gamma outside.
  expected = np.sign(d) * np.minimum(alpha * np.log(b * np.abs(d) / delta + 1), gamma)
  np.testing.assert_allclose(slope(jnp.float32(d)), expected, rtol=2e-4, atol=1e-5)


def draw_boxes(seed, n=40):
  rng = np.random.default_rng(seed)
  corners = rng.uniform(0, 50, (2, n, 2))
  boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (2, n, 2))], axis=-1)
  return boxes[0], boxes[1], rng.normal(0, 0.6, (n, 4))


def test_bounded_iou_loss_is_its_equations():
  anchors, targets, deltas = draw_boxes(0)
  wanted = encode(jnp.float32(targets), jnp.float32(anchors))
  got = comparison.bounded_iou_loss(jnp.float32(deltas), wanted, jnp.float32(anchors), jnp.float32(targets))
  for row in range(len(anchors)):
    a, t = anchors[row], targets[row]
    for c in range(4):
      axis = c % 2
      anchor_size, size = a[2 + axis] - a[axis], t[2 + axis] - t[axis]
      if c < 2:
        center = (a[axis] + a[2 + axis]) / 2 + deltas[row, c] * anchor_size
        shift = abs(center - (t[axis] + t[2 + axis]) / 2)
        bound = max(0.0, (size - 2 * shift) / (size + 2 * shift))
      else:
        predicted = anchor_size * math.exp(deltas[row, c])
        bound = min(predicted / size, size / predicted)
      x = 1 - bound
      expected = x * x / 0.4 if x < 0.2 else x - 0.1
      np.testing.assert_allclose(got[row, c], expected, rtol=1e-4, atol=1e-5)


def test_bounded_iou_loss_has_finite_gradients_everywhere():
  anchors, targets, deltas = (jnp.float32(x) for x in draw_boxes(1))
  wanted = encode(targets, anchors)
  total = lambda d: comparison.bounded_iou_loss(d, wanted, anchors, targets).sum()
  for values in (
    deltas,
    wanted,
    jnp.full_like(deltas, 1e6),
    jnp.full_like(deltas, -1e6),
    jnp.zeros_like(deltas),
  ):
    assert np.isfinite(total(values)) and np.isfinite(jax.grad(total)(values)).all()
  np.testing.assert_allclose(total(wanted), 0.0, atol=1e-6)


def test_ghm_r_weights_count_gradient_norms():
  rng = np.random.default_rng(2)
  d = rng.normal(0, 0.05, (2, 30, 4)) * rng.choice([0.01, 1, 20], (2, 30, 1))
  positive = rng.uniform(size=(2, 30)) < 0.5
  got = comparison.gradient_harmonizing_weights(f32(d), f32(positive), bins=10)
  norms = np.abs(d) / np.sqrt(d**2 + 0.02**2)
  place = np.minimum((norms * 10).astype(int), 9)
  number = 4 * positive.sum()
  used = len(np.unique(place[positive]))
  for b, a, c in np.ndindex(d.shape):
    same = sum((place[i, j] == place[b, a, c]).sum() for i, j in zip(*np.nonzero(positive), strict=True))
    same = sum(
      place[i, j, k] == place[b, a, c] for i, j in zip(*np.nonzero(positive), strict=True) for k in range(4)
    )
    expected = number / (same * used) if positive[b, a] else 0.0
    np.testing.assert_allclose(got[b, a, c], expected, rtol=1e-5)
  np.testing.assert_allclose(got.sum(), number, rtol=1e-5)
  np.testing.assert_array_equal(
    jax.grad(lambda x: comparison.gradient_harmonizing_weights(x, f32(positive)).sum())(f32(d)), 0.0
  )


def test_authentic_smooth_l1_has_the_gradient_norm_that_the_weights_count():
  d = jnp.float32([-3.0, -0.02, 0.0, 1e-4, 0.5, 1e6])
  slope = jax.vmap(jax.grad(lambda x: comparison.authentic_smooth_l1(x)))(d)
  np.testing.assert_allclose(slope, np.asarray(d) / np.sqrt(np.asarray(d, np.float64) ** 2 + 4e-4), rtol=1e-5)
  assert comparison.authentic_smooth_l1(jnp.float32(0.0)) == 0


def draw_positives(seed, classes=3, share=0.5, images=2, anchors=25):
  rng = np.random.default_rng(seed)
  box = rng.integers(0, 4, (images, anchors)).astype(np.int32)
  label = rng.integers(0, classes, (images, 4))  # a ground truth has one class
  positive = rng.uniform(size=(images, anchors)) < share
  own = np.take_along_axis(label, box, axis=1)
  target = (own[..., None] == np.arange(classes)) & positive[..., None]
  return (
    rng.uniform(0.1, 2, target.shape),
    rng.permutation(images * anchors).reshape(images, anchors) / 60,
    target,
    box,
  )


def oracle_isr(loss, iou, target, box, gamma, beta):
  positives = [tuple(p) for p in np.argwhere(target.any(axis=-1))]
  label = {p: int(np.argmax(target[p])) for p in positives}
  local = {}
  for p in positives:
    group = [q for q in positives if q[0] == p[0] and box[q] == box[p]]
    local[p] = sum(iou[q] > iou[p] for q in group)
  most = max((sum(label[q] == k for q in positives) for k in set(label.values())), default=0)
  weights = np.ones(target.shape)
  raw = {}
  for p in positives:
    before = [q for q in positives if label[q] == label[p] and (local[q], -iou[q]) < (local[p], -iou[p])]
    raw[p] = ((1 - beta) * (most - len(before)) / most + beta) ** gamma
  total = sum(loss[p][label[p]] for p in positives)
  weighted = sum(raw[p] * loss[p][label[p]] for p in positives)
  for p in positives:
    weights[p][label[p]] = raw[p] * total / weighted
  return weights


@pytest.mark.parametrize(("gamma", "beta"), [(2.0, 0.0), (1.0, 0.2), (0.0, 0.0)])
def test_isr_ranks_hierarchically_and_keeps_the_loss_sum(gamma, beta):
  loss, iou, target, box = draw_positives(3)
  got = comparison.isr_weights(*map(f32, (loss, iou, target, box)), gamma=gamma, beta=beta)
  np.testing.assert_allclose(got, oracle_isr(loss, iou, target, box, gamma, beta), rtol=1e-4)
  np.testing.assert_allclose((got * loss).sum(where=target), loss.sum(where=target), rtol=1e-5)
  if gamma == 0:
    np.testing.assert_allclose(got, 1.0, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.05, 0.9]))
def test_isr_is_the_oracle_for_any_draw(seed, share):
  loss, iou, target, box = draw_positives(seed, share=share)
  got = comparison.isr_weights(*map(f32, (loss, iou, target, box)), gamma=2.0, beta=0.1)
  np.testing.assert_allclose(got, oracle_isr(loss, iou, target, box, 2.0, 0.1), rtol=1e-4)


def test_no_positives_and_no_iou_give_finite_weights():
  loss, iou, target, box = map(f32, draw_positives(4))
  none = jnp.zeros_like(target)
  np.testing.assert_array_equal(comparison.isr_weights(loss, iou, none, box), 1.0)
  assert np.isfinite(comparison.isr_weights(loss, 0 * iou, target, box)).all()
  empty = comparison.gradient_harmonizing_weights(jnp.ones((2, 5, 4)), jnp.zeros((2, 5), bool))
  np.testing.assert_array_equal(empty, 0.0)


def test_bounded_iou_of_a_right_centre_is_the_papers():
  """With no error of the centre both papers bound the size alike."""
  anchors = jnp.float32([[0, 0, 10, 20]])
  targets = jnp.float32([[1, 2, 13, 30]])
  wanted = encode(targets, anchors)
  off = wanted + jnp.float32([0, 0, 0.3, -0.2])
  got = comparison.bounded_iou_loss(off, wanted, anchors, targets, beta=1e-6)
  np.testing.assert_allclose(got[0, 2:], 1 - losses.bounded_iou_size(jnp.float32([0.3, -0.2])), rtol=1e-4)
