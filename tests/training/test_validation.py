"""The validation loss against a float64 loop; on other devices it is compared in test_detector.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from iou_det.config import strides
from iou_det.data import open_dataset
from iou_det.data.pipeline import decode_image
from iou_det.ops.anchors import by_anchor
from iou_det.training.validation import mean_loss, validation_loss
from iou_det.weights.load import load_detector
from tests import oracles
from tests.training.test_losses import MATCH, PLAIN, oracle_sums

BATCH = 8  # of 13 images
AUGMENTED = {"flip_horizontal": 1.0, "flip_vertical": 1.0, "scale_jitter": (0.5, 2.0)}
AUGMENTED |= {"brightness": 0.9, "contrast": 0.9, "saturation": 0.9, "hue": 0.4}


def with_crowds(source, image):
  """All boxes of an image become crowds, so that it has none to train on."""
  crowd = source.annotations.crowd.copy()
  crowd[source.annotations.rows(image)] = True
  return source.replace(annotations=dataclasses.replace(source.annotations, crowd=crowd))


def expected_loss(detector, source):
  """By loops over the images of each batch that have a box."""
  config, sums, match = detector.config, [], MATCH | {"force_match": False}
  settings = PLAIN | {name: config.loss[name] for name in ("eta", "lambd", "w_loc")}
  anchors = oracles.anchors((64, 96), strides(config), **config.anchors)
  for first in range(0, len(source), BATCH):
    records = [r for r in map(source.__getitem__, range(first, min(first + BATCH, len(source))))]
    records = [r for r in records if not r.crowd.all()]
    pixels = np.stack([decode_image(r) for r in records]).astype(np.float64)
    images = (pixels - np.array(config.data.mean)) / np.array(config.data.std)
    logits, deltas = detector.model.apply(detector.variables, jnp.float32(images))
    logits, deltas = jax.device_get((by_anchor(logits, len(source.categories)), by_anchor(deltas, 4)))
    boxes, labels, valid = np.zeros((len(records), 16, 4)), np.zeros((len(records), 16), int), []
    for i, r in enumerate(records):
      boxes[i, : len(r.boxes)], labels[i, : len(r.boxes)] = r.boxes, r.labels
      valid.append(np.arange(16) < len(r.boxes))
    inside = np.ones((len(records), len(anchors)), bool)
    drawn = {"logits": logits, "deltas": deltas, "boxes": boxes, "labels": labels, "valid": np.stack(valid)}
    sums.append(oracle_sums(drawn | {"inside": inside}, anchor_boxes=anchors, match=match, **settings))
  classification, localization, positives = (np.concatenate(column) for column in zip(*sums, strict=True))
  return classification.sum() / positives.sum(), localization.sum() / positives.sum()


def test_it_is_trainings_loss_of_the_images_that_training_would_take(reference):
  """Whatever the augmentation; the last batch has fillers, one image no box that counts."""
  detector = load_detector(reference[0])
  source = with_crowds(open_dataset(detector.config.data.path, "val"), 9)
  detector.config.data.update(AUGMENTED)
  # A box inside several anchors is a tie to be forced, which float32 and float64 break differently.
  detector.config.match.force_match = False
  detector.also = validation_loss(detector.config, detector.model, detector.mesh, source)
  detector.detect(source)
  loss = mean_loss(detector.also.values)
  expected = expected_loss(detector, source)
  assert [loss["loss_classification"], loss["loss_localization"]] == pytest.approx(expected, rel=2e-5)
  assert loss["loss"] == pytest.approx(sum(expected), rel=2e-5)
  detector.detect(source)
  assert mean_loss(detector.also.values) == loss
  assert detector.evaluation_step._cache_size() == 1

  # Where no view is of the network's own size, it is a forward pass of its own.
  views = dataclasses.replace(detector, config=ConfigDict(detector.config.to_dict()))
  views.config.eval.tta_scales = (0.5,)
  views.also = validation_loss(views.config, detector.model, detector.mesh, source)
  views.detect(source)
  assert mean_loss(views.also.values) == pytest.approx(loss, rel=1e-5)


def test_without_a_box_there_is_none(reference):
  detector = load_detector(reference[0])
  source = open_dataset(detector.config.data.path, "val").first(3)
  for image in range(3):
    source = with_crowds(source, image)
  detector.also = validation_loss(detector.config, detector.model, detector.mesh, source)
  detector.detect(source)
  assert mean_loss(detector.also.values) == {}
