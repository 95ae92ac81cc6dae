"""Detections on real images are those of numpy: sort all pairs, suppress one by one in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iou_det.data import open_dataset
from iou_det.data.pipeline import eval_batches
from iou_det.detector import Detector
from iou_det.network import forward, make_model, network_inputs
from iou_det.ops.anchors import by_anchor
from iou_det.parallel import device_mesh, to_device
from iou_det.training.step import create_state
from tests.oracles import decode
from tests.tiny import tiny_config


def with_spread_scores(params, logits):
  """Parameters whose logits spread by 1.5: an untrained network scores every anchor at the prior."""
  head = params["classification_head"]
  output = head["output"] | {"kernel": head["output"]["kernel"] * 1.5 / jnp.std(logits)}
  return params | {"classification_head": head | {"output": output}}


def overlaps(box, boxes):
  """IoU of one box with many, float64."""
  inner = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
  shared = np.prod(np.maximum(inner, 0), axis=1)
  area = lambda b: (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
  return shared / (area(box) + area(boxes) - shared)


def slow_detections(logits, deltas, anchors, level_sizes, image_size, scale, settings):
  """[(label, score, x1, y1, x2, y2 in original pixels)] of one image, best first."""
  scores = 1 / (1 + np.exp(-np.float64(logits)))
  chosen, start = [], 0
  for size in level_sizes:
    best = scores[start : start + size].max(axis=1)
    chosen += (start + np.argsort(-best, kind="stable")[: settings.candidates_per_level]).tolist()
    start += size
  height, width = image_size
  boxes = np.array([decode(deltas[a], anchors[a]) for a in chosen])
  boxes = np.clip(boxes, 0, [width, height, width, height]) / [scale[1], scale[0], scale[1], scale[0]]
  found = []
  for label in range(scores.shape[1]):
    own = scores[chosen, label]
    left = [i for i in np.argsort(-own, kind="stable") if own[i] > settings.score_threshold]
    while left:
      first, *left = left
      found.append((label, own[first], *boxes[first]))
      if left:
        keep = overlaps(boxes[first], boxes[left]) <= settings.nms_iou
        left = [i for i, k in zip(left, keep, strict=True) if k]
  return sorted(found, key=lambda row: -row[1])[: settings.max_detections]


@pytest.mark.real_data
def test_real_images_give_the_detections_of_the_slow_version(real_data):
  config = tiny_config(real_data / "coco_mini")
  config.data.update(val_split="val2017", short=128, long=192, canvas=(480, 640))
  config.eval.update(batch_size=4, score_threshold=0.05, candidates_per_level=100)
  source = open_dataset(config.data.path, "val2017")
  mesh = device_mesh(4, jax.devices()[:1])
  model = make_model(config, 5)
  state, _ = create_state(config, model, 1, mesh, None)
  batches = eval_batches(source, config.data, 4, (0, 1))
  batch, portrait = next(iter(batches))
  arrays = to_device(batch, mesh)
  inputs, anchors, level_sizes = network_inputs(config, arrays, portrait, mesh, train=False)

  @jax.jit
  def network(state):
    logits, deltas = forward(model, state.variables, inputs.images, mesh)
    return by_anchor(logits, 5), by_anchor(deltas, 4)

  state = dataclasses.replace(state, params=with_spread_scores(state.params, network(state)[0]))
  logits, deltas = jax.device_get(network(state))
  detections = jax.device_get(Detector(config, model, mesh, ()).step(state.variables, arrays, portrait))
  seen = 0
  for i in range(4):
    slow = slow_detections(
      logits[i],
      deltas[i],
      np.asarray(anchors),
      level_sizes,
      np.asarray(inputs.image_size[i]),
      np.asarray(inputs.scale[i]),
      config.eval,
    )
    valid = detections.valid[i]
    ours = np.column_stack([detections.labels[i], detections.scores[i], detections.boxes[i]])[valid]
    assert len(ours) == len(slow)
    np.testing.assert_allclose(ours[:, 1], np.array(slow)[:, 1], rtol=1e-4)
    # Rows with scores that rounding alone tells apart may have changed places.
    apart = np.abs(ours[:, None] - np.array(slow)).max(axis=-1)
    assert (apart.min(axis=0) < 1e-2).all() and (apart.min(axis=1) < 1e-2).all()
    seen += len(ours)
  assert seen > 40, "too few detections to show anything"
