"""The compared methods against float64 loops, their papers' identities and extremes."""

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from iou_det.ops import boxes as box_ops
from iou_det.ops import losses, other_losses
from tests import oracle_other_losses as oracle

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "ops.npz")
EXTREMES = np.array([0.0, 1e-30, -1e-5, 1e4, -1e4, 1e30, -1e30, np.inf, -np.inf], np.float32)


def slope(function, d):
  return jax.jit(jax.grad(lambda d: function(d).sum()))(jnp.asarray(d))


@pytest.mark.parametrize("alpha,gamma,beta", [(0.5, 1.5, 1.0), (0.3, 1.0, 0.11), (1.0, 1.5, 2.0)])
def test_balanced_l1_is_the_integral_of_its_gradient(alpha, gamma, beta):
  function = partial(other_losses.balanced_l1, alpha=alpha, gamma=gamma, beta=beta)
  d = np.concatenate([np.linspace(-3, 3, 41), [beta, -beta, 1e-3]]).astype(np.float32)
  expected = [oracle.balanced_l1(x, alpha, gamma, beta) for x in d]
  np.testing.assert_allclose(function(jnp.asarray(d)), expected, rtol=1e-5, atol=1e-7)
  b = math.exp(gamma / alpha) - 1
  inside = np.sign(d) * alpha * np.log(b * np.abs(d.astype(np.float64)) / beta + 1)
  expected = np.where(np.abs(d) < beta, inside, np.sign(d) * gamma)
  np.testing.assert_allclose(slope(function, d), expected, rtol=1e-5, atol=1e-6)


def test_balanced_l1_is_the_formula_of_its_paper():
  """Eq. (8) with the paper's alpha and gamma, and C from Eq. (9)."""
  b = math.exp(3) - 1
  for d in (0.1, -0.7, 1.0, 4.0):
    x = abs(d)
    expected = 0.5 / b * (b * x + 1) * math.log(b * x + 1) - 0.5 * x if x < 1 else 1.5 * x + 1.5 / b - 0.5
    np.testing.assert_allclose(other_losses.balanced_l1(jnp.float32(d)), expected, rtol=1e-5)


@pytest.mark.parametrize("beta", [1.0, 0.11])
def test_balanced_l1_and_its_gradient_are_continuous(beta):
  d = jnp.float32(beta) * jnp.array([1 - 1e-6, 1.0, 1 + 1e-6], jnp.float32)
  function = partial(other_losses.balanced_l1, beta=beta)
  np.testing.assert_allclose(function(d), function(d)[1], rtol=1e-5)
  np.testing.assert_allclose(slope(function, d), 1.5, rtol=1e-5)


@pytest.mark.parametrize(
  "function,limit", [(other_losses.balanced_l1, 1.5), (other_losses.authentic_smooth_l1, 1.0)]
)
def test_offset_losses_of_extremes_have_a_gradient(function, limit):
  """Infinite offsets belong to empty boxes; the caller's mask multiplies their gradient by 0."""
  got = slope(function, EXTREMES)
  np.testing.assert_allclose(got[3:], limit * np.sign(EXTREMES[3:]), rtol=1e-6)
  np.testing.assert_allclose(got[:3], 0, atol=1e-2)
  finite = np.isfinite(EXTREMES)
  assert np.all(np.isfinite(function(jnp.asarray(EXTREMES))[finite]))


