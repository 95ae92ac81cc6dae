"""The schedule against mmdetection's 1x recipe; SGD against a float64 loop of PyTorch's rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iou_det.config import base_config
from iou_det.training.step import learning_rate, make_optimizer


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
