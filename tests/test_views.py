"""Test-time augmentation against single views, run one by one and merged by NMS as loops over scalars."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from iou_det.config import evaluation_views, input_size
from iou_det.detector import Detector
from iou_det.network import make_model
from iou_det.parallel import device_mesh
from tests import oracle_nms
from tests.tiny import tinier_config

CLASSES, BATCH = 3, 8
LIMITS = {"score_threshold": 0.3, "max_detections": 20, "candidates_per_level": 14}


@pytest.fixture(scope="module")
def case():
  """A config with few anchors, variables that make scores and boxes vary, and a batch of landscape images."""
  config = tinier_config("unused")
  config.anchors.update(convention="legacy", octaves=2)
  config.eval.update(LIMITS)
  model, rng = make_model(config, CLASSES), np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 96, 3), np.float32))

  def draw(path, leaf):
    name = jax.tree_util.keystr(path)
    if leaf.ndim > 1:
      return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
    return np.full(leaf.shape, "scale" in name or "var" in name, np.float32)

  variables = jax.tree_util.tree_map_with_path(draw, shapes)
  sizes = np.array([(60, 90), (64, 64), (40, 96), (33, 50), (64, 96), (50, 61), (47, 70), (64, 80)], np.int32)
  images = np.zeros((BATCH, 64, 96, 3), np.uint8)
  for image, (h, w) in zip(images, sizes, strict=True):
    image[:h, :w] = rng.integers(0, 256, (-(-h // 16), -(-w // 16), 3)).repeat(16, 0).repeat(16, 1)[:h, :w]
  originals = sizes * np.array([1, 1, 2, 1, 1, 3, 1, 1])[:, None]  # the host shrank two of them
  batch = dict(
    image=images, image_size=sizes, original_size=originals.astype(np.int32),
    boxes=np.zeros((BATCH, 1, 4), np.float32), labels=np.zeros((BATCH, 1), np.int32),
    valid=np.zeros((BATCH, 1), bool), index=np.arange(BATCH, dtype=np.int32),
    epoch=np.zeros(BATCH, np.int32), seed=np.zeros(BATCH, np.int32), example=np.ones(BATCH, bool),
  )  # fmt: skip
  return config, variables, batch


def changed(config, section, **values):
  config = ConfigDict(config.to_dict())
  config[section].update(values)
  return config


def detect(config, variables, *batches, devices=1):
  """Detections of each batch on the host, by one compilation of the step."""
  mesh = device_mesh(BATCH, jax.devices()[:devices])
  step = Detector(config, make_model(config, CLASSES), mesh, ()).step
  found = [jax.device_get(step(variables, batch, False)) for batch in batches]
  assert step._cache_size() == 1
  return found


def table(detections, image):
  valid = detections.valid[image]
  columns = [detections.boxes[image], detections.scores[image, :, None], detections.labels[image, :, None]]
  return np.concatenate(columns, axis=1)[valid]


def single_views(config, variables, batch, factor):
  """All (box, score, label) of the plain view of each image, then of the mirrored one, without NMS."""
  short, long = round(config.data.short * factor), round(config.data.long * factor)
  config = changed(config, "data", short=short, long=long)
  every = LIMITS["candidates_per_level"] * CLASSES
  config = changed(config, "eval", nms="none", score_threshold=0.0, max_detections=every)
  flipped = batch | {"image": batch["image"].copy()}
  for image, (h, w) in zip(flipped["image"], batch["image_size"], strict=True):
    image[:h, :w] = image[:h, :w][:, ::-1].copy()
  plain, turned = (
    [table(found, i) for i in range(BATCH)] for found in detect(config, variables, batch, flipped)
  )
  assert min(map(len, plain + turned)) > 15  # of an image of one cell at half the size: 6 anchors, 3 classes
  for rows, size, original in zip(turned, batch["image_size"], batch["original_size"], strict=True):
    width = int(size[1] * min(short / size.min(), long / size.max()) + 0.5)
    scale = width / original[1]
    # Inclusive corners in network pixels are mirrored there.
    x1, x2 = rows[:, 0] * scale, (rows[:, 2] - 1) * scale
    rows[:, 0], rows[:, 2] = (width - 1 - x2) / scale, (width - 1 - x1) / scale + 1
  return [plain, turned]


def merged(views, suppress):
  """What NMS keeps of the pairs of all views of an image."""
  pairs = np.float64(np.concatenate(views))
  scores = np.full((len(pairs), CLASSES), -1.0)
  scores[np.arange(len(pairs)), pairs[:, 5].astype(int)] = pairs[:, 4]
  return np.array([[*pairs[b, :4], score, label] for b, label, score in suppress(pairs[:, :4], scores)])


def test_views_merged_by_one_nms_are_the_slow_version(case):
  """All views at once on eight devices, one by one on one."""
  config, variables, batch = case
  scales = (1.0, 0.5)
  augmented = changed(config, "eval", tta_flip=True, tta_scales=scales)
  (found,) = detect(augmented, variables, batch, devices=8)
  views = [view for s in scales for view in single_views(config, variables, batch, s)]
  nms = lambda boxes, scores: oracle_nms.nms(
    boxes, scores, config.eval.nms_iou, LIMITS["score_threshold"], LIMITS["max_detections"]
  )
  for i in range(BATCH):
    expected = merged([view[i] for view in views], nms)
    assert len(expected) > 5
    np.testing.assert_allclose(table(found, i), expected, rtol=1e-4, atol=2e-3)
    alone = merged([views[0][i]], nms)
    assert len(alone) != len(expected) or not np.allclose(alone, expected, atol=1)


def test_equal_views_give_the_detections_of_one(case):
  config, variables, batch = case
  (plain,) = detect(config, variables, batch)
  (twice,) = detect(changed(config, "eval", tta_scales=(1.0, 1.0)), variables, batch)
  assert plain.valid.sum() > 5 * BATCH
  for a, b in zip(twice, plain, strict=True):
    np.testing.assert_array_equal(a, b)


def test_views_have_rounded_sides_the_plain_one_first():
  config = tinier_config("unused")
  (view, mirror), *others = evaluation_views(config)
  assert not others and not mirror and view.to_dict() == config.to_dict()
  config.eval.update(tta_scales=(1.0, 0.67, 1e-4), tta_flip=True)
  views = [(v.data.short, v.data.long, mirror) for v, mirror in evaluation_views(config)]
  assert views == [
    (64, 96, False),
    (64, 96, True),
    (43, 64, False),
    (43, 64, True),
    (1, 1, False),
    (1, 1, True),
  ]
  assert input_size(evaluation_views(config)[2][0], True) == (64, 64)
  assert (config.data.short, config.data.canvas) == (64, (64, 96))
