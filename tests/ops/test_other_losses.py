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


def test_balanced_l1_of_extremes_has_a_gradient():
  """Infinite offsets belong to empty boxes; the caller's mask multiplies their gradient by 0."""
  got = slope(other_losses.balanced_l1, EXTREMES)
  np.testing.assert_allclose(got[3:], 1.5 * np.sign(EXTREMES[3:]), rtol=1e-6)
  np.testing.assert_allclose(got[:3], 0, atol=1e-2)
  finite = np.isfinite(EXTREMES)
  assert np.all(np.isfinite(other_losses.balanced_l1(jnp.asarray(EXTREMES))[finite]))


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


def draw_scores(seed, n=200):
  """Logits, IoUs as targets, and which are positives."""
  rng = np.random.default_rng(seed)
  quality = rng.uniform(size=n)
  logits = rng.normal(0, 3, n)
  quality[:4], logits[:4] = [0.0, 1.0, 0.5, 1 / (1 + math.exp(-1.5))], [0.0, 0.0, 0.0, 1.5]  # t = p last
  return np.float32(logits), np.float32(quality), rng.random(n) < 0.5


QUALITY_LOSSES = {
  "quality focal": (
    lambda z, q, positive: other_losses.quality_focal_loss(z, jnp.where(positive, q, 0.0)),
    lambda z, q, positive: oracle.quality_focal_loss(z, q if positive else 0.0, 2.0),
  ),
  "varifocal": (
    lambda z, q, positive: other_losses.varifocal_loss(z, positive, q),
    lambda z, q, positive: oracle.varifocal_loss(z, positive, q, 0.75, 2.0, True),
  ),
  "varifocal without q": (
    lambda z, q, positive: other_losses.varifocal_loss(z, positive, q, alpha=0.4, gamma=1.5, weighted=False),
    lambda z, q, positive: oracle.varifocal_loss(z, positive, q, 0.4, 1.5, False),
  ),
  "cross entropy": (
    lambda z, q, positive: other_losses.cross_entropy(z, q),
    lambda z, q, positive: oracle.binary_entropy(z, q),
  ),
}


@pytest.mark.parametrize("name", QUALITY_LOSSES)
def test_losses_of_a_quality_and_their_slopes_equal_the_oracle(name):
  """Slopes by differences of the float64 oracle, also at a logit of 0, where the parts of softplus meet."""
  ours, theirs = QUALITY_LOSSES[name]
  drawn = draw_scores(0)
  loss, gradient = jax.jit(jax.vmap(jax.value_and_grad(ours)))(*map(jnp.asarray, drawn))
  rows = [(float(z), float(q), bool(p)) for z, q, p in zip(*drawn, strict=True)]
  np.testing.assert_allclose(loss, [theirs(*row) for row in rows], rtol=2e-5, atol=1e-7)
  step = 1e-5
  expected = [(theirs(z + step, q, p) - theirs(z - step, q, p)) / (2 * step) for z, q, p in rows]
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", QUALITY_LOSSES)
def test_losses_of_a_quality_are_finite_and_least_at_it(name):
  ours, _ = QUALITY_LOSSES[name]
  both = jax.vmap(jax.value_and_grad(ours), (0, None, None))
  for quality, positive in ((0.0, True), (0.7, True), (1.0, True), (0.7, False)):
    logits = jnp.array([-1e4, -80.0, 0.0, 80.0, 1e4])
    loss, gradient = both(logits, jnp.float32(quality), jnp.array(positive))
    assert np.all(np.isfinite(loss)) and np.all(np.isfinite(gradient)) and np.all(np.asarray(loss) >= 0)
  at = jnp.float32(math.log(0.7 / 0.3))
  np.testing.assert_allclose(jax.grad(ours)(at, jnp.float32(0.7), jnp.array(True)), 0.0, atol=1e-6)


def test_hard_targets_make_the_quality_focal_loss_the_focal_loss_without_alpha():
  logits, _, positive = draw_scores(1)
  hard = jnp.float32(positive)
  got = other_losses.quality_focal_loss(jnp.asarray(logits), hard)
  focal = losses.sigmoid_focal_loss(jnp.asarray(logits), hard, alpha=0.5, gamma=2.0)
  np.testing.assert_allclose(got, 2 * focal, rtol=1e-5, atol=1e-7)


def test_concordance_equals_the_covariance_matrix_and_its_extremes():
  logits, iou, positive = draw_scores(2)
  scores = jax.nn.sigmoid(jnp.asarray(logits)).reshape(20, 10)
  iou, positive = iou.reshape(20, 10), positive.reshape(20, 10)
  loss = jax.jit(other_losses.concordance_loss)
  np.testing.assert_allclose(
    loss(scores, iou, positive), oracle.concordance_loss(scores, iou, positive), rtol=1e-5
  )
  u = jnp.array([0.2, 0.5, 0.9])
  every = jnp.ones(3, bool)
  np.testing.assert_allclose(loss(u, u, every), 0.0, atol=1e-6)
  np.testing.assert_allclose(loss(u[::-1] - u.mean() + u[::-1].mean(), u[::-1], every), 0.0, atol=1e-6)
  np.testing.assert_allclose(loss(2 * u.mean() - u, u, every), 2.0, rtol=1e-5)  # the other way round
  assert 0 < float(loss(0.5 * u, u, every)) < 1  # an order alone does not do
  assert loss(u, u, every & False) == 0 and loss(u, 1 - u, jnp.arange(3) == 1) == 0
  assert loss(jnp.full(3, 0.3), jnp.full(3, 0.3), every) == 0


def test_concordance_pulls_scores_to_ious_and_no_box():
  scores, iou = jnp.array([0.1, 0.8, 0.3, 0.9]), jnp.array([0.9, 0.2, 0.4, 0.1])
  positive = jnp.array([True, True, True, False])
  by_score, by_iou = jax.grad(other_losses.concordance_loss, (0, 1))(scores, iou, positive)
  np.testing.assert_array_equal(by_iou, 0.0)
  assert by_score[0] < 0 < by_score[1] and by_score[3] == 0
  step = 1e-4
  for i in range(3):
    up, down = (np.asarray(scores, np.float64) + sign * step * (np.arange(4) == i) for sign in (1, -1))
    mask = np.asarray(positive)
    slope_of = oracle.concordance_loss(up, iou, mask) - oracle.concordance_loss(down, iou, mask)
    np.testing.assert_allclose(by_score[i], slope_of / (2 * step), rtol=1e-3)
  same = jnp.full(4, 0.3)
  assert np.all(np.isfinite(jax.grad(other_losses.concordance_loss)(same, same, positive)))


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


def test_ranks_and_correlations_run_over_the_batch_of_all_devices():
  split = NamedSharding(Mesh(np.array(jax.devices()[:8]), "batch"), PartitionSpec("batch"))
  example = arrays(*draw(5, batch=8))
  got = jax.jit(ISR, in_shardings=split, out_shardings=split)(*example)
  assert len(got.sharding.device_set) == 8
  np.testing.assert_allclose(got, jax.jit(ISR)(*example), rtol=1e-6)
  positive = example[2].any(-1)
  scores = jax.nn.sigmoid(example[0][..., 0])
  got = jax.jit(other_losses.concordance_loss, in_shardings=split)(scores, example[1], positive)
  np.testing.assert_allclose(got, other_losses.concordance_loss(scores, example[1], positive), rtol=1e-5)
