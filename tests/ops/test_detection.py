"""Detection against a plain numpy version that sorts everything and suppresses with float64 loops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from iou_det.ops.detection import NMS, Candidates, suppress, unscale_boxes
from tests import oracle_nms, oracles
from tests.detecting import candidates, detect

LEVELS = (60, 20, 6)
SIZE = (90, 120)  # height and width of the canvas
SETTINGS = {"score_threshold": 0.3, "candidates_per_level": 15, "nms_iou": 0.5, "max_detections": 12}


def draw(seed, batch=2, classes=3):
  """Network output whose boxes overlap each other and the borders; image sizes below the canvas."""
  rng = np.random.default_rng(seed)
  count = sum(LEVELS)
  centre = rng.uniform(0, 1, (count, 2)) * SIZE[::-1]
  half = rng.uniform(8, 30, (count, 2))
  anchors = np.concatenate([centre - half, centre + half], axis=1)
  return {
    "logits": jnp.float32(rng.normal(0, 1.5, (batch, count, classes))),
    "deltas": jnp.float32(rng.normal(0, 0.4, (batch, count, 4))),
    "anchors": jnp.float32(anchors),
    "image_size": jnp.int32(rng.integers((60, 80), SIZE, (batch, 2))),
    "scale": jnp.float32(rng.uniform(0.4, 2.5, (batch, 2))),
  }


def oracle(logits, deltas, anchors, image_size, scale, convention, nms, ious=None):
  """One image: [(x1, y1, x2, y2 in original pixels, score, label)], best first."""
  logits, deltas = np.float64(logits), np.float64(deltas)
  scores = 1 / (1 + np.exp(-logits))
  if ious is not None:
    scores = scores**0.5 * (1 / (1 + np.exp(-np.float64(ious)))) ** 0.5
  chosen, start = [], 0
  for size in LEVELS:
    order = sorted(range(start, start + size), key=lambda a: -max(scores[a]))
    chosen += order[: SETTINGS["candidates_per_level"]]
    start += size
  height, width = (int(v) for v in image_size)
  sy, sx = (float(v) for v in scale)
  boxes = []
  for a in chosen:
    x1, y1, x2, y2 = oracles.decode(deltas[a], anchors[a])
    if convention == "legacy":  # inclusive corners between 0 and size - 1, scaled, back to exclusive
      x1, x2 = (min(max(v, 0), width - 1) / sx for v in (x1, x2 - 1))
      y1, y2 = (min(max(v, 0), height - 1) / sy for v in (y1, y2 - 1))
      boxes.append((x1, y1, x2 + 1, y2 + 1))
    else:
      x1, x2 = (min(max(v, 0), width) / sx for v in (x1, x2))
      y1, y2 = (min(max(v, 0), height) / sy for v in (y1, y2))
      boxes.append((x1, y1, x2, y2))
  threshold, most = SETTINGS["score_threshold"], SETTINGS["max_detections"]
  if nms == "hard":
    kept = oracle_nms.nms(boxes, scores[chosen], SETTINGS["nms_iou"], threshold, most)
  elif nms == "none":
    kept = oracle_nms.best_pairs(scores[chosen], threshold, most)
  else:
    kept = oracle_nms.soft_nms(boxes, scores[chosen], nms, SETTINGS["nms_iou"], 0.5, threshold, most)
  return [(*boxes[box], score, label) for box, label, score in kept]


def rows(detections, image):
  valid = np.asarray(detections.valid[image])
  columns = [detections.boxes[image], detections.scores[image, :, None], detections.labels[image, :, None]]
  table = np.concatenate([np.asarray(c, np.float64) for c in columns], axis=1)
  np.testing.assert_array_equal(table[~valid], 0)
  assert not valid[valid.sum() :].any()
  return table[valid]


@pytest.mark.parametrize(
  "convention, nms",
  [
    ("modern", "hard"),
    ("legacy", "hard"),
    ("torchvision", "linear"),
    ("modern", "gaussian"),
    ("legacy", "none"),
  ],
)
def test_is_the_exact_slow_version_and_compiles_once(convention, nms):
  traces = 0

  def traced(logits, deltas, anchors, image_size, scale):
    nonlocal traces
    traces += 1
    return detect(
      logits, deltas, anchors, image_size, scale, level_sizes=LEVELS, convention=convention, nms=nms,
      **SETTINGS)  # fmt: skip

  run = jax.jit(traced)
  for seed in range(4):
    drawn = draw(seed)
    detections = run(**drawn)
    for image in range(2):
      one = {k: np.asarray(v if k == "anchors" else v[image]) for k, v in drawn.items()}
      expected = oracle(**one, convention=convention, nms=nms)
      assert len(expected) >= 10
      np.testing.assert_allclose(rows(detections, image), expected, rtol=1e-4, atol=1e-4)
  assert traces == 1


def test_anchors_that_take_no_part_are_no_candidates():
  """Neither the best of all of them, nor where fewer take part than there is room for."""
  drawn, inside = draw(0), np.random.default_rng(0).uniform(size=(2, sum(LEVELS))) < 0.5
  inside[1, : LEVELS[0]] = np.arange(LEVELS[0]) < 7
  best = np.where(inside[..., None], drawn["logits"], 9.0)
  run = jax.jit(partial(detect, level_sizes=LEVELS, convention="legacy", nms="hard", **SETTINGS))
  found = run(*(drawn | {"logits": jnp.float32(best)}).values(), inside=jnp.asarray(inside))
  drawn["logits"] = np.where(inside[..., None], drawn["logits"], -60.0)
  for image in range(2):
    one = {k: np.asarray(v if k == "anchors" else v[image]) for k, v in drawn.items()}
    expected = oracle(**one, convention="legacy", nms="hard")
    assert len(expected) >= 8
    np.testing.assert_allclose(rows(found, image), expected, rtol=1e-4, atol=1e-4)


def test_an_iou_branch_chooses_and_scores_by_both():
  drawn = draw(5)
  drawn["ious"] = 3 * jnp.float32(np.random.default_rng(5).normal(0, 1, drawn["logits"].shape[:2]))[..., None]
  settings = {"convention": "modern", "nms": "hard"}
  found = jax.jit(lambda **arrays: detect(**arrays, level_sizes=LEVELS, **settings, **SETTINGS))(**drawn)
  for image in range(2):
    one = {k: np.asarray(v if k == "anchors" else v[image]) for k, v in drawn.items()}
    expected = oracle(**one, **settings)
    assert len(expected) >= 8
    np.testing.assert_allclose(rows(found, image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("nms", NMS)
def test_nms_over_all_classes_is_the_slow_version(nms):
  """Also with many equal scores, within a box and between boxes, with a NaN and with equal boxes."""
  slow = {
    "hard": lambda b, s: oracle_nms.nms(b, s, 0.5, 0.3, 15),
    "none": lambda b, s: oracle_nms.best_pairs(s, 0.3, 15),
  }
  slow |= {m: lambda b, s: oracle_nms.soft_nms(b, s, nms, 0.5, 0.5, 0.3, 15) for m in ("linear", "gaussian")}
  limits = dict(score_threshold=0.3, nms_iou=0.5, max_detections=15, nms=nms)
  run = jax.jit(lambda boxes, scores: suppress([Candidates(boxes, scores)], class_agnostic=True, **limits))
  for seed in range(6):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 24, (30, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + rng.integers(4, 14, (30, 2))], axis=1).astype(np.float32)
    boxes[20:25] = boxes[:5]
    levels = 8 if nms in ("hard", "none") else 10_000  # rounding decides between equal decayed scores
    scores = rng.integers(0, levels, (30, 4)).astype(np.float32) / levels
    scores[3, 0] = scores[4, 2] = np.nan
    found = rows(run(boxes[None], scores[None]), 0)
    expected = oracle_nms.over_all_classes(slow[nms], boxes, scores)
    assert len(expected) > 3
    assert found[:, 5].tolist() == [label for _, label, _ in expected]
    np.testing.assert_array_equal(found[:, :4], [boxes[box] for box, _, _ in expected])
    np.testing.assert_allclose(found[:, 4], [score for *_, score in expected], rtol=1e-5)


def test_one_object_in_three_classes_is_found_once_over_all_classes():
  """An object in a crowd: three anchors, each surest of another class; a second object lies beside it."""
  anchors = jnp.float32([[10, 10, 50, 50], [12, 10, 52, 50], [10, 12, 50, 52], [60, 10, 100, 50]])
  logits = jnp.float32([[[2.0, 0.5, -9.0], [-9.0, 1.5, -1.0], [0.2, -9.0, 1.0], [-9.0, 0.8, -9.0]]])
  drawn = (logits, jnp.zeros((1, 4, 4)), anchors, jnp.array([[64, 128]]), jnp.ones((1, 2)))
  settings = dict(level_sizes=(4,), convention="modern", score_threshold=0.4)
  run = lambda **more: jax.jit(partial(detect, **settings, **more))(*drawn)
  by_class, over_all = rows(run(), 0), rows(run(class_agnostic=True), 0)
  assert [(*row[:2], row[5]) for row in by_class] == [(10, 10, 0), (12, 10, 1), (10, 12, 2), (60, 10, 1)]
  assert [(*row[:2], row[5]) for row in over_all] == [(10, 10, 0), (60, 10, 1)]
  np.testing.assert_allclose(over_all[:, 4], 1 / (1 + np.exp([-2.0, -0.8])), rtol=1e-6)


@pytest.mark.parametrize("convention", ["modern", "legacy"])
def test_a_mirrored_view_gives_back_the_boxes_of_the_plain_one(convention):
  """The network's output for mirrored content: anchors and offsets mirrored within its width."""
  plain = draw(3, batch=1)
  width = int(plain["image_size"][0, 1])
  turned = plain | {
    "anchors": jnp.stack([width - plain["anchors"][:, 2], plain["anchors"][:, 1],
                          width - plain["anchors"][:, 0], plain["anchors"][:, 3]], axis=1),
    "deltas": plain["deltas"] * jnp.array([-1.0, 1.0, 1.0, 1.0]),
  }  # fmt: skip
  find = partial(candidates, level_sizes=LEVELS, convention=convention, candidates_per_level=15)
  ours, theirs = jax.jit(partial(find, mirror=True))(**turned), jax.jit(find)(**plain)
  np.testing.assert_array_equal(ours.scores, theirs.scores)
  np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)


