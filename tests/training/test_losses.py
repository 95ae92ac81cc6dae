"""The whole RetinaNet loss against one float64 loop over images and anchors; identities; empty batches."""

import ast
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iou_det.config import base_config, validate
from iou_det.errors import UserError
from iou_det.forms import ANY, Forms
from iou_det.ops import anchors as anchor_ops
from iou_det.ops import other_losses
from iou_det.ops.other_losses import CLASSIFICATION, LOCALIZATION
from iou_det.training.losses import (
  Targets,
  class_sums,
  class_sums_by_products,
  detection_losses,
  loss_terms,
)
from tests import oracle_other_losses, oracles

SIZE, STRIDES = (64, 96), (16, 32)
ANCHORS = anchor_ops.anchors(SIZE, strides=STRIDES, octaves=1, convention="modern", scale=1.5)
LEVELS = tuple(h * w * 3 for h, w in anchor_ops.level_shapes(SIZE, STRIDES))
MATCH = {"positive_iou": 0.5, "negative_iou": 0.4, "force_match": True, "min_forced_iou": 0.0}
PLAIN = {
  "alpha": 0.25,
  "gamma": 2.0,
  "delta": 0.11,
  "eta": 0.0,
  "lambd": 0.0,
  "w_loc": 1.0,
  "loc_weights": "eq4",
  "normalizer": "global",
}


def draw(seed):
  """Two images with 3 and 1 boxes (and padding), random outputs."""
  rng = np.random.default_rng(seed)
  a, k = len(ANCHORS), 3
  corner = rng.uniform(0, 40, (2, 4, 2))
  boxes = np.concatenate([corner, corner + rng.uniform(12, 40, (2, 4, 2))], axis=-1)
  valid = np.array([[True, True, True, False], [True, False, False, False]])
  boxes[~valid] = 0
  return {
    "logits": rng.normal(0, 2, (2, a, k)),
    "deltas": rng.normal(0, 0.2, (2, a, 4)),
    "boxes": boxes,
    "labels": rng.integers(0, k, (2, 4)),
    "valid": valid,
    "inside": rng.uniform(size=(2, a)) > 0.1,
  }


@jax.jit(static_argnames=("settings",))
def jitted(arrays, settings):
  return losses_of(arrays, dict(settings))


def losses_of(arrays, settings, forms=ANY):
  config = base_config()
  config.loss.update(settings)
  return detection_losses(terms_of(arrays, settings, forms), config.loss)


def by_level(rows):
  """As a network puts them out: [images, rows, columns, anchors of a cell * values] for each level."""
  shapes, ends = anchor_ops.level_shapes(SIZE, STRIDES), np.cumsum(LEVELS)[:-1]
  levels = zip(shapes, jnp.split(rows, ends, axis=1), strict=True)
  return [level.reshape(len(rows), *shape, -1) for shape, level in levels]


def terms_of(arrays, settings, forms=ANY):
  config = base_config()
  config.match.update(MATCH)
  config.loss.update(settings)
  arrays = dict(arrays)
  logits, deltas = by_level(arrays.pop("logits")), by_level(arrays.pop("deltas"))
  ious = [by_level(arrays.pop("ious"))] if "ious" in arrays else []
  targets = Targets(anchors=jnp.asarray(ANCHORS), level_sizes=LEVELS, **arrays)
  return loss_terms(logits, deltas, targets, config, forms, *ious)


def run(drawn, **changes):
  arrays = {k: jnp.asarray(v, jnp.float32 if v.dtype == float else None) for k, v in drawn.items()}
  return jitted(arrays, tuple((PLAIN | changes).items()))


def oracle(drawn, *, average="batch", **settings):
  """Classification and localization loss."""
  *sums, positives = oracle_sums(drawn, **settings)
  if average == "image":
    return tuple(np.mean(s / positives) for s in sums)
  return tuple(s.sum() / positives.sum() for s in sums)