@pytest.mark.parametrize("beta", [1.0, 0.2])
def test_bounded_iou_loss_equals_the_oracle_in_pixels(beta):
  rng = np.random.default_rng(0)
  low = rng.uniform(0, 50, (40, 2))
  anchors = np.concatenate([low, low + rng.uniform(10, 60, (40, 2))], -1)
  low = low + rng.uniform(-8, 8, (40, 2))
  targets = np.concatenate([low, low + rng.uniform(10, 60, (40, 2))], -1)
  low = low + rng.uniform(-12, 12, (40, 2))
  predicted = np.concatenate([low, low + rng.uniform(10, 60, (40, 2))], -1)
  anchors, targets, predicted = jnp.float32(anchors), jnp.float32(targets), jnp.float32(predicted)
  deltas, target_deltas = box_ops.encode(predicted, anchors), box_ops.encode(targets, anchors)
  got = other_losses.bounded_iou_loss(deltas, target_deltas, beta=beta)
  pairs = zip(np.asarray(predicted, np.float64), np.asarray(targets, np.float64), strict=True)
  expected = np.stack([oracle.bounded_iou_loss(box, target, beta) for box, target in pairs])
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
  assert (expected[:, :2] >= 2 - beta - 1e-6).any() and (expected[:, :2] < 1).any()  # both sides of the max


def test_bounded_iou_loss_against_the_bounded_iou_of_the_paper_that_cites_it():
  """Half the shift gives the same bound; the size is the same; with beta 1 the loss is the square."""
  for d in (-0.4, 0.05, 0.3):
    target = jnp.array([0.0, 0.0, math.log(40 / 25), 0.0], jnp.float32)  # anchor 25 wide, target 40
    got = other_losses.bounded_iou_loss(target + jnp.array([d, 0, d, 0], jnp.float32), target)
    shift = 25.0 * abs(2 * d)
    center, size = (40.0 - shift) / (40.0 + shift), math.exp(-abs(d))
    np.testing.assert_allclose(got, [(1 - center) ** 2, 0, (1 - size) ** 2, 0], rtol=1e-4, atol=1e-7)


def test_bounded_iou_loss_of_extremes_is_finite():
  deltas = jnp.asarray(np.repeat(EXTREMES[:, None], 4, axis=1))
  empty = jnp.array([0.1, -0.1, -jnp.inf, jnp.inf], jnp.float32)
  both = jax.jit(
    lambda d, target: (
      other_losses.bounded_iou_loss(d, target),
      slope(lambda d: other_losses.bounded_iou_loss(d, target), d),
    )
  )
  for target in (jnp.zeros(4), jnp.array([0.3, -0.2, 4.0, -4.0]), empty):
    target = jnp.broadcast_to(target, deltas.shape)
    usable = np.isfinite(deltas) | np.isfinite(target)  # the difference of two infinities is nobody's error
    loss, gradient = both(deltas, target)
    assert np.all(np.isfinite(loss)[usable]) and np.all(np.isfinite(gradient)[usable])
    assert np.all(np.asarray(loss)[usable] >= 0) and np.all(np.asarray(loss)[usable] <= 1)
  same = jnp.array([[0.3, -0.2, 1.0, -1.0]])
  np.testing.assert_array_equal(other_losses.bounded_iou_loss(same, same), 0)
  np.testing.assert_array_equal(slope(lambda d: other_losses.bounded_iou_loss(d, same), same), 0)


giou_and_gradient = jax.jit(jax.vmap(jax.value_and_grad(other_losses.giou_loss)))


def test_giou_loss_and_its_gradient_equal_torchvision():
  boxes, targets = jnp.asarray(GOLDEN["iou_a"][:30]), jnp.asarray(GOLDEN["giou_targets"])
  loss, gradient = giou_and_gradient(boxes, targets)
  np.testing.assert_allclose(loss, GOLDEN["giou"], rtol=1e-5)
  np.testing.assert_allclose(gradient, GOLDEN["giou_gradient"], rtol=1e-3, atol=1e-6)
  assert (GOLDEN["giou"] > 1).sum() > 5 and (GOLDEN["giou"] < 1).sum() > 5  # apart, and together


# Beside the target 0, 0, 10, 20: the same, touching, apart, inside, a line, a point, points in it and away.
CORNERS = np.array(
  [
    [0, 0, 10, 20],
    [10, 0, 15, 20],
    [900, -70, 950, 0],
    [2, 3, 4, 5],
    [2, 3, 2, 9],
    [3, 3, 3, 3],
    [40, 9, 40, 9],
  ],
  np.float32,
)


