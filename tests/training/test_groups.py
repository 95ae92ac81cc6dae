"""loss.group: a GPU's images in mmdetection. Against float64 loops over groups, on any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iou_det.bench import synthetic
from iou_det.config import base_config, input_size, validate
from iou_det.errors import UserError
from iou_det.network import make_anchors, make_model
from iou_det.parallel import device_mesh, state_formats, to_device
from iou_det.training import accumulate
from iou_det.training import step as step_module
from iou_det.training.diagnostics import by_iou
from iou_det.training.losses import detection_losses
from iou_det.training.step import TrainState, make_optimizer, make_train_step
from tests.training import test_accumulate as parts
from tests.training.test_losses import PLAIN, draw, oracle, run, terms_of

BALANCED = {"eta": 1.5, "lambd": 0.5, "loc_weights": "eq5", "normalizer": "level"}


@jax.jit
def in_pairs(arrays, real):
  settings = PLAIN | BALANCED | {"group": 2}
  config = base_config()
  config.loss.update(settings)
  terms = terms_of(arrays, settings)
  return detection_losses(terms, config.loss, real), by_iou(terms, jnp.zeros(terms.iou.shape))


def joined(pairs, real=(True,) * 6):
  """Three groups' arrays; where not real, a filler."""
  drawn = {name: np.concatenate([d[name] for d in pairs]) for name in pairs[0]}
  for name in ("valid", "inside"):
    drawn[name] &= np.array(real, bool)[:, None]
  return {k: jnp.asarray(v, jnp.float32 if v.dtype == float else None) for k, v in drawn.items()}


def mean_of_loops(*groups):
  return np.mean([oracle(group, **PLAIN | BALANCED) for group in groups], axis=0)


def test_losses_are_the_mean_of_those_of_the_groups():
  pairs = [draw(seed) for seed in range(3)]
  pairs[1]["valid"][:, 1:] = False  # not as many positives in each
  out = in_pairs(joined(pairs), jnp.ones(6, bool))[0]
  np.testing.assert_allclose((out.classification, out.localization), mean_of_loops(*pairs), rtol=2e-5)


def test_fillers_make_no_group_and_no_image():
  """Of a validation's last batch: one is beside an image, two make no group."""
  pairs, real = [draw(0), draw(1), draw(2)], (True, True, True, False, False, False)
  out = in_pairs(joined(pairs, real), jnp.array(real))[0]
  alone = {name: rows[:1] for name, rows in pairs[1].items()}
  np.testing.assert_allclose(
    (out.classification, out.localization), mean_of_loops(pairs[0], alone), rtol=2e-5
  )
  assert out.normalizer == 2


def test_concordance_is_the_mean_over_groups_with_an_image():
  pairs, real = [draw(0), draw(1), draw(2)], (True,) * 4 + (False,) * 2
  settings = PLAIN | {"group": 2, "concordance": 0.2}
  config = base_config()
  config.loss.update(settings)

  @jax.jit
  def other(arrays, real):
    return detection_losses(terms_of(arrays, settings), config.loss, real).other

  all_real = jnp.ones(6, bool)
  first, second = (other(joined([pair] * 3), all_real) for pair in pairs[:2])
  assert abs(first - second) > 1e-4
  np.testing.assert_allclose(other(joined(pairs, real), jnp.array(real)), (first + second) / 2, rtol=1e-5)


def test_the_logged_normaliser_is_the_mean_over_groups_that_have_one():
  pairs, none = [draw(0), draw(1), draw(2)], jnp.ones(6, bool)
  of = lambda *real: in_pairs(joined(pairs, np.repeat(real, 2)), none)[1]["eq2_normalizer"]
  both, first, second = of(1, 1, 0), of(1, 0, 0), of(0, 1, 0)
  np.testing.assert_allclose(both, (first + second) / 2, rtol=1e-6)
  assert abs(first - second).max() > 1e-3


def test_ranks_of_isr_are_a_groups_own():
  pairs = [draw(seed) for seed in (0, 4)]
  settings = BALANCED | {"isr_gamma": 2.0, "average": "image"}
  out = run({name: np.concatenate([p[name] for p in pairs]) for name in pairs[0]}, **settings, group=2)
  apart = [run(pair, **settings) for pair in pairs]
  for name in ("classification", "localization"):
    np.testing.assert_allclose(getattr(out, name), np.mean([getattr(x, name) for x in apart]), rtol=1e-5)


@pytest.fixture(scope="module")
def steps():
  """What a step of 8 images makes of losses and state, its network a matrix, and the program's text."""
  images, classes = parts.IMAGES, parts.CLASSES
  config = parts.config_of(1)
  host = synthetic.batch(config, images, classes, boxes=4)
  rng = np.random.default_rng(0)
  width = -(-64 * 96 * 3 // 97)
  params = {n: jnp.float32(rng.normal(0, 0.02, (width, 18 * k))) for n, k in (("a", classes), ("b", 4))}
  patch = pytest.MonkeyPatch()
  whole = lambda config, *rest, **more: (
    *parts.plain_inputs(config, *rest, **more), *make_anchors(config, input_size(config, False)))  # fmt: skip
  for module in (step_module, accumulate):
    patch.setattr(module, "forward", parts.linear)
    patch.setattr(module, "network_inputs", whole)

  @functools.cache
  def run_on(devices, accumulated=1):
    config = parts.config_of(accumulated, **BALANCED, group=2)
    config.train.ema = 0.0
    mesh = device_mesh(images // accumulated, jax.devices()[:devices])
    optimizer = make_optimizer(config.train, 1, {"a": True, "b": True})
    state = TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params))
    state = jax.device_put(jax.tree.map(jnp.copy, state), state_formats(mesh, state))
    step = make_train_step(config, make_model(config, classes), optimizer, 1, mesh, state)
    arrays = to_device(host, mesh)
    program = step.lower(state, arrays, False).compile()
    return *jax.device_get(program(state, arrays)), program.as_text()

  yield run_on
  patch.undo()


@pytest.mark.parametrize(("devices", "accumulated"), [(2, 1), (4, 1), (8, 1), (2, 2)])
def test_a_step_is_the_same_on_any_number_of_devices(steps, devices, accumulated):
  """Losses, parameters, and gradients (they are in the momentum); on 8 a group lies on two devices."""
  one = steps(1)
  state, metrics, text = steps(devices, accumulated)
  assert metrics.keys() == one[1].keys()
  for name, value in metrics.items():
    np.testing.assert_allclose(value, one[1][name], rtol=1e-5, err_msg=name)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), state, one[0])
  assert "all-gather" not in text and "all-to-all" not in text


@pytest.mark.parametrize(("field", "number"), [("train", 16), ("eval", 12)])
def test_a_batch_that_is_no_number_of_groups_is_refused(field, number):
  config = base_config()
  config.data.path = "shapes"
  config.train.update(batch_size=4, accumulate=4)
  config.loss.group = 8
  validate(config)
  config[field].batch_size = number // 4 if field == "train" else number
  config.loss.group = 5 if field == "train" else 8
  message = rf"group={config.loss.group} does not divide the {number} images of .*; allowed are 0 .*divisors"
  with pytest.raises(UserError, match=message):
    validate(config)
