"""Made-up inputs in the formats of the pipeline and of COCO's evaluation, and a network that gets them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from iou_det import config as config_lib
from iou_det.bench.measure import Compilation, Measurement, Timing, compile_program, time_calls
from iou_det.data.pipeline import HostBatch
from iou_det.evaluation.coco import Results
from iou_det.network import make_model
from iou_det.parallel import device_mesh, to_device
from iou_det.training.step import create_state, make_train_step

STEPS_PER_EPOCH = 1000  # only the learning rate depends on it


def changed(config: ConfigDict, fields: dict[str, Any]) -> ConfigDict:
  """A validated copy of a config with other values of some fields."""
  config = ConfigDict(config.to_dict())
  config.update_from_flattened_dict(fields)
  config_lib.validate(config)
  return config


def batch(
  config: ConfigDict, images: int, num_classes: int, boxes: int, *, portrait: bool = False
) -> HostBatch:
  """A batch as `iou_det.data.pipeline` makes it: noise, with `boxes` random boxes an image.

  Images fill the network's input after resizing and fit into the canvas. Boxes have log-uniform sides from
  1/25 of the image's to all of it, so that every pyramid level has some.
  """
  rng = np.random.default_rng(0)
  d = config.data
  scale = min(1.0, d.canvas[0] / d.short, d.canvas[1] / d.long)
  height, width = (round(side * scale) for side in ((d.long, d.short) if portrait else (d.short, d.long)))
  pixels = np.zeros((images, *(d.canvas[::-1] if portrait else d.canvas), 3), np.uint8)
  pixels[:, :height, :width] = rng.integers(0, 256, (images, height, width, 3), np.uint8)
  rows = max(boxes, d.max_boxes)
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
    "seed": np.zeros(images, np.int32),
    "example": np.ones(images, bool),
  }


@dataclass
class Case:
  """An untrained network and a landscape batch on a mesh of devices: what is measured."""

  config: ConfigDict
  num_classes: int
  boxes: int  # of each image
  batch_size: int  # over all devices
  devices: Sequence[jax.Device] | None = None  # default: all

  def __post_init__(self) -> None:
    config = self.config
    self.mesh = device_mesh(self.batch_size, self.devices, setting="--batch_size")
    self.model = make_model(config, self.num_classes)
    made = create_state(config, self.model, STEPS_PER_EPOCH, self.mesh, None)
    self.state, self.optimizer = made
    self.host = batch(self.config, self.batch_size, self.num_classes, self.boxes)
    self.arrays = to_device(self.host, self.mesh)

  def compile_step(self, portrait: bool = False) -> Compilation:
    """The training step; its FLOPs are the model's, without what rematerialisation does again."""
    made_up = batch(self.config, self.batch_size, self.num_classes, self.boxes, portrait=portrait)
    without_remat = self.without_remat()
    counted = without_remat and self._step(without_remat)
    return compile_program(self._step(self.config), self.state, made_up, portrait, counted=counted)

  def _step(self, config: ConfigDict) -> Any:
    model = make_model(config, self.num_classes)
    return make_train_step(config, model, self.optimizer, STEPS_PER_EPOCH, self.mesh, self.state)

  def without_remat(self) -> ConfigDict | None:
    """The config of the same work with nothing done again; None if that is the case's own."""
    return changed(self.config, {"model.remat": False}) if self.config.model.remat else None

  def time_step(self, compilation: Compilation, repeats: int) -> tuple[Timing, list[float]]:
    """Trains on the landscape batch; also the loss of every step."""
    losses = []

    def step():
      self.state, metrics = compilation.program(self.state, self.arrays)
      losses.append(metrics["loss"])
      return metrics["loss"]

    timing = time_calls(step, warmup=2, repeats=repeats)
    return timing, [float(loss) for loss in losses]

  def measurement(
    self, bench: str, what: str, timing: Timing | None, compilation: Compilation | None, **more: Any
  ) -> Measurement:
    shapes = {
      "canvas": list(self.host["image"].shape),
      "network_input": list(config_lib.input_size(self.config, False)),
      **{name: self.config.model[name] for name in ("depth", "width")},
      "classes": self.num_classes,
      "boxes": self.boxes,
    }
    fields = {"batch": self.batch_size, "dtype": jnp.dtype(self.model.dtype).name, "shapes": shapes} | more
    return Measurement(bench, what, "iou-det", timing, compilation, self.mesh.size, fields)


def scored_dataset(images: int, detections: int, num_classes: int) -> tuple[dict[str, Any], Results]:
  """COCO ground truth (about 7 boxes an image) and results to score against it.

  About a third of the detections are ground truth boxes moved by up to a fifth of their size, with the right
  class nine times in ten; the others are anywhere. Scores are higher for the former.
  """
  rng = np.random.default_rng(0)
  height, width = 480, 640

  def boxes(number):
    sides = np.array([width, height]) * np.exp(rng.uniform(np.log(1 / 50), 0, (number, 2)))
    return np.concatenate([rng.uniform(0, 1, sides.shape) * ([width, height] - sides), sides], axis=1)

  def rows(**columns):
    values = zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]

  per_image = rng.poisson(7.3, images)
  image_of = np.repeat(np.arange(1, images + 1), per_image)
  true_boxes = boxes(len(image_of))
  true_class = rng.integers(1, num_classes + 1, len(image_of))
  truth = {
    "images": rows(id=range(1, images + 1), height=[height] * images, width=[width] * images),
    "categories": [{"id": k, "name": f"class {k}"} for k in range(1, num_classes + 1)],
    "annotations": rows(
      id=1 + np.arange(len(image_of)),
      image_id=image_of,
      category_id=true_class,
      bbox=true_boxes,
      area=true_boxes[:, 2] * true_boxes[:, 3] * 0.6,
      iscrowd=(rng.uniform(size=len(image_of)) < 0.01).astype(int),
    ),
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
  return truth, Results(in_image, category, bbox, score)