def oracle_sums(
  drawn, *, eta, lambd, w_loc, loc_weights, normalizer, alpha, gamma, delta, anchor_boxes=ANCHORS, match=MATCH
):
  """Both losses' sums of each image, and its positives (1 if none); loops over images, anchors, classes."""
  images, anchors, classes = drawn["logits"].shape
  shape = (images, anchors)
  positive, own, l1, iou = np.zeros(shape, bool), np.zeros(shape), np.zeros(shape), np.zeros(shape)
  others, positives = np.zeros(images), np.zeros(images)
  for b in range(images):
    candidates = [anchor_boxes[a] if drawn["inside"][b, a] else np.zeros(4) for a in range(anchors)]
    matched = oracles.match(candidates, drawn["boxes"][b], drawn["valid"][b], **match)
    for a in range(anchors):
      if not drawn["inside"][b, a] or matched[a] == -2:
        continue
      label = drawn["labels"][b, matched[a]] if matched[a] >= 0 else None
      for k in range(classes):
        value = oracles.sigmoid_focal_loss(drawn["logits"][b, a, k], k == label, alpha, gamma)
        if k == label:
          own[b, a] = value
        else:
          others[b] += value
      if label is not None:
        box = drawn["boxes"][b, matched[a]]
        positive[b, a] = True
        iou[b, a] = oracles.iou(oracles.decode(drawn["deltas"][b, a], anchor_boxes[a]), box)
        d = drawn["deltas"][b, a] - oracles.encode(box, anchor_boxes[a])
        l1[b, a] = sum(oracles.smooth_l1(x, delta) for x in d)
    positives[b] = max(positive[b].sum(), 1)
  levels = LEVELS if normalizer == "level" else (anchors,)
  own *= oracles.balanced_weights(own, iou, positive, eta, levels)
  if loc_weights == "eq5":
    weights = w_loc * oracles.balanced_weights(l1, iou, positive, lambd, levels)
  else:
    weights = w_loc * iou**lambd
  return own.sum(axis=1) + others, np.where(positive, l1 * weights, 0).sum(axis=1), positives


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"eta": 1.5, "lambd": 1.5, "w_loc": 3.049},
    {"eta": 1.5, "lambd": 0.5, "loc_weights": "eq5", "normalizer": "level"},
    {"eta": 1.5, "lambd": 0.5, "average": "image"},
  ],
  ids=["baseline", "both", "eq5 per level", "by image"],
)
def test_matches_the_float64_loop(changes):
  drawn = draw(seed=0)
  out = run(drawn, **changes)
  classification, localization = oracle(drawn, **(PLAIN | changes))
  np.testing.assert_allclose(out.classification, classification, rtol=2e-5)
  np.testing.assert_allclose(out.localization, localization, rtol=2e-5)


def test_classification_weights_keep_the_sum_and_eq4_starts_where_it_should():
  drawn = draw(seed=1)
  plain, balanced = run(drawn), run(drawn, eta=1.5, lambd=0.0)
  np.testing.assert_allclose(balanced.classification, plain.classification, rtol=1e-5)
  np.testing.assert_allclose(run(drawn, w_loc=2.0).localization, 2 * plain.localization, rtol=1e-6)
  np.testing.assert_allclose(plain.loc_weight, 1.0, rtol=1e-6)


def test_an_average_over_images_is_the_mean_of_each_images_loss():
  """One of them without a box. The effective weight is a ratio of such averages."""
  drawn = draw(seed=6)
  drawn["valid"][1] = False
  settings = {"lambd": 1.5, "w_loc": 2.0, "average": "image"}
  both = run(drawn, **settings)
  each = [run({k: v[i : i + 1] for k, v in drawn.items()}, **settings) for i in range(2)]
  for name in ("classification", "localization"):
    np.testing.assert_allclose(getattr(both, name), np.mean([getattr(x, name) for x in each]), rtol=1e-5)
  np.testing.assert_allclose(both.loc_weight, each[0].loc_weight, rtol=1e-5)
  assert each[1].localization == 0 and both.localization > 0
  other = run(drawn, **settings | {"average": "batch"})
  assert not np.allclose(both.classification, other.classification, rtol=1e-2)