def test_giou_loss_of_corner_cases_equals_the_oracle_with_finite_gradients():
  for target in ([0, 0, 10, 20], [3, 3, 3, 3], [0, 3, 5, 3]):
    targets = np.tile(np.array(target, np.float32), (len(CORNERS), 1))
    loss, gradient = giou_and_gradient(jnp.asarray(CORNERS), jnp.asarray(targets))
    expected = [oracle.giou_loss(*pair) for pair in zip(CORNERS, targets, strict=True)]
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-7)
    assert np.all(np.isfinite(gradient))
  loss, gradient = giou_and_gradient(jnp.asarray(CORNERS[:3]), jnp.asarray(np.tile(CORNERS[:1], (3, 1))))
  assert loss[0] == 0 and loss[1] == 1 and 1.9 < loss[2] < 2
  np.testing.assert_array_equal(gradient[0], 0.0)
  assert gradient[2][0] > 0  # apart, it still pulls the box to its target


def test_giou_loss_of_offsets_is_that_of_the_decoded_boxes_and_l1_the_sum_of_errors():
  rng = np.random.default_rng(0)
  low = rng.uniform(0, 50, (2, 5, 2))
  anchors = jnp.float32(np.concatenate([low, low + rng.uniform(10, 60, low.shape)], -1))
  deltas, targets = jnp.float32(rng.normal(0, 0.5, (2, 2, 5, 4)))
  boxes, target_boxes = box_ops.decode(deltas, anchors), box_ops.decode(targets, anchors)
  pairs = other_losses.BoxPairs(deltas, targets, boxes, target_boxes, jnp.ones((2, 5), bool))
  giou, l1 = (other_losses.LOCALIZATION[name](pairs, None) for name in ("giou", "l1"))
  for i in np.ndindex(2, 5):
    np.testing.assert_allclose(giou[i], oracle.giou_loss(boxes[i], target_boxes[i]), rtol=1e-4)
    expected = sum(abs(float(d) - float(t)) for d, t in zip(deltas[i], targets[i], strict=True))
    np.testing.assert_allclose(l1[i], expected, rtol=1e-5)


@pytest.mark.parametrize("mu", [0.02, 0.5])
def test_authentic_smooth_l1_and_its_gradient(mu):
  d = np.concatenate([np.linspace(-2, 2, 41), [1e-4, -1e-3, 300.0, 1e5]]).astype(np.float32)
  exact = d.astype(np.float64)
  root = np.sqrt(exact**2 + mu**2)
  function = partial(other_losses.authentic_smooth_l1, mu=mu)
  np.testing.assert_allclose(function(jnp.asarray(d)), root - mu, rtol=1e-5, atol=1e-12)
  np.testing.assert_allclose(slope(function, d), exact / root, rtol=1e-5, atol=1e-7)


def draw_offsets(seed, batch=2):
  rng = np.random.default_rng(seed)
  d = rng.normal(0, 0.05, (batch, 7, 4)).astype(np.float32)
  return d, rng.random((batch, 7)) < 0.6


@pytest.mark.parametrize("mu,bins", [(0.02, 10), (0.1, 3), (0.02, 1)])
def test_gradient_harmonizing_weights_equal_the_oracle(mu, bins):
  d, positive = draw_offsets(0)
  got = other_losses.gradient_harmonizing_weights(jnp.asarray(d), jnp.asarray(positive), mu=mu, bins=bins)
  np.testing.assert_allclose(got, oracle.gradient_harmonizing_weights(d, positive, mu, bins), rtol=1e-6)


