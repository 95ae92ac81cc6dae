"""Sums by bin of IoU against float64 loops."""

import jax
import jax.numpy as jnp
import numpy as np

from iou_det.training.diagnostics import BINS, as_row, by_iou
from iou_det.training.losses import Terms


def draw(seed, positives=True):
  rng = np.random.default_rng(seed)
  b, a, k = 2, 30, 3
  positive = (rng.uniform(size=(b, a)) < 0.6) & positives
  own = (rng.integers(k, size=(b, a))[..., None] == np.arange(k)) & positive[..., None]
  iou = rng.uniform(size=(b, a))
  iou[0, :3], positive[0, :3] = [0.0, 1.0, 0.3], positives
  own[0, :3, 0] |= ~own[0, :3].any(axis=-1) & positives
  return Terms(
    iou=iou,
    positive=positive,
    counted=positive,
    own=own,
    focal=rng.uniform(0.1, 2, (b, a, k)),
    class_weights=rng.uniform(0.5, 2, (b, a, k)),
    box_loss=rng.uniform(0.1, 2, (b, a)),
    box_weights=rng.uniform(0.5, 2, (b, a)),
  ), rng.uniform(0.1, 1, (b, a))


def measured(terms, gradient, eta):
  terms = Terms(*(jnp.asarray(x) if x.dtype == bool else jnp.float32(x) for x in terms))
  return jax.device_get(by_iou(terms, jnp.float32(gradient), eta=eta))


def test_sums_equal_loops_over_positives():
  terms, gradient = draw(0)
  got = measured(terms, gradient, 1.5)
  expected = {name: np.zeros(BINS) for name in got if name != "eq2_normalizer"}
  before = after = 0.0
  for b, a in zip(*np.nonzero(terms.positive), strict=True):
    place = min(int(np.float32(terms.iou[b, a]) * BINS), BINS - 1)
    label = int(np.argmax(terms.own[b, a]))
    expected["positives"][place] += 1
    expected["localization_gradient"][place] += gradient[b, a]
    expected["localization_weight"][place] += terms.box_weights[b, a]
    expected["classification_weight"][place] += terms.class_weights[b, a, label]
    before += terms.focal[b, a, label]
    after += terms.focal[b, a, label] * terms.iou[b, a] ** 1.5
  for name, values in expected.items():
    np.testing.assert_allclose(got[name], values, rtol=1e-5)
  np.testing.assert_allclose(got["eq2_normalizer"], before / after, rtol=1e-5)


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