def test_boxes_get_no_gradient_from_the_classification_loss():
  drawn = {k: jnp.asarray(v, jnp.float32 if v.dtype == float else None) for k, v in draw(seed=2).items()}

  def classification(deltas):
    settings = PLAIN | {"eta": 1.5}
    arrays = drawn | {"deltas": deltas}
    return losses_of(arrays, settings).classification

  np.testing.assert_array_equal(jax.grad(classification)(drawn["deltas"]), 0.0)


@pytest.mark.parametrize("loc_weights", ["eq4", "eq5"])
def test_batch_without_boxes_has_finite_loss_and_gradients(loc_weights):
  drawn = draw(seed=3)
  drawn["valid"][:] = False
  drawn["boxes"][:] = 0
  settings = PLAIN | {"eta": 0.5, "lambd": 0.5, "loc_weights": loc_weights}

  def total(logits, deltas):
    arrays = {k: jnp.asarray(v, jnp.float32 if v.dtype == float else None) for k, v in drawn.items()}
    arrays |= {"logits": logits, "deltas": deltas}
    out = losses_of(arrays, settings)
    return out.classification + out.localization, out

  logits, deltas = jnp.float32(drawn["logits"]), jnp.float32(drawn["deltas"])
  (loss, out), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(logits, deltas)
  assert np.isfinite(loss) and out.localization == 0 and out.positives == 0
  assert np.isfinite(gradients[0]).all()
  np.testing.assert_array_equal(gradients[1], 0.0)


@pytest.mark.parametrize("localization", [name for name in LOCALIZATION if name != "smooth_l1"])
def test_other_localization_losses_take_the_place_of_smooth_l1(localization):
  drawn = draw(seed=4)
  plain, other = run(drawn), run(drawn, localization=localization)
  assert other.classification == plain.classification
  assert np.isfinite(other.localization) and other.localization != plain.localization
  twice = run(drawn, localization=localization, w_loc=2.0)
  np.testing.assert_allclose(twice.localization, 2 * other.localization, rtol=1e-6)
  drawn["deltas"] *= 0
  drawn["boxes"][0, 0] = ANCHORS[5]  # an anchor that is right already
  boxes = drawn["boxes"][:1, :1], drawn["labels"][:1, :1], drawn["valid"][:1, :1]
  exact = {k: v[:1] for k, v in drawn.items()} | dict(zip(("boxes", "labels", "valid"), boxes, strict=True))
  exact["inside"] = np.arange(len(ANCHORS))[None] == 5
  np.testing.assert_allclose(run(exact, localization=localization).localization, 0.0, atol=1e-6)


@pytest.mark.parametrize("classification", CLASSIFICATION)
def test_classification_losses_leave_the_boxes_alone(classification):
  drawn = draw(seed=7)
  plain, other = run(drawn), run(drawn, classification=classification, eta=1.5)
  assert np.isfinite(other.classification) and other.classification > 0
  assert other.localization == plain.localization
  arrays = {k: jnp.asarray(v, jnp.float32 if v.dtype == float else None) for k, v in drawn.items()}
  loss = lambda deltas: (
    losses_of(arrays | {"deltas": deltas}, PLAIN | {"classification": classification}).classification
  )
  np.testing.assert_array_equal(jax.grad(loss)(arrays["deltas"]), 0.0)


