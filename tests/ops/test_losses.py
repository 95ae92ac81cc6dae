"""Losses and IoU-balanced weights against float64 loops, torchvision, the paper's identities and extremes."""

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from iou_det.ops import losses, other_losses
from tests import oracles

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "ops.npz")
LEVELS = (4, 2, 1)


def draw(seed, positives=4, classes=3):
  """Loss [2, 7, classes], IoU [2, 7] and one-hot target; every level has a positive if positives >= 4."""
  rng = np.random.default_rng(seed)
  target = np.zeros((2, 7, classes), bool)
  for b in range(2):
    for a in [6, 4, 0, 3, 1, 2, 5][:positives]:
      target[b, a, rng.integers(classes)] = True
  return rng.uniform(0.01, 3.0, target.shape), rng.uniform(0.05, 1.0, target.shape[:2]), target


def f32(*arrays):
  return tuple(jnp.asarray(a) if a.dtype == bool else jnp.float32(a) for a in arrays)


def focal_sum(x, targets, gamma):
  return losses.sigmoid_focal_loss(x, targets, gamma=gamma).sum()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_and_its_gradient_equal_torchvision(gamma):
  x, targets = jnp.asarray(GOLDEN["focal_logits"]), jnp.asarray(GOLDEN["focal_targets"])
  got = losses.sigmoid_focal_loss(x, targets, alpha=0.25, gamma=gamma)
  np.testing.assert_allclose(got, GOLDEN[f"focal_{gamma}"], rtol=2e-5, atol=1e-6)
  gradient, expected = jax.grad(focal_sum)(x, targets, gamma), GOLDEN[f"focal_gradient_{gamma}"]
  assert np.all(np.isfinite(gradient))
  known = np.isfinite(expected)  # torchvision's slope is NaN for gamma < 1 where the score saturates
  assert known.sum() > 180
  np.testing.assert_allclose(gradient[known], expected[known], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha,gamma", [(0.25, 2.0), (0.6, 1.0), (0.5, 0.0)])
def test_focal_loss_equals_the_oracle(alpha, gamma):
  x = np.linspace(-15, 15, 61).astype(np.float32)
  for target in (0.0, 1.0):
    got = losses.sigmoid_focal_loss(jnp.asarray(x), jnp.full(61, target), alpha=alpha, gamma=gamma)
    expected = [oracles.sigmoid_focal_loss(z, target, alpha, gamma) for z in x]
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_focal_loss_of_extreme_logits():
  x = jnp.array([1e4, 1e4, -1e4, -1e4], jnp.float32)
  targets = jnp.array([1, 0, 1, 0], jnp.float32)
  np.testing.assert_allclose(losses.sigmoid_focal_loss(x, targets), [0, 7500, 2500, 0])
  for gamma in (0.0, 0.5, 1.0, 2.0):
    gradient = jax.grad(focal_sum)(x, targets, gamma)
    np.testing.assert_allclose(gradient, [0, 0.75, -0.25, 0], atol=1e-6)


def test_smooth_l1_and_its_gradient_equal_torch():
  d = jnp.asarray(GOLDEN["l1_d"])
  np.testing.assert_allclose(losses.smooth_l1(d, delta=0.11), GOLDEN["l1"], rtol=1e-5, atol=1e-8)
  gradient = jax.grad(lambda d: losses.smooth_l1(d, delta=0.11).sum())(d)
  np.testing.assert_allclose(gradient, GOLDEN["l1_gradient"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("delta", [0.111, 1.0])
def test_smooth_l1_equals_the_oracle(delta):
  d = np.concatenate([np.linspace(-3, 3, 121), [delta, -delta, 1e4]]).astype(np.float32)
  got = losses.smooth_l1(jnp.asarray(d), delta=delta)
  np.testing.assert_allclose(got, [oracles.smooth_l1(x, delta) for x in d], rtol=1e-5, atol=1e-8)


def test_smooth_l1_of_extremes_has_a_gradient():
  """Infinite offsets belong to empty boxes; the caller's mask multiplies their gradient by 0."""
  gradient = jax.grad(lambda d: losses.smooth_l1(d, delta=0.11).sum())(
    jnp.array([0.0, 1e4, -1e4, 1e30, jnp.inf, -jnp.inf])
  )
  np.testing.assert_array_equal(gradient, [0, 1, -1, 1, 1, -1])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("level_sizes", [None, LEVELS])
def test_classification_weights_equal_the_oracle(eta, level_sizes):
  loss, iou, target = draw(seed=0)
  got = losses.iou_balanced_classification_weights(*f32(loss, iou, target), eta=eta, level_sizes=level_sizes)
  own = np.where(target, loss, 0).sum(-1)
  expected = oracles.balanced_weights(own, iou, target.any(-1), eta, level_sizes or (7,))
  np.testing.assert_allclose(got, np.where(target, expected[..., None], 1.0), rtol=1e-5)


def test_classification_weights_keep_the_loss_sum_of_the_positives():
  loss, iou, target = draw(seed=1)
  weights = losses.iou_balanced_classification_weights(*f32(loss, iou, target), eta=1.5)
  assert np.ptp(np.asarray(weights)[target]) > 0.5
  np.testing.assert_allclose((weights * loss)[target].sum(), loss[target].sum(), rtol=1e-5)
  weights = losses.iou_balanced_classification_weights(*f32(loss, iou, target), eta=1.5, level_sizes=LEVELS)
  for part in np.split(np.arange(7), np.cumsum(LEVELS)[:-1]):
    own = target[:, part]
    np.testing.assert_allclose((weights * loss)[:, part][own].sum(), loss[:, part][own].sum(), rtol=1e-5)


def test_a_level_with_one_positive_gets_weight_one():
  loss, iou, target = draw(seed=2, positives=1)  # anchor 6, the only one of the last level
  target[1] = False
  weights = losses.iou_balanced_classification_weights(*f32(loss, iou, target), eta=1.5, level_sizes=LEVELS)
  np.testing.assert_allclose(weights, 1.0, rtol=1e-6)


def test_weights_do_not_depend_on_the_scale_of_a_small_loss():
  """As training converges the positives' loss falls far below any constant epsilon."""
  loss, iou, target = draw(seed=3)
  expected = losses.iou_balanced_classification_weights(*f32(loss, iou, target), eta=1.5)
  got = losses.iou_balanced_classification_weights(*f32(loss * 1e-9, iou, target), eta=1.5)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_exponent_zero_is_the_plain_loss():
  loss, iou, target = draw(seed=4)
  iou[0, 0] = 0.0  # 0^0 is 1
  loss, iou, target = f32(loss, iou, target)
  box_loss, positive = loss[..., 0], target.any(-1)
  for sizes in (None, LEVELS):
    weights = losses.iou_balanced_classification_weights(loss, iou, target, eta=0.0, level_sizes=sizes)
    np.testing.assert_allclose(weights, 1.0, rtol=1e-6)
    weights = losses.normalized_localization_weights(box_loss, iou, positive, lambd=0.0, level_sizes=sizes)
    np.testing.assert_allclose(weights, positive, rtol=1e-6)
  np.testing.assert_array_equal(losses.iou_balanced_localization_weights(iou, lambd=0.0, w_loc=1.0), 1.0)


@pytest.mark.parametrize("level_sizes", [None, LEVELS])
def test_no_positives_and_zero_iou(level_sizes):
  loss, iou, target = draw(seed=5)
  loss, iou, target = f32(loss, iou, target)
  none = jnp.zeros_like(target)
  classification, localization = (
    losses.iou_balanced_classification_weights, losses.normalized_localization_weights)  # fmt: skip
  np.testing.assert_array_equal(classification(loss, iou, none, eta=1.5, level_sizes=level_sizes), 1.0)
  np.testing.assert_array_equal(
    localization(loss[..., 0], iou, none[..., 0], lambd=1.5, level_sizes=level_sizes), 0.0)  # fmt: skip
  zero = classification(loss, iou * 0, target, eta=1.5, level_sizes=level_sizes)
  np.testing.assert_array_equal(zero, jnp.where(target, 0.0, 1.0))
  for small in (1e-3, 1e-8, 1e-30):
    for factor in (1.0, 0.0, 1e-30):
      weights = classification(loss * factor, iou * small, target, eta=1.5, level_sizes=level_sizes)
      assert np.all(np.isfinite(weights)) and np.all(weights >= 0)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.5])
def test_no_gradient_flows_through_weights(exponent):
  loss, iou, target = draw(seed=6)
  loss, iou, target = f32(loss, iou, target)
  iou = iou.at[0, 0].set(0.0).at[1, 4].set(0.0)

  def total(loss, iou):
    classification = losses.iou_balanced_classification_weights(loss, iou, target, eta=exponent)
    normalized = losses.normalized_localization_weights(loss[..., 0], iou, target.any(-1), lambd=exponent)
    return classification.sum() + normalized.sum() + (
      losses.iou_balanced_localization_weights(iou, lambd=exponent, w_loc=2.0).sum())  # fmt: skip

  for gradient in jax.grad(total, argnums=(0, 1))(loss, iou):
    np.testing.assert_array_equal(gradient, 0.0)


def test_sums_run_over_the_batch_of_all_devices():
  loss, iou, target = (np.concatenate(x) for x in zip(*(draw(seed) for seed in range(10, 14)), strict=True))
  weights = partial(losses.iou_balanced_classification_weights, eta=1.5, level_sizes=LEVELS)
  expected = weights(*f32(loss, iou, target))
  split = NamedSharding(Mesh(np.array(jax.devices()[:8]), "batch"), PartitionSpec("batch"))
  got = jax.jit(weights, in_shardings=split, out_shardings=split)(*f32(loss, iou, target))
  assert len(got.sharding.device_set) == 8
  np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("lambd,w_loc", [(0.0, 1.0), (0.5, 1.575), (1.5, 3.049)])
def test_localization_weights_are_equation_4(lambd, w_loc):
  iou = np.array([0.0, 0.3, 0.75, 1.0])
  got = losses.iou_balanced_localization_weights(jnp.float32(iou), lambd=lambd, w_loc=w_loc)
  np.testing.assert_allclose(got, [w_loc * float(u) ** lambd for u in iou], rtol=1e-6)


@pytest.mark.parametrize("level_sizes", [None, LEVELS])
def test_normalized_localization_weights_are_equation_5(level_sizes):
  loss, iou, target = draw(seed=7)
  loss, positive = loss[..., 0], target.any(-1)
  got = losses.normalized_localization_weights(
    *f32(loss, iou, positive), lambd=1.5, level_sizes=level_sizes)  # fmt: skip
  expected = oracles.balanced_weights(loss, iou, positive, 1.5, level_sizes or (7,))
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  np.testing.assert_allclose((got * loss).sum(), loss[positive].sum(), rtol=1e-5)


def test_level_sizes_have_to_add_up():
  loss, iou, target = f32(*draw(seed=8))
  with pytest.raises(ValueError, match=r"\(4, 2\) add up to 6, but there are 7 anchors"):
    losses.iou_balanced_classification_weights(loss, iou, target, eta=1.0, level_sizes=(4, 2))


@pytest.mark.parametrize("lambd", [0.0, 0.5, 1.5])
def test_gradient_norm_is_equation_11_and_12(lambd):
  """The weight is held constant, so the gradient is w_loc * bound^lambda * min(|d| / delta, 1) * sign(d)."""
  d = np.linspace(-0.9, 0.9, 37).astype(np.float32)

  def weighted(x, bound):
    weights = losses.iou_balanced_localization_weights(bound(x), lambd=lambd, w_loc=2.0)
    return jnp.sum(weights * losses.smooth_l1(x, delta=0.111))

  for bound, expected in (
    (lambda x: (1 - jnp.abs(x)) / (1 + jnp.abs(x)), (1 - abs(d)) / (1 + abs(d))),
    (lambda x: jnp.exp(-jnp.abs(x)), np.exp(-abs(d))),
  ):
    slope = 2.0 * expected**lambd * np.minimum(abs(d) / 0.111, 1) * np.sign(d)
    np.testing.assert_allclose(jax.grad(weighted)(jnp.asarray(d), bound), slope, rtol=1e-4, atol=1e-6)


def focal_slope(logit, target, alpha, gamma):
  """Of arXiv:1708.02002 Eq. (5) by the logit, in float64."""
  sign = 2 * target - 1
  p = 1 / (1 + math.exp(-sign * logit))
  weight = alpha if target else 1 - alpha
  return sign * weight * (1 - p) ** gamma * (gamma * p * math.log(p) + p - 1)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_slope_of_the_focal_loss_at_a_logit_of_exactly_zero(target, gamma):
  """Where abs and maximum have their corners: their slopes there need not add up to the loss's."""
  slope = jax.grad(lambda x: losses.sigmoid_focal_loss(x, jnp.float32(target), gamma=gamma))
  for logit in (0.0, -0.0, 1e-30, -1e-30, 0.7, -3.0):
    np.testing.assert_allclose(slope(logit), focal_slope(logit, target, 0.25, gamma), rtol=1e-5)


def test_focal_loss_elsewhere_is_to_the_bit_what_abs_and_maximum_give():
  def with_corners(logits, targets):
    z = logits * (2.0 * targets - 1.0)
    tail = jnp.log1p(jnp.exp(-jnp.abs(z)))
    softplus, cross_entropy = jnp.maximum(z, 0.0) + tail, jnp.maximum(-z, 0.0) + tail
    alpha_t = 0.25 * targets + 0.75 * (1.0 - targets)
    return alpha_t * jnp.exp(-2.0 * softplus) * cross_entropy

  rng = np.random.default_rng(0)
  logits = jnp.float32(np.concatenate([rng.normal(0, 5, 4000), [1e-30, -1e-30, 80, -80, 500, -500]]))
  targets = jnp.float32(rng.integers(0, 2, len(logits)))
  pair = lambda f: jax.jit(lambda x: (f(x, targets), jax.grad(lambda x: f(x, targets).sum())(x)))(logits)
  for ours, before in zip(pair(losses.sigmoid_focal_loss), pair(with_corners), strict=True):
    np.testing.assert_array_equal(ours, before)


def test_slopes_of_the_box_losses_at_their_corners():
  """0 at 0, and where they turn linear the slope of both sides, which is 1 (balanced L1: gamma)."""
  slope = lambda f, d: jax.grad(lambda x: f(x).sum())(jnp.float32(d))
  turn = np.float32(0.11)
  for loss, gamma in (
    (lambda d: losses.smooth_l1(d, delta=0.11), 1.0),
    (lambda d: other_losses.balanced_l1(d, beta=0.11), 1.5),
  ):
    np.testing.assert_allclose(slope(loss, [0.0, -0.0, turn, -turn]), [0, 0, gamma, -gamma], rtol=1e-5)
  bounded = lambda d: other_losses.bounded_iou_loss(d, jnp.zeros((1, 4)))
  np.testing.assert_array_equal(slope(bounded, np.zeros((1, 4))), 0.0)
