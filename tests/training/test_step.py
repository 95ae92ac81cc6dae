"""The schedule against mmdetection's 1x recipe; SGD against a float64 loop of PyTorch's rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iou_det.aot.program import trace
from iou_det.bench import synthetic
from iou_det.config import base_config
from iou_det.network import make_model
from iou_det.parallel import device_mesh, to_device
from iou_det.training.step import create_state, learning_rate, make_optimizer, make_train_step
from iou_det.workdir.checkpoints import AVERAGE
from tests.tiny import tinier_config


@pytest.mark.parametrize(
  ("step", "expected"),
  [
    (0, 0.01 / 3),
    (250, 0.01 * 2 / 3),
    (500, 0.01),
    (7999, 0.01),
    (8000, 0.001),  # the first step of epoch 9: eight are done
    (10999, 0.001),
    (11000, 0.0001),
  ],
)
def test_step_schedule_of_the_paper(step, expected):
  schedule = learning_rate(base_config().train, steps_per_epoch=1000)
  np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)


def test_learning_rate_scales_with_the_batch():
  train = base_config().train
  train.batch_size = 4
  np.testing.assert_allclose(learning_rate(train, 1000)(600), 0.0025, rtol=1e-6)
  train.accumulate = 3
  np.testing.assert_allclose(learning_rate(train, 1000)(600), 0.0075, rtol=1e-6)


def test_cosine_schedule_ends_at_zero_and_is_half_in_the_middle():
  train = base_config().train
  train.update(schedule="cosine", warmup_steps=0, epochs=10)
  schedule = learning_rate(train, steps_per_epoch=100)
  np.testing.assert_allclose([schedule(0), schedule(500), schedule(1000)], [0.01, 0.005, 0.0], atol=1e-9)


def test_sgd_is_pytorchs_rule_and_frozen_parameters_stay():
  train = base_config().train
  train.update(clip_norm=2.0, warmup_steps=0, weight_decay=0.1)
  optimizer = make_optimizer(train, 1000, {"a": True, "frozen": False})
  params = {"a": jnp.array([1.0, -2.0]), "frozen": jnp.array([5.0])}
  state = optimizer.init(params)
  # Oracle, float64: clip to norm 2, add weight decay, velocity, step.
  weights, velocity = np.array([1.0, -2.0]), np.zeros(2)
  for gradient in ([3.0, 4.0], [0.5, -0.5], [-1.0, 0.2]):
    updates, state = optimizer.update({"a": jnp.array(gradient), "frozen": jnp.zeros(1)}, state, params)
    params = optax.apply_updates(params, updates)
    g = np.array(gradient) * min(1.0, 2.0 / np.linalg.norm(gradient))
    velocity = 0.9 * velocity + g + 0.1 * weights
    weights = weights - 0.01 * velocity
  np.testing.assert_allclose(params["a"], weights, rtol=1e-5)
  np.testing.assert_array_equal(params["frozen"], [5.0])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


GRADIENTS = ([3.0, 4.0], [0.5, -0.5], [-1.0, 0.2], [0.1, 0.0], [2.0, -0.3])


def run_optimizer(train):
  """Parameters after each of GRADIENTS, and the optimizer's last state."""
  optimizer = make_optimizer(train, 1000, {"a": True, "frozen": False})
  params = {"a": jnp.array([1.0, -2.0]), "frozen": jnp.array([5.1])}
  state, seen = optimizer.init(params), []
  for gradient in GRADIENTS:
    updates, state = optimizer.update({"a": jnp.array(gradient), "frozen": jnp.ones(1)}, state, params)
    params = optax.apply_updates(params, updates)
    seen.append(params)
  return seen, state