def test_views_enter_one_nms_the_first_before_the_others():
  same = jnp.float32([[[0, 0, 10, 10], [30, 0, 40, 10]]])
  first = Candidates(same, jnp.float32([[[0.5, 0.0], [0.6, 0.0]]]))
  other = Candidates(same + jnp.array([1.0, 0.0, 1.0, 0.0]), jnp.float32([[[0.5, 0.4], [0.7, 0.0]]]))
  found = rows(jax.jit(suppress)([first, other]), 0)
  assert [(row[0], row[5]) for row in found] == [(31, 0), (0, 0), (1, 1)]


def test_candidates_are_limited_per_level():
  """A better anchor of a full level loses against a worse one of another level."""
  anchors = jnp.float32([[20 * i, 0, 20 * i + 10, 10] for i in range(6)])
  logits = jnp.float32([5, 4, 3, 1, 0, -1])[None, :, None]
  detections = detect(
    logits, jnp.zeros((1, 6, 4)), anchors, jnp.array([[50, 200]]), jnp.ones((1, 2)), level_sizes=(3, 3),
    convention="modern", candidates_per_level=2)  # fmt: skip
  np.testing.assert_allclose(rows(detections, 0)[:, 0], [0, 20, 60, 80])


def test_every_class_of_a_candidate_enters_nms():
  """The second-best class of the one candidate counts; that of an anchor that is no candidate does not."""
  anchors = jnp.float32([[0, 0, 10, 10], [20, 0, 30, 10]])
  logits = jnp.float32([[[3.0, 1.0], [-9.0, 2.0]]])
  detections = detect(
    logits, jnp.zeros((1, 2, 4)), anchors, jnp.array([[50, 200]]), jnp.ones((1, 2)), level_sizes=(2,),
    convention="modern", candidates_per_level=1)  # fmt: skip
  found = rows(detections, 0)
  np.testing.assert_allclose(found[:, :4], [[0, 0, 10, 10]] * 2)
  assert found[:, 5].tolist() == [0, 1]


