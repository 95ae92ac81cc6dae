"""Sums by bin of IoU against float64 loops."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iou_det.bench import synthetic
from iou_det.config import input_size
from iou_det.data import open_dataset
from iou_det.data.pipeline import train_batches
from iou_det.data.plan import make_plan
from iou_det.network import make_anchors, make_model, network_inputs
from iou_det.ops import losses
from iou_det.ops.anchors import by_anchor
from iou_det.parallel import device_mesh, to_device
from iou_det.training import accumulate, diagnostics
from iou_det.training.diagnostics import BINS, as_row, by_iou, make_diagnostics
from iou_det.training.losses import Terms, detection_losses, loss_terms, make_targets
from iou_det.training.step import TrainState, create_state
from tests import oracles
from tests.tiny import tinier_config
from tests.training import test_accumulate as parts


def draw(seed, positives=True):
  rng = np.random.default_rng(seed)
  b, a = 2, 30
  positive = (rng.uniform(size=(b, a)) < 0.6) & positives
  iou = rng.uniform(size=(b, a))
  iou[0, :3], positive[0, :3] = [0.0, 1.0, 0.3], positives
  return Terms(
    iou=iou,
    positive=positive,
    counted=positive,
    own_loss=np.where(positive, rng.uniform(0.1, 2, (b, a)), 0),
    other_loss=rng.uniform(0.1, 2, b),
    own_weights=rng.uniform(0.5, 2, (b, a)),
    box_loss=rng.uniform(0.1, 2, (b, a)),
    box_weights=rng.uniform(0.5, 2, (b, a)),
    smooth_l1=rng.uniform(0.1, 2, (b, a)),
    iou_loss=np.zeros((b, a)),
    concordance=np.zeros(()),
    normalizer=np.zeros(0),
  ), rng.uniform(0.1, 1, (b, a))


def measured(terms, gradient, eta, level_sizes=None):
  normalizer = losses.normalizer(
    jnp.float32(terms.own_loss),
    jnp.float32(terms.iou),
    jnp.asarray(terms.positive),
    exponent=eta,
    level_sizes=level_sizes,
  )
  terms = Terms(*(jnp.asarray(x) if x.dtype == bool else jnp.float32(x) for x in terms[:-1]), normalizer)
  return jax.device_get(by_iou(terms, jnp.float32(gradient)))


@pytest.mark.parametrize("level_sizes", [None, (18, 12)])
def test_sums_equal_loops_over_positives(level_sizes):
  terms, gradient = draw(0)
  got = measured(terms, gradient, 1.5, level_sizes)
  expected = {name: np.zeros(BINS) for name in got if name != "eq2_normalizer"}
  before, after = np.zeros((2, 2))
  for b, a in zip(*np.nonzero(terms.positive), strict=True):
    place = min(int(np.float32(terms.iou[b, a]) * BINS), BINS - 1)
    expected["positives"][place] += 1
    expected["localization_gradient"][place] += gradient[b, a]
    expected["localization_weight"][place] += terms.box_weights[b, a]
    expected["classification_weight"][place] += terms.own_weights[b, a]
    level = int(level_sizes is not None and a >= 18)
    before[level] += terms.own_loss[b, a]
    after[level] += terms.own_loss[b, a] * terms.iou[b, a] ** 1.5
  for name, values in expected.items():
    np.testing.assert_allclose(got[name], values, rtol=1e-5)
  factors = (before / np.maximum(after, 1e-9))[: 2 if level_sizes else 1]
  np.testing.assert_allclose(got["eq2_normalizer"], factors, rtol=1e-5)
  row = as_row(got)
  names = ["eq2_normalizer/level0", "eq2_normalizer/level1"] if level_sizes else ["eq2_normalizer"]
  assert [row[name] for name in names] == got["eq2_normalizer"].tolist()


def test_row_has_shares_and_mean_weights():
  terms, gradient = draw(1)
  sums = measured(terms, gradient, 0.0)
  row = as_row(sums)
  np.testing.assert_allclose(row["eq2_normalizer"], 1.0, rtol=1e-6)
  i = int(np.argmax(sums["positives"]))
  assert row[f"localization_weight/0.{i}"] == float(sums["localization_weight"][i] / sums["positives"][i])
  assert row[f"positive_share/0.{i}"] == float(sums["positives"][i] / sums["positives"].sum())


def test_batch_without_positives_gives_finite_figures():
  row = as_row(measured(*draw(2, positives=False), 1.5))
  assert all(np.isfinite(v) for v in row.values())
  assert not any(name.startswith("localization_weight") for name in row)


def test_gradient_of_a_real_batch_equals_the_derivative_written_down(shapes_folder):
  """w IoU^lambda clip(d / delta, -1, 1) of each offset, with matching, boxes and IoUs by float64 loops."""
  config = tinier_config(shapes_folder)
  config.anchors.update(convention="modern", scale=1.0)  # small enough for the small shapes
  source = open_dataset(shapes_folder, "train")
  batches = train_batches(source, make_plan(source, config), config.data, range(1), (0, 1))
  batch, portrait = next(batches)
  mesh = device_mesh(8, jax.devices()[:1])
  model = make_model(config, len(source.categories))
  state = create_state(config, model, 1, mesh, None)[0]
  # Away from offsets of 0, so that the IoUs fill several bins and smooth L1 is met on both sides.
  params = jax.tree.map(
    lambda x: x + 0.02 * jax.random.normal(jax.random.key(x.size), x.shape), state.params)  # fmt: skip
  state = dataclasses.replace(state, params=params)
  arrays = to_device(batch, mesh)
  got = jax.device_get(make_diagnostics(config, model, mesh)(state, arrays, portrait))

  inputs, anchors, _ = network_inputs(config, arrays, portrait, None, train=True)
  deltas = model.apply({"params": params, "batch_stats": state.batch_stats}, inputs.images)[1]
  deltas = np.asarray(by_anchor(deltas, 4))
  anchors, boxes = np.asarray(anchors, np.float64), np.asarray(inputs.boxes, np.float64)
  gradient, counts = np.zeros(BINS), np.zeros(BINS)
  c = config.loss
  for image in range(8):
    matched = oracles.match(anchors, boxes[image], inputs.valid[image], **config.match.to_dict())
    for a in np.flatnonzero(matched >= 0):
      box = boxes[image, matched[a]]
      iou = oracles.iou(oracles.decode(deltas[image, a], anchors[a]), box)
      d = deltas[image, a] - oracles.encode(box, anchors[a])
      place = min(int(iou * BINS), BINS - 1)
      counts[place] += 1
      gradient[place] += c.w_loc * iou**c.lambd * np.linalg.norm(np.clip(d / c.delta, -1, 1))
  assert (counts > 0).sum() >= 4 and counts.sum() > 20
  np.testing.assert_array_equal(got["positives"], counts)
  np.testing.assert_allclose(got["localization_gradient"], gradient, rtol=1e-4)

  targets = make_targets(config, inputs, jnp.asarray(anchors, jnp.float32), (len(anchors),), portrait)

  def loss(which, params):
    outputs = model.apply({"params": params, "batch_stats": state.batch_stats}, inputs.images)
    return getattr(detection_losses(loss_terms(*outputs, targets, config), config.loss), which)

  row = as_row(got)
  for which in ("classification", "localization"):
    gradients = jax.jit(jax.grad(partial(loss, which)))(params)
    squares = [np.sum(np.square(x)) for part in ("backbone", "fpn") for x in jax.tree.leaves(gradients[part])]
    np.testing.assert_allclose(row[f"{which}_gradient_norm"], math.sqrt(sum(squares)), rtol=1e-4)


@pytest.mark.parametrize(
  "loss",
  [{"group": 2, "concordance": 0.2, "normalizer": "level"}, {"average": "image"}],
  ids=["group", "image"],
)
def test_gradient_norms_are_of_the_losses_as_training_adds_them_up(loss, monkeypatch):
  config = parts.config_of(1, eta=1.5, **loss)
  anchors = make_anchors(config, input_size(config, False))
  inputs_of = lambda *arguments, **rest: (*parts.plain_inputs(*arguments, **rest), *anchors)
  monkeypatch.setattr(accumulate, "forward", parts.linear)
  monkeypatch.setattr(accumulate, "network_inputs", inputs_of)
  monkeypatch.setattr(diagnostics, "SHARED", ("a", "b"))
  mesh = device_mesh(parts.IMAGES, jax.devices()[:1])
  batch = to_device(synthetic.batch(config, parts.IMAGES, parts.CLASSES, boxes=4), mesh)
  pixels, rng = -(-batch["image"][0].size // 97), np.random.default_rng(0)
  draw = lambda values: jnp.float32(rng.normal(0, 0.02, (pixels, 18 * values)))
  params = {"a": draw(parts.CLASSES), "b": draw(4)}
  state = TrainState(jnp.zeros((), jnp.int32), params, {}, ())
  got = jax.device_get(make_diagnostics(config, make_model(config, parts.CLASSES), mesh)(state, batch, False))

  def losses_of(params):
    inputs = inputs_of(config, batch, False, mesh, train=True)[0]
    outputs = parts.linear(None, {"params": params}, inputs.images, mesh)
    targets = make_targets(config, inputs, *anchors, False)
    out = detection_losses(loss_terms(*outputs, targets, config), config.loss)
    return jnp.stack([out.classification, out.localization])

  slopes = jax.jit(jax.jacrev(losses_of))(params)
  for which, name in enumerate(("classification", "localization")):
    norm = math.sqrt(sum(float(jnp.sum(jnp.square(slope[which]))) for slope in slopes.values()))
    assert norm > 0 and got[f"{name}_gradient_norm"] == pytest.approx(norm, rel=1e-4)