@pytest.mark.parametrize("sums", [class_sums, class_sums_by_products])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", CLASSIFICATION)
def test_sums_by_level_equal_those_over_an_array_of_all_classes(name, dtype, sums):
  """And so do the gradients, of any cotangents."""
  drawn, rng, config = draw(seed=8), np.random.default_rng(8), base_config()
  levels = [level.astype(dtype) for level in by_level(jnp.float32(drawn["logits"]))]
  shape = drawn["logits"].shape
  labels = jnp.asarray(rng.integers(-1, shape[2], shape[:2]))
  counted = jnp.asarray(rng.uniform(size=shape[:2]) < 0.8) | (labels >= 0)
  iou, of_own = jnp.float32(rng.uniform(size=(2, *shape[:2])))
  weights = of_own, jnp.float32(rng.uniform(size=shape[0]))
  loss = lambda *arrays: CLASSIFICATION[name](*arrays, config.loss)

  def plain(levels):
    own = labels[..., None] == jnp.arange(shape[2])
    every = loss(anchor_ops.by_anchor(levels, shape[2]), own, jnp.where(own, iou[..., None], 0.0))
    others = jnp.sum(every, axis=-1, where=~own)
    return jnp.sum(every, axis=-1, where=own), jnp.sum(others, axis=1, where=counted)

  def with_gradient(sums):
    values, pull = jax.vjp(sums, levels)
    return values, pull(tuple(weights))[0]

  expected = jax.jit(with_gradient, static_argnums=0)(plain)
  got = jax.jit(with_gradient, static_argnums=0)(lambda z: sums(z, labels, counted, iou, loss))
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got[0], expected[0])
  close = {"rtol": 1e-5, "atol": 1e-6} if dtype == jnp.float32 else {"rtol": 1e-2}  # a step of bfloat16
  for ours, theirs in zip(got[1], expected[1], strict=True):
    assert ours.dtype == dtype
    np.testing.assert_allclose(np.float32(ours), np.float32(theirs), **close)


def test_a_factor_of_the_classification_loss_is_one():
  drawn = draw(seed=7)
  plain, twice = run(drawn, eta=1.5), run(drawn, eta=1.5, w_cls=2.0)
  np.testing.assert_allclose(twice.classification, 2 * plain.classification, rtol=1e-6)
  assert twice.localization == plain.localization


def test_the_effective_weight_of_another_box_loss_is_that_of_smooth_l1():
  drawn = draw(seed=4)
  plain, other = run(drawn), run(drawn, localization="giou", w_loc=2.0)
  np.testing.assert_allclose(other.loc_weight, other.localization / plain.localization, rtol=1e-6)


@pytest.mark.parametrize("average", ["batch", "image"])
@pytest.mark.parametrize("iou_target", ["detached", "attached"])
def test_the_iou_branch_s_loss_is_the_positives_cross_entropy_with_their_iou(iou_target, average):
  drawn = draw(seed=9)
  ious = np.random.default_rng(9).normal(0, 2, drawn["deltas"].shape[:2])
  arrays = {k: jnp.asarray(v, jnp.float32 if v.dtype == float else None) for k, v in drawn.items()}
  settings = PLAIN | {"iou_target": iou_target}

  def total(deltas, ious, settings=settings):
    terms = terms_of(arrays | {"deltas": deltas, "ious": ious}, settings)
    config = base_config()
    config.loss.average = average
    return detection_losses(terms, config.loss).other, terms

  ((loss, terms), (by_deltas, by_ious)) = jax.value_and_grad(total, (0, 1), has_aux=True)(
    arrays["deltas"], jnp.float32(ious)[..., None]
  )
  sums = np.zeros(2)
  for b, a in zip(*np.nonzero(terms.positive), strict=True):
    sums[b] += oracle_other_losses.binary_entropy(float(ious[b, a]), float(terms.iou[b, a]))
  counts = np.asarray(terms.positive).sum(axis=1)
  expected = sums.sum() / counts.sum() if average == "batch" else np.mean(sums / counts)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_array_equal((np.asarray(by_ious)[..., 0] != 0), terms.positive)
  assert np.isfinite(by_deltas).all() and np.any(by_deltas != 0) == (iou_target == "attached")
  assert run(drawn).other == 0