def test_adamw_is_its_papers_rule_and_frozen_parameters_stay():
  train = base_config().train
  train.update(optimizer="adamw", clip_norm=2.0, warmup_steps=0, weight_decay=0.1, momentum=0.8, beta2=0.95)
  seen, _ = run_optimizer(train)
  # Oracle, float64: clip to norm 2, moments of the gradient alone, bias correction, decay of the weights.
  weights, mean, square, rate = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2), 0.01
  for t, (gradient, params) in enumerate(zip(GRADIENTS, seen, strict=True), 1):
    g = np.array(gradient) * min(1.0, 2.0 / np.linalg.norm(gradient))
    mean, square = 0.8 * mean + 0.2 * g, 0.95 * square + 0.05 * g * g
    step = mean / (1 - 0.8**t) / (np.sqrt(square / (1 - 0.95**t)) + 1e-8)
    weights = weights - rate * step - rate * 0.1 * weights
    np.testing.assert_allclose(params["a"], weights, rtol=1e-5)
    np.testing.assert_array_equal(params["frozen"], np.float32([5.1]))
  # optax's own, and its decay is not SGD's.
  optimizer = optax.chain(optax.clip_by_global_norm(2.0), optax.adamw(0.01, 0.8, 0.95, weight_decay=0.1))
  params = {"a": jnp.array([1.0, -2.0])}
  state = optimizer.init(params)
  for gradient in GRADIENTS:
    updates, state = optimizer.update({"a": jnp.array(gradient)}, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(seen[-1]["a"], params["a"], rtol=1e-6)


def test_muon_turns_the_momentum_of_kernels_orthogonal_and_leaves_the_rest_to_adam():
  train = base_config().train
  train.update(optimizer="muon", clip_norm=1e9, warmup_steps=0, weight_decay=0.1, momentum=0.8, beta2=0.95)
  rng = np.random.default_rng(0)
  start = {
    "kernel": rng.normal(size=(2, 1, 3, 4)),
    "bias": rng.normal(size=4),
    "frozen": np.ones((1, 1, 2, 2)),
  }
  params = jax.tree.map(jnp.float32, start)
  optimizer = make_optimizer(train, 1000, {"kernel": True, "bias": True, "frozen": False})
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  kernel, bias = start["kernel"].reshape(6, 4), start["bias"]  # a window of 2x1x3 values to 4 outputs
  momentum, mean, square, rate = np.zeros((6, 4)), np.zeros(4), np.zeros(4), 0.01
  for t in range(1, 5):
    gradients = jax.tree.map(lambda x: rng.normal(size=x.shape), start)
    updates, state = update(jax.tree.map(jnp.float32, gradients), state, params)
    params = optax.apply_updates(params, updates)
    # Oracle, float64: Nesterov's momentum, five steps of Newton and Schulz with the published coefficients
    # towards the nearest orthogonal matrix, and the size of AdamW's steps (arXiv:2502.16982).
    g = gradients["kernel"].reshape(6, 4)
    momentum = 0.8 * momentum + 0.2 * g
    x = 0.8 * momentum / (1 - 0.8 ** (t + 1)) + 0.2 * g / (1 - 0.8**t)
    x = x / np.sqrt((x * x).sum())
    for _ in range(5):
      a = x.T @ x
      x = 3.4445 * x + x @ (-4.7750 * a + 2.0315 * a @ a)
    assert 0.3 < np.linalg.svd(x)[1].min() and np.linalg.svd(x)[1].max() < 1.3, (
      "or it is not nearly orthogonal"
    )
    kernel = kernel - rate * (0.2 * np.sqrt(6) * x + 0.1 * kernel)
    g = gradients["bias"]
    mean, square = 0.8 * mean + 0.2 * g, 0.95 * square + 0.05 * g * g
    ahead = 0.8 * mean / (1 - 0.8 ** (t + 1)) + 0.2 * g / (1 - 0.8**t)
    bias = bias - rate * (ahead / (np.sqrt(square / (1 - 0.95**t)) + 1e-8) + 0.1 * bias)
    np.testing.assert_allclose(params["kernel"].reshape(6, 4), kernel, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(params["bias"], bias, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(params["frozen"], np.ones((1, 1, 2, 2)))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_the_average_follows_tensorflows_rule_and_changes_no_step(optimizer):
  train = base_config().train
  train.update(optimizer=optimizer, warmup_steps=0, learning_rate=0.3, ema=0.35)
  seen, state = run_optimizer(train)
  average = np.array([1.0, -2.0])
  for t, params in enumerate(seen):
    decay = min(0.35, (1 + t) / (10 + t))  # 0.1, 2/11, 0.25, 4/13, 0.35
    average = decay * average + (1 - decay) * np.asarray(params["a"], np.float64)
  np.testing.assert_allclose(state[AVERAGE].params["a"], average, rtol=1e-6)
  assert abs(average - np.asarray(seen[-1]["a"])).max() > 1e-3, "or the average shows nothing"
  np.testing.assert_array_equal(state[AVERAGE].params["frozen"], np.float32([5.1]))
  train.ema = 0.0
  plain, state = run_optimizer(train)
  np.testing.assert_array_equal(plain[-1]["a"], seen[-1]["a"])
  assert not isinstance(state, dict)  # what checkpoints had before


def test_the_logged_gradient_norm_is_the_one_that_is_clipped():
  """With frozen stages: without clipping, momentum and decay the step is rate * logged norm long."""
  config = tinier_config("made up")
  config.model.update(frozen_stages=3, min_level=3)  # C3, of a stage before the last frozen one, goes on
  config.train.update(clip_norm=1e9, momentum=0.0, weight_decay=0.0, warmup_steps=0)
  mesh = device_mesh(8, jax.devices()[:1])
  model = make_model(config, num_classes=2)
  state, optimizer = create_state(config, model, 1, mesh, None)
  before = jax.device_get(state.params)
  arrays = to_device(synthetic.batch(config, 8, 2, boxes=3), mesh)
  state, metrics = make_train_step(config, model, optimizer, 1, mesh, state)(state, arrays, False)
  moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, jax.device_get(state.params), before))
  np.testing.assert_allclose(moved / metrics["learning_rate"], metrics["gradient_norm"], rtol=1e-3)


def test_seeds_share_one_program():
  """So that the second seed of a config finds it in the compilation cache."""
  mesh = device_mesh(8, jax.devices()[:1])
  programs = set()
  for seed in (0, 7):
    config = tinier_config("made up")
    config.seed = seed
    config.data.update(flip_horizontal=0.5, scale_jitter=(0.8, 1.2), brightness=0.4)
    programs.add(trace(config, 2, "train", 8, mesh)[1].lower().as_text())
  assert len(programs) == 1