def test_each_part_with_examples_gets_the_same_total_weight():
  d, positive = draw_offsets(1)
  d[0, 0], positive[0, 0] = [0.0, np.inf, -1e30, 1e-30], True  # the first and the last part
  weights = np.asarray(other_losses.gradient_harmonizing_weights(jnp.asarray(d), jnp.asarray(positive)))
  assert np.all(np.isfinite(weights)) and np.all(weights[~positive] == 0)
  n, values = 4 * positive.sum(), weights[positive].ravel()
  with np.errstate(over="ignore"):
    norm = np.where(np.isinf(d), 1.0, np.abs(d / np.sqrt(np.minimum(np.square(d), 1e30) + 0.02**2)))
  part = np.minimum((norm[positive].ravel() * 10).astype(int), 9)
  assert len(set(part)) > 5
  for p in set(part):
    np.testing.assert_allclose(values[part == p].sum(), n / 10, rtol=1e-5)


def test_evenly_spread_gradients_weigh_one():
  norm = (np.arange(20) + 0.5) / 20
  d = (0.02 * norm / np.sqrt(1 - norm**2)).reshape(1, 5, 4).astype(np.float32)
  weights = other_losses.gradient_harmonizing_weights(jnp.asarray(d), jnp.ones((1, 5), bool))
  np.testing.assert_allclose(weights, 1.0, rtol=1e-6)


def test_no_positives_have_no_weight_and_no_gradient_flows():
  d, positive = draw_offsets(2)
  d[0, 0] = np.nan  # an anchor that is not positive may be anything
  positive[0, 0] = False
  d, positive = jnp.asarray(d), jnp.asarray(positive)
  weights = other_losses.gradient_harmonizing_weights
  np.testing.assert_array_equal(weights(d, jnp.zeros_like(positive)), 0.0)
  assert np.all(np.isfinite(weights(d, positive)))
  np.testing.assert_array_equal(jax.grad(lambda d: weights(d, positive).sum())(d), 0.0)


SHAPE = (2, 9, 3)


@jax.jit(static_argnames=("gamma", "beta"))
def ISR(loss, iou, target, box_index, gamma=2.0, beta=0.0):
  """As the oracle has it: of every class of every anchor."""
  own = jnp.sum(loss, axis=-1, where=target)
  labels = jnp.where(target.any(axis=-1), target.argmax(axis=-1), -1)
  weights = other_losses.isr_weights(own, iou, labels, box_index, gamma=gamma, beta=beta)
  return jnp.where(target, weights[..., None], 1.0)


def draw(seed, batch=2):
  """Loss, IoU (with ties), one-hot target and ground truths; a ground truth has one class."""
  rng = np.random.default_rng(seed)
  shape = (batch, *SHAPE[1:])
  box_index = rng.integers(0, 4, shape[:2])
  label = rng.integers(0, shape[2], (batch, 4))[np.arange(batch)[:, None], box_index]
  positive = rng.random(shape[:2]) < 0.7
  target = positive[..., None] & (label[..., None] == np.arange(shape[2]))
  iou = rng.integers(0, 9, shape[:2]) / 8  # exact in float32, so that ties are ties in both
  return rng.uniform(0.01, 3.0, shape), iou, target, np.where(positive, box_index, 0)


def arrays(loss, iou, target, box_index):
  return jnp.float32(loss), jnp.float32(iou), jnp.asarray(target), jnp.asarray(box_index, jnp.int32)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(2.0, 0.0), (0.5, 0.2), (1.0, 0.9)]))
def test_isr_weights_equal_the_oracle(seed, powers):
  gamma, beta = powers
  example = draw(seed)
  got = ISR(*arrays(*example), gamma=gamma, beta=beta)
  np.testing.assert_allclose(got, oracle.isr_weights(*example, gamma, beta), rtol=1e-5)


