"""Steps on parts of a batch against the same steps on the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iou_det.bench import synthetic
from iou_det.config import input_size
from iou_det.data.preprocess import Inputs
from iou_det.errors import UserError
from iou_det.network import make_anchors, make_model
from iou_det.parallel import device_mesh, to_device
from iou_det.training import accumulate
from iou_det.training.diagnostics import make_diagnostics
from iou_det.training.losses import detection_losses, loss_terms, make_targets
from iou_det.training.step import create_state, make_train_step
from tests.tiny import tinier_config

IMAGES, CLASSES = 8, 3


@pytest.fixture(autouse=True)
def in_a_loop(monkeypatch):
  """As on accelerators."""
  monkeypatch.setattr(accumulate, "unrolled", lambda mesh: False)


def config_of(parts, **loss):
  config = tinier_config("made up")
  config.loss.update(loss)
  config.train.update(batch_size=IMAGES // parts, accumulate=parts, ema=0.9)
  return config


def three_steps(config, mesh):
  """States, metrics and diagnostics of three steps, and the bytes that the program holds beside them."""
  model = make_model(config, CLASSES)
  state, optimizer = create_state(config, model, 1, mesh, None)
  arrays = to_device(synthetic.batch(config, IMAGES, CLASSES, boxes=3), mesh)
  diagnosed = jax.device_get(make_diagnostics(config, model, mesh)(state, arrays, False))
  step = make_train_step(config, model, optimizer, 1, mesh, state).lower(state, arrays, False).compile()
  states, rows = [jax.device_get(state)], []
  for _ in range(3):
    placed = jax.tree.map(lambda x: x.sharding, state)
    state, metrics = step(state, arrays)
    assert jax.tree.map(lambda x: x.sharding, state) == placed, "the state wandered"
    states.append(jax.device_get(state))
    rows.append({name: float(value) for name, value in metrics.items()})
  return states, rows, diagnosed, step.memory_analysis().temp_size_in_bytes


@pytest.fixture(scope="module")
def whole():
  """Eq. (2) by level, and every weight on."""
  return three_steps(config_of(1, normalizer="level"), device_mesh(IMAGES, jax.devices()[:1]))


@pytest.mark.parametrize("parts", [1, 2])
def test_there_is_a_loop_only_over_several_parts(parts):
  """XLA takes a loop of one turn away, but on a CPU its gradients of convolutions stay slow."""
  config, mesh = config_of(parts), device_mesh(1, jax.devices()[:1])
  model = make_model(config, CLASSES)
  state, _ = create_state(config, model, 1, mesh, None)
  arrays = to_device(synthetic.batch(config, IMAGES, CLASSES, boxes=3), mesh)
  program = jax.make_jaxpr(make_diagnostics(config, model, mesh), static_argnums=2)(state, arrays, False)
  assert ("scan[" in str(program)) == (parts > 1)


def distance(a, b):
  return float(optax.tree.norm(jax.tree.map(lambda x, y: x.astype(np.float64) - y, a, b)))


@pytest.mark.parametrize(("parts", "devices"), [(4, 1), (2, 4)], ids=["one device", "four devices"])
def test_three_steps_equal_those_of_the_whole_batch(whole, parts, devices):
  config = config_of(parts, normalizer="level")
  mesh = device_mesh(config.train.batch_size, jax.devices()[:devices])
  states, rows, diagnosed, held = three_steps(config, mesh)
  for ours, theirs in zip(rows, whole[1], strict=True):
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5, atol=1e-7)
  start = whole[0][0].params
  for ours, theirs in zip(states[1:], whole[0][1:], strict=True):
    moved = distance(theirs.params, start)
    assert distance(ours.params, theirs.params) < 1e-4 * moved
    assert distance(ours.averaged["params"], theirs.averaged["params"]) < 1e-4 * moved
    assert distance(ours.averaged["params"], ours.params) > 1e-2 * moved
  for name, values in whole[2].items():
    np.testing.assert_allclose(diagnosed[name], values, rtol=1e-4, atol=1e-6)
  if devices == 1:  # a quarter of the activations
    assert held < 0.6 * whole[3], (held, whole[3])


def plain_inputs(config, batch, portrait, mesh, train):
  """In the place of preprocessing, and `linear` in the network's, so that losses compile in no time."""
  rest = {name: batch[name] for name in ("boxes", "labels", "valid", "image_size")}
  images, none = batch["image"] / 255.0, jnp.zeros(len(batch["image"]), jnp.int32)
  return (Inputs(images=images, cropped=none, scale=jnp.ones((len(images), 2)), **rest),)