@pytest.mark.parametrize("nms", NMS)
def test_every_nms_of_the_config_is_known(nms):
  run = partial(detect, level_sizes=LEVELS, convention="modern", nms=nms, **SETTINGS)
  assert jax.eval_shape(run, **draw(0)).boxes.shape == (2, 12, 4)


def test_without_nms_ties_go_by_box_and_class_and_missing_pairs_are_zeros():
  """Six pairs, four above the threshold, eight rows: nothing is suppressed, though three boxes are one."""
  anchors = jnp.float32([[0, 0, 10, 10]] * 3)
  logits = jnp.float32([[[1.0, 2.0], [-9.0, 1.0], [2.0, jnp.nan]]])
  detections = detect(
    logits, jnp.zeros((1, 3, 4)), anchors, jnp.array([[50, 200]]), jnp.ones((1, 2)), level_sizes=(1, 1, 1),
    convention="modern", max_detections=8, nms="none")  # fmt: skip
  found = rows(detections, 0)
  np.testing.assert_allclose(found[:, :4], [[0, 0, 10, 10]] * 4)
  np.testing.assert_allclose(found[:, 4], 1 / (1 + np.exp([-2.0, -2.0, -1.0, -1.0])), rtol=1e-6)
  assert found[:, 5].tolist() == [1, 0, 0, 1]


