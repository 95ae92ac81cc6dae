"""A platform's forms are chosen by the mesh, reach every part of a step, and change nothing but roundings."""

import jax
import jax.numpy as jnp
import numpy as np

from iou_det.bench.synthetic import Case
from iou_det.forms import ANY, BY_PLATFORM, forms
from iou_det.network import suppression
from iou_det.ops.nms import BLOCK
from iou_det.parallel import device_mesh
from iou_det.training.losses import Targets, class_sums_by_products, pick, pick_by_product
from tests.tiny import tinier_config


def test_they_are_those_of_the_meshs_devices(monkeypatch):
  mesh, e = device_mesh(1, jax.devices()[:1]), tinier_config("made up").eval
  assert forms(None) == forms(mesh) == ANY and suppression(e, mesh)["nms_block"] is None
  monkeypatch.setitem(BY_PLATFORM, "cpu", BY_PLATFORM["gpu"])
  assert suppression(e, mesh)["nms_block"] == BLOCK and suppression(e, None)["nms_block"] is None


def test_a_step_by_a_tpus_forms_is_the_step(monkeypatch):
  config = tinier_config("made up")
  config.model.frozen_stages = 0
  config.data.scale_jitter = (0.7, 1.3)
  case = Case(config, 3, 4, 4, jax.devices()[:2])

  def first_step():
    traced = case._step(config).trace(case.state, case.arrays, False)
    state = jax.tree.map(lambda x: x.copy(), case.state)  # it is given away
    return str(traced.jaxpr), jax.device_get(traced.lower().compile()(state, case.arrays))

  text, (state, metrics) = first_step()
  monkeypatch.setitem(BY_PLATFORM, "cpu", BY_PLATFORM["tpu"])
  by_products, (other_state, other_metrics) = first_step()
  # The stem on blocks of 4x4 pixels, what a channel is to its anchor, and the resize.
  assert all(
    form in by_products and form not in text
    for form in ("3,3,48,32", "Precision.HIGHEST,", "Precision.HIGH,")
  )
  for name, value in metrics.items():
    np.testing.assert_allclose(other_metrics[name], value, rtol=1e-4, err_msg=name)
  # The optimizer's momentum is the gradient.
  for ours, theirs in zip(*(jax.tree.leaves(new.opt_state) for new in (other_state, state)), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_labels_beyond_bfloat16s_whole_numbers_are_spread_exactly():
  """Of 300 classes 257 and 299 are none of bfloat16's; each anchor's logits are its classes' numbers."""
  classes = 300
  logits = [jnp.tile(jnp.arange(classes, dtype=jnp.float32), 2)[None, None, None].repeat(3, axis=2)]
  labels = jnp.array([[256, 257, 258, 299, -1, 0]])
  target_or_not = lambda z, target, iou: jnp.where(target, z, 1.0)
  everyone = jnp.ones(labels.shape, bool)
  own, others = class_sums_by_products(logits, labels, everyone, jnp.ones(labels.shape), target_or_not)
  np.testing.assert_array_equal(own, [[256, 257, 258, 299, 0, 0]])
  np.testing.assert_array_equal(others, [6 * classes - 5])


def test_what_a_product_picks_is_exact():
  rng = np.random.default_rng(0)
  boxes = (rng.uniform(0, 1500, (2, 7, 4)) * 2.0 ** rng.integers(-30, 3, (2, 7, 4))).astype(np.float32)
  labels, index = jnp.asarray(rng.integers(0, 2**24, (2, 7))), jnp.asarray(rng.integers(0, 7, (2, 50)))
  none = jnp.zeros(0)
  targets = Targets(none, (50,), jnp.asarray(boxes), labels, none, none)
  for ours, theirs in zip(pick_by_product(targets, index), pick(targets, index), strict=True):
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == theirs.dtype