def linear(model, variables, images, mesh):
  pixels = images.reshape(len(images), -1)[:, ::97]
  return tuple([(pixels @ variables["params"][name]).reshape(len(images), 2, 3, -1)] for name in ("a", "b"))


@pytest.mark.parametrize(
  "loss",
  [
    {"localization": "giou", "loc_weights": "eq5", "w_loc": 1.0},
    {"isr_gamma": 2.0, "concordance": 0.2, "average": "image"},
  ],
  ids=["giou with eq5", "isr and concordance by image"],
)
def test_gradients_of_every_loss_are_those_of_the_whole_batch(monkeypatch, loss):
  monkeypatch.setattr(accumulate, "forward", linear)
  monkeypatch.setattr(accumulate, "network_inputs", plain_inputs)
  config = config_of(2, **loss)
  mesh = device_mesh(IMAGES // 2, jax.devices()[:2])
  batch = synthetic.batch(config, IMAGES, CLASSES, boxes=4)
  model, rng = make_model(config, CLASSES), np.random.default_rng(0)
  draw = lambda n: jnp.float32(rng.normal(0, 0.02, (-(-64 * 96 * 3 // 97), 18 * n)))
  params = {"a": draw(CLASSES), "b": draw(4)}
  anchors = make_anchors(config, input_size(config, False))

  def loss_of(outputs, inputs):
    targets = make_targets(config, inputs, *anchors, False)
    out = detection_losses(loss_terms(*outputs, targets, config), config.loss)
    return out.total, out

  @jax.jit
  def by_parts(params, batch):
    variables = {"params": params}
    inputs, outputs = accumulate.network_outputs(config, model, variables, batch, False, mesh)
    losses, cotangents = jax.value_and_grad(loss_of, has_aux=True)(outputs, inputs)
    return losses, accumulate.pull_back(config, model, variables, (batch, cotangents), False, mesh)

  @jax.jit
  def at_once(params, batch):
    (inputs,) = plain_inputs(config, batch, False, mesh, train=True)
    run = lambda params: loss_of(linear(model, {"params": params}, inputs.images, mesh), inputs)
    return jax.value_and_grad(run, has_aux=True)(params)

  losses, gradient = by_parts(params, to_device(batch, mesh))
  expected, expected_gradient = at_once(params, batch)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), losses, expected)
  size = float(optax.tree.norm(expected_gradient))
  assert distance(*jax.device_get((gradient, expected_gradient))) < 1e-5 * size
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient))


def test_parts_come_back_in_their_order_and_no_row_leaves_its_device():
  mesh = device_mesh(8)
  rows = to_device({"x": np.arange(48.0).reshape(24, 2)}, mesh)["x"]
  split = jax.jit(lambda x: accumulate.split_parts(x, 3, mesh))(rows)
  assert split.shape == (3, 8, 2)
  for a, b in zip(rows.addressable_shards, split.addressable_shards, strict=True):
    np.testing.assert_array_equal(a.data, b.data.reshape(-1, 2))
    assert a.device == b.device
  joined = jax.jit(lambda x: accumulate.join_parts(x, mesh))(split)
  np.testing.assert_array_equal(joined, rows)


def test_a_batch_that_cannot_be_cut_is_one_clear_error():
  message = r"12 images .*accumulate=2 parts .* over 8 devices; allowed are multiples of 16"
  with pytest.raises(UserError, match=message):
    accumulate.split_parts(jnp.zeros((12, 3)), 2, device_mesh(8))
