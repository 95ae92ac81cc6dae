"""Measures speed and memory; each measurement is one JSON line with the hardware and versions.

  iou-det bench train --config=configs/retinanet.py:short=800 [--batch_size=16] [--against=torchvision]
  iou-det bench predict --config=...                      the same for detection, also of one image
  iou-det bench input --config=configs/retinanet.py --config.data.path=COCO_FOLDER
  iou-det bench eval
  iou-det bench scaling --config=configs/retinanet.py     how time and memory grow, and what devices exchange

train and predict take made-up images of the config's size; input takes the images of the config's data; eval
scores made-up detections. Add --config.mesh.fsdp=N and the like to see what they cost.
"""

import os
from collections.abc import Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from iou_det.bench import against
from iou_det.bench.host import bench_eval, bench_input
from iou_det.bench.measure import report
from iou_det.bench.network import bench_predict, bench_train
from iou_det.bench.scaling import bench_scaling
from iou_det.config import validate
from iou_det.errors import UserError

KINDS = ("train", "input", "predict", "eval", "scaling")
CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and argument, FILE.py:ARG.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images of a batch, over all devices.", lower_bound=1)
CLASSES = flags.DEFINE_integer("classes", 80, "Classes of the made-up data.", lower_bound=1)
BOXES = flags.DEFINE_integer("boxes", 8, "Ground truths of each made-up training image.", lower_bound=0)
IMAGES = flags.DEFINE_integer("images", 5000, "Images that input loads, or eval scores.", lower_bound=1)
DETECTIONS = flags.DEFINE_integer("detections", 500_000, "Detections that eval scores.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 20, "Timed calls of each piece.", lower_bound=1)
PIECES = flags.DEFINE_bool("pieces", True, "train: also the parts of the step, each compiled alone.")
AGAINST = flags.DEFINE_enum("against", None, ["torchvision"], "train, predict: run this too.")
OUT = flags.DEFINE_string("out", "", "File to append the JSON lines to; scaling also draws beside it.")


def main(arguments: list[str]) -> None:
  if len(arguments) != 1 or arguments[0] not in KINDS:
    raise UserError(f"bench {' '.join(arguments)}: give one of {', '.join(KINDS)}")
  (kind,) = arguments
  if AGAINST.value:
    if kind not in ("train", "predict"):
      raise UserError(f"--against={AGAINST.value} is for bench train and predict, not {kind}")
    against.check_torchvision()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves room for the other on a GPU
  rows = [report(row, OUT.value) for row in measure(kind)]
  if AGAINST.value:
    config = bench_config(kind)
    theirs = [
      report(row, OUT.value)
      for row in against.bench_torchvision(
        kind, config, BATCH_SIZE.value, BOXES.value, CLASSES.value, REPEATS.value
      )
    ]
    report(against.ratios(rows[0], theirs), OUT.value)


def measure(kind: str) -> Iterator[dict[str, Any]]:
  if kind == "eval":
    return bench_eval(IMAGES.value, DETECTIONS.value, CLASSES.value)
  config = bench_config(kind)
  if kind == "input":
    cores = len(os.sched_getaffinity(0))
    return bench_input(config, BATCH_SIZE.value, IMAGES.value, cores, REPEATS.value)
  if kind == "train":
    return bench_train(config, BATCH_SIZE.value, BOXES.value, CLASSES.value, REPEATS.value, PIECES.value)
  if kind == "scaling":
    return bench_scaling(config, BATCH_SIZE.value, BOXES.value, CLASSES.value, REPEATS.value, OUT.value)
  return bench_predict(config, BATCH_SIZE.value, CLASSES.value, REPEATS.value)


def bench_config(kind: str) -> ConfigDict:
  """The config of --config; only `input` needs it to name data."""
  if CONFIG.value is None:
    raise UserError("--config is missing; for example --config=configs/retinanet.py:short=800")
  config = ConfigDict(CONFIG.value.to_dict())
  if kind != "input":
    config.data.path = "made up"
    config.data.max_boxes = max(config.data.max_boxes, BOXES.value)
  if config.loss.w_loc == "auto":  # needs data, and costs nothing once it is a number
    with config.ignore_type():
      config.loss.w_loc = 1.0
  validate(config)
  return config