def test_an_image_without_a_score_above_the_threshold_and_extreme_outputs_are_finite():
  drawn = draw(0)
  drawn["logits"] = drawn["logits"].at[0].set(-1e4).at[1, :5].set(1e4)
  drawn["deltas"] = drawn["deltas"].at[1, :5].set(1e4)
  detections = detect(**drawn, level_sizes=LEVELS, convention="modern", **SETTINGS)
  assert not detections.valid[0].any() and detections.valid[1].all()
  assert all(np.isfinite(np.asarray(column)).all() for column in detections)


def test_a_sharded_batch_gives_the_same_detections():
  drawn = draw(1, batch=8)
  run = partial(detect, level_sizes=LEVELS, convention="modern", **SETTINGS)
  mesh = Mesh(np.array(jax.devices()), ("data",))
  rows_of = {k: PartitionSpec() if k == "anchors" else PartitionSpec("data") for k in drawn}
  placed = {k: jax.device_put(v, NamedSharding(mesh, rows_of[k])) for k, v in drawn.items()}
  for a, b in zip(jax.jit(run)(**placed), jax.jit(run)(**drawn), strict=True):
    np.testing.assert_array_equal(a, b)


def test_unscale_inverts_the_resizing_of_ground_truth():
  rng = np.random.default_rng(0)
  boxes = rng.uniform(0, 300, (2, 5, 4))
  boxes[..., 2:] = boxes[..., :2] + rng.uniform(1, 90, (2, 5, 2))
  scale = rng.uniform(0.3, 3, (2, 2))  # y, x
  by = np.stack([scale[:, 1], scale[:, 0]] * 2, axis=-1)[:, None]
  modern, legacy = boxes * by, boxes * by
  legacy[..., 2:] = (boxes[..., 2:] - 1) * by[..., 2:] + 1
  for scaled, convention in [(modern, "modern"), (modern, "torchvision"), (legacy, "legacy")]:
    back = unscale_boxes(jnp.float32(scaled), jnp.float32(scale), convention=convention)
    np.testing.assert_allclose(back, boxes, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
  "wrong, message",
  [
    ({"level_sizes": (60, 20)}, "are 80 anchors, not 86"),
    ({"nms": "greedy"}, "'greedy' is not known; use 'hard', 'linear', 'gaussian' or 'none'"),
    ({"convention": "coco"}, "'coco' is not known"),
  ],
)
def test_wrong_arguments(wrong, message):
  with pytest.raises(ValueError, match=message):
    detect(**draw(0), **({"level_sizes": LEVELS, "convention": "modern"} | wrong))