def test_isr_ranks_by_hand():
  """Class 0: boxes 0 (IoU 0.9, 0.8, 0.1) and 1 (0.5, 0.7); class 1: box 2 (0.2). n_max is 5."""
  iou = jnp.array([[0.9, 0.5, 0.8, 0.2, 0.7, 0.1, 0.99]])
  box = jnp.array([[0, 1, 0, 2, 1, 0, 0]])
  label = jnp.array([[0, 0, 0, 1, 0, 0, 2]])  # 2: the last anchor is negative
  target = label[..., None] == jnp.arange(2)
  # Best of their boxes: 0.9 (rank 0), 0.7 (1); second best: 0.8 (2), 0.5 (3); third: 0.1 (4).
  importance = np.array([5, 2, 3, 5, 4, 1]) / 5
  weights = ISR(jnp.ones((1, 7, 2)), iou, target, box, gamma=2.0)
  expected = importance**2 / (importance**2).mean()
  np.testing.assert_allclose(np.asarray(weights)[np.asarray(target)], expected, rtol=1e-6)
  np.testing.assert_array_equal(np.asarray(weights)[~np.asarray(target)], 1.0)


def test_isr_weights_rank_over_the_images_of_the_batch():
  """Box 0 of either image is another ground truth: both best anchors come before both second best."""
  iou, box = jnp.array([[0.9, 0.8], [0.6, 0.5]]), jnp.zeros((2, 2), jnp.int32)
  weights = ISR(jnp.ones((2, 2, 1)), iou, jnp.ones((2, 2, 1), bool), box, gamma=1.0)
  np.testing.assert_allclose(weights[..., 0] * 2.5, [[4, 2], [3, 1]], rtol=1e-6)


def test_isr_weights_keep_the_loss_sum_of_the_positives():
  loss, iou, target, box_index = draw(1)
  weights = np.asarray(ISR(*arrays(loss, iou, target, box_index), gamma=2.0, beta=0.0))
  assert np.ptp(weights[target]) > 0.5
  np.testing.assert_allclose((weights * loss)[target].sum(), loss[target].sum(), rtol=1e-5)
  np.testing.assert_array_equal(weights[~target], 1.0)


def test_isr_without_exponent_or_spread_is_the_plain_loss():
  for gamma, beta in ((0.0, 0.0), (2.0, 1.0)):
    np.testing.assert_allclose(ISR(*arrays(*draw(2)), gamma=gamma, beta=beta), 1.0, rtol=1e-6)


def test_isr_of_no_positives_zero_iou_and_extreme_losses():
  loss, iou, target, box_index = arrays(*draw(3))
  np.testing.assert_array_equal(ISR(loss, iou, jnp.zeros_like(target), box_index), 1.0)
  expected = ISR(loss, iou, target, box_index)
  for factor in (1e-30, 1e30):
    np.testing.assert_allclose(ISR(loss * factor, iou, target, box_index), expected, rtol=1e-5)
  for factor, share in ((0.0, 1.0), (1e-38, 0.0), (0.0, 0.0)):
    weights = ISR(loss * factor, iou * share, target, box_index)
    assert np.all(np.isfinite(weights)) and np.all(weights >= 0)
  logits = jnp.where(target, -1e4, 1e4)
  focal, pull = jax.vjp(lambda x: losses.sigmoid_focal_loss(x, target.astype(x.dtype)), logits)
  (gradient,) = pull(ISR(focal, iou, target, box_index))
  assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


def test_no_gradient_flows_through_isr_weights():
  loss, iou, target, box_index = arrays(*draw(4))
  total = lambda loss, iou: ISR(loss, iou, target, box_index).sum()
  for gradient in jax.grad(total, argnums=(0, 1))(loss, iou):
    np.testing.assert_array_equal(gradient, 0.0)


def test_counts_and_ranks_run_over_the_batch_of_all_devices():
  split = NamedSharding(Mesh(np.array(jax.devices()[:8]), "batch"), PartitionSpec("batch"))
  example = arrays(*draw(5, batch=8))
  d, positive = (jnp.asarray(x) for x in draw_offsets(6, batch=8))
  for function, inputs in (
    (ISR, example),
    (other_losses.gradient_harmonizing_weights, (d, positive)),
  ):
    got = jax.jit(function, in_shardings=split, out_shardings=split)(*inputs)
    assert len(got.sharding.device_set) == 8
    np.testing.assert_allclose(got, jax.jit(function)(*inputs), rtol=1e-6)
