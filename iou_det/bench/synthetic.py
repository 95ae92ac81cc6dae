"""Made-up inputs in the formats of the pipeline and of COCO's evaluation."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from iou_det.config import input_size
from iou_det.data.pipeline import HostBatch


def content_size(config: ConfigDict, portrait: bool) -> tuple[int, int]:
  """Height and width of images that fill the network's input after resizing and fit into the canvas."""
  d = config.data
  scale = min(1.0, d.canvas[0] / d.short, d.canvas[1] / d.long)
  short, long = round(d.short * scale), round(d.long * scale)
  return (long, short) if portrait else (short, long)


def batch(
  config: ConfigDict, images: int, num_classes: int, boxes: int, *, portrait: bool = False
) -> HostBatch:
  """A batch as `iou_det.data.pipeline` makes it: noise, with `boxes` random boxes an image.

  Boxes have log-uniform sides from 1/25 of the image's to all of it, so that every pyramid level has some.
  """
  rng = np.random.default_rng(0)
  canvas = tuple(config.data.canvas[::-1] if portrait else config.data.canvas)
  height, width = content_size(config, portrait)
  pixels = np.zeros((images, *canvas, 3), np.uint8)
  pixels[:, :height, :width] = rng.integers(0, 256, (images, height, width, 3), np.uint8)
  rows = max(boxes, config.data.max_boxes)
  corners = np.zeros((images, rows, 4), np.float32)
  size = np.array([width, height])
  sides = size * np.exp(rng.uniform(np.log(1 / 25), 0, (images, boxes, 2)))
  corners[:, :boxes, :2] = rng.uniform(0, 1, sides.shape) * (size - sides)
  corners[:, :boxes, 2:] = corners[:, :boxes, :2] + sides
  labels = np.zeros((images, rows), np.int32)
  labels[:, :boxes] = rng.integers(0, num_classes, (images, boxes))
  size_of_each = np.tile(np.array([height, width], np.int32), (images, 1))
  return {
    "image": pixels,
    "image_size": size_of_each,
    "original_size": size_of_each.copy(),
    "boxes": corners,
    "labels": labels,
    "valid": np.tile(np.arange(rows) < boxes, (images, 1)),
    "index": np.arange(images, dtype=np.int32),
    "epoch": np.zeros(images, np.int32),
    "example": np.ones(images, bool),
  }


def describe(config: ConfigDict, host: HostBatch, num_classes: int, boxes: int) -> dict[str, Any]:
  """What sets the size of the work on a landscape batch."""
  return {
    "canvas": list(host["image"].shape),
    "network_input": list(input_size(config, False)),
    "depth": config.model.depth,
    "width": config.model.width,
    "classes": num_classes,
    "boxes": boxes,
  }


def scored_dataset(
  images: int, detections: int, num_classes: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """COCO ground truth (about 7 boxes an image) and results to score against it.

  About a third of the detections are ground truth boxes moved by up to a fifth of their size, with the right
  class nine times in ten; the others are anywhere. Scores are higher for the former.
  """
  rng = np.random.default_rng(0)
  height, width = 480, 640

  def boxes(number):
    sides = np.array([width, height]) * np.exp(rng.uniform(np.log(1 / 50), 0, (number, 2)))
    return np.concatenate([rng.uniform(0, 1, sides.shape) * ([width, height] - sides), sides], axis=1)

  per_image = rng.poisson(7.3, images)
  image_of = np.repeat(np.arange(1, images + 1), per_image)
  true_boxes = boxes(len(image_of))
  true_class = rng.integers(1, num_classes + 1, len(image_of))
  crowd = (rng.uniform(size=len(image_of)) < 0.01).astype(int)
  truth = {
    "images": [
      {"id": i, "file_name": f"{i}.jpg", "height": height, "width": width} for i in range(1, images + 1)
    ],
    "categories": [{"id": k, "name": f"class {k}"} for k in range(1, num_classes + 1)],
    "annotations": [
      {"id": n, "image_id": i, "category_id": k, "bbox": b, "area": b[2] * b[3] * 0.6, "iscrowd": c}
      for n, (i, k, b, c) in enumerate(
        zip(image_of.tolist(), true_class.tolist(), true_boxes.tolist(), crowd.tolist(), strict=True), 1
      )
    ],
  }
  found = rng.uniform(size=detections) < 1 / 3
  source = rng.integers(0, len(image_of), detections)
  in_image = np.where(found, image_of[source], rng.integers(1, images + 1, detections))
  moved = true_boxes[source]
  moved = moved + rng.uniform(-0.2, 0.2, moved.shape) * moved[:, [2, 3, 2, 3]]
  bbox = np.where(found[:, None], moved, boxes(detections))
  right = found & (rng.uniform(size=detections) < 0.9)
  category = np.where(right, true_class[source], rng.integers(1, num_classes + 1, detections))
  score = np.round(np.where(found, rng.beta(4, 2, detections), rng.beta(1, 6, detections)), 4)
  results = [
    {"image_id": i, "category_id": k, "bbox": b, "score": s}
    for i, k, b, s in zip(in_image.tolist(), category.tolist(), bbox.tolist(), score.tolist(), strict=True)
  ]
  return truth, results