def test_concordance_is_of_the_scores_of_the_positives_own_classes():
  drawn = draw(seed=10)
  arrays = {k: jnp.asarray(v, jnp.float32 if v.dtype == float else None) for k, v in drawn.items()}
  loss = lambda logits, deltas: (
    losses_of(arrays | {"logits": logits, "deltas": deltas}, PLAIN | {"concordance": 0.2}).other
  )
  by_image = losses_of(arrays, PLAIN | {"concordance": 0.2, "group": 1}).other
  value, (by_logits, by_deltas) = jax.value_and_grad(loss, (0, 1))(arrays["logits"], arrays["deltas"])
  terms = terms_of(arrays, PLAIN)
  positive = np.asarray(terms.positive)
  scores, own = np.zeros(positive.shape), np.zeros(drawn["logits"].shape, bool)
  for b, a in zip(*np.nonzero(positive), strict=True):
    # The class whose focal loss is the positive's own one.
    focal = [oracles.sigmoid_focal_loss(z, True, 0.25, 2.0) for z in drawn["logits"][b, a]]
    k = int(np.argmin(np.abs(np.array(focal) - float(terms.own_loss[b, a]))))
    scores[b, a], own[b, a, k] = 1 / (1 + np.exp(-drawn["logits"][b, a, k])), True
  of = lambda rows: 0.2 * oracle_other_losses.concordance_loss(scores[rows], terms.iou[rows], positive[rows])
  np.testing.assert_allclose(value, of(slice(None)), rtol=1e-4)
  np.testing.assert_allclose(by_image, np.mean([of(slice(b, b + 1)) for b in range(len(scores))]), rtol=1e-4)
  np.testing.assert_array_equal(by_deltas, 0.0)
  np.testing.assert_array_equal(np.asarray(by_logits) != 0, own)


@pytest.mark.parametrize(
  "changes", [{}, {"isr_gamma": 2.0, "average": "image", "eta": 1.5, "loc_weights": "eq5"}]
)
def test_losses_by_products_are_the_others_with_their_gradients(changes):
  arrays = {k: jnp.asarray(v, jnp.float32 if v.dtype == float else None) for k, v in draw(seed=11).items()}
  outputs = {k: arrays.pop(k) for k in ("logits", "deltas")}

  @jax.jit
  def run(outputs):
    total = lambda outputs, forms: sum(losses_of(arrays | outputs, PLAIN | changes, forms)[:2])
    return [jax.value_and_grad(total)(outputs, forms) for forms in (ANY, Forms(products=True))]

  plain, products = run(outputs)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-8), products, plain)


def test_no_loss_was_forgotten_in_the_tables():
  """A function of other_losses that no code of the package uses: its line in a table is missing."""
  own = Path(other_losses.__file__)
  trees = [ast.parse(path.read_text()) for path in own.parents[1].rglob("*.py")]
  used = {getattr(node, "id", getattr(node, "attr", "")) for tree in trees for node in ast.walk(tree)}
  names = {node.name for node in ast.parse(own.read_text()).body if isinstance(node, ast.FunctionDef)}
  assert not names - used, f"no entry of LOCALIZATION or CLASSIFICATION uses {names - used}"


def test_isr_keeps_the_positives_classification_loss():
  drawn = draw(seed=5)
  plain, isr = run(drawn), run(drawn, isr_gamma=2.0)
  np.testing.assert_allclose(isr.classification, plain.classification, rtol=1e-5)
  assert isr.localization == plain.localization
  arrays = {k: jnp.asarray(v, jnp.float32 if v.dtype == float else None) for k, v in drawn.items()}
  terms = terms_of(arrays, {"isr_gamma": 2.0})
  weights = np.asarray(terms.own_weights)[np.asarray(terms.positive)]
  assert weights.max() > 1.1 > 0.9 > weights.min()


def test_every_loss_of_the_tables_is_a_choice_of_the_config_and_the_other_way_round():
  for field, table in (("localization", LOCALIZATION), ("classification", CLASSIFICATION)):
    config = base_config()
    config.data.path = "shapes"
    for name in table:
      config.loss[field] = name
      config.loss.alpha = 0.75  # the focal loss's is not varifocal's
      validate(config)
    config.loss[field] = "no such loss"
    with pytest.raises(UserError, match=f"loss.{field}.*one of {', '.join(map(repr, table))}"):
      validate(config)
