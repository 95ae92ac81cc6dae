"""Measures training steps, the input pipeline, detection or scoring, and how cost grows; one JSON line
per measurement.

usage: iou-det bench train|predict --config=configs/retinanet.py:short=800 [--against=torchvision]
       iou-det bench input --config=configs/retinanet.py --config.data.path=COCO_FOLDER
       iou-det bench eval                       (needs the extra fast-eval)
       iou-det bench scaling --config=configs/shapes.py --out=FILE.jsonl
           (XLA_FLAGS=--xla_force_host_platform_device_count=8 simulates 8 devices on a CPU)

train and predict run on made-up images with random boxes (data.path may be empty) and an untrained network.
Sizes are the config's: --config.data.short=64 --config.data.long=96 runs in seconds on a CPU. Lines say on
what they were measured; fields that were not measured or have no meaning are null. "model_flops" counts the
program as written (forward, backward and update for train; what model.remat does again does not count),
"share_of_peak" sets them against the data sheet's bfloat16 rate. "seconds_iqr" is the interquartile range of
the repeats.
"""

from typing import Any

from absl import flags
from ml_collections import ConfigDict

from iou_det.commands import flags as common
from iou_det.config import to_choose
from iou_det.config_args import config_from_flag
from iou_det.errors import UserError
from iou_det.storage import local_path

KINDS = ("train", "input", "predict", "eval", "scaling")
CONFIG = common.config("eval needs none.")
BATCH_SIZE = common.batch_size()
REPEATS = flags.DEFINE_integer("repeats", 10, "Samples; input: 3 are enough.", lower_bound=1)
CLASSES = flags.DEFINE_integer("classes", 80, "Number of classes, except for input.", lower_bound=1)
BOXES = flags.DEFINE_integer("boxes", 8, "train, scaling: boxes of each image.", lower_bound=1)
IMAGES = flags.DEFINE_integer(
  "images", None, "input: images per sample, default 1600; eval: images scored, default 5000.", lower_bound=1
)
DETECTIONS = flags.DEFINE_integer("detections", 500_000, "eval: detections scored.", lower_bound=1)
PIECES = flags.DEFINE_bool("pieces", False, "train: also each part of the step, compiled alone.")
ORIENTATIONS = flags.DEFINE_bool(
  "orientations", False, "train: also what compiling for both orientations takes, cold and from the cache."
)
AGAINST_HELP = "train, predict: also this model on the same images in a process of its own, and the ratios."
AGAINST = flags.DEFINE_enum("against", None, ["torchvision"], AGAINST_HELP)
OUT = flags.DEFINE_string("out", None, "File that the lines are appended to as well.")


def main(arguments: list[str]) -> None:
  if len(arguments) != 1 or arguments[0] not in KINDS:
    raise UserError(f"got {' '.join(arguments) or 'nothing to measure'}; give one of {', '.join(KINDS)}")
  kind = arguments[0]
  lines = "lines are appended to it, which a bucket cannot"
  out = local_path(OUT.value, "--out", lines) if OUT.value else None
  if AGAINST.value and kind not in ("train", "predict"):
    raise UserError(f"--against={AGAINST.value} belongs to train and predict, not to {kind}")
  config = None if kind == "eval" else bench_config(kind)
  if PIECES.value and config and config.train.accumulate > 1:
    raise UserError(
      f"--pieces: config.train.accumulate={config.train.accumulate}; set it to 1, or leave it out"
    )
  # Imported when what is asked for is known to be good; nothing in it takes a device's memory yet.
  import jax

  from iou_det.bench import against, input, scaling, steps, synthetic
  from iou_det.data.plan import images_per_step

  classes, boxes = CLASSES.value, BOXES.value
  same: dict[str, Any] = {"repeats": REPEATS.value, "out": out}
  if config is None:
    steps.bench_eval(IMAGES.value or 5000, DETECTIONS.value, classes, **same)
  elif kind == "input":
    input.bench_input(config, IMAGES.value or 1600, **same)
  elif kind == "scaling":
    scaling.bench_scaling(config, classes, boxes, **same)
  else:
    # Theirs first: it needs the memory that JAX will take.
    theirs = against.run_torchvision(kind, config, classes, boxes, REPEATS.value) if AGAINST.value else []
    devices = jax.devices()[:1] if AGAINST.value else jax.devices()  # torchvision's model uses one
    if kind == "train":
      case = synthetic.Case(config, classes, boxes, images_per_step(config.train), devices)
      rows = [steps.bench_train(case, pieces=PIECES.value, orientations=ORIENTATIONS.value, **same)]
    else:
      rows = steps.bench_predict(config, classes, devices, **same)
    for measured in theirs:
      against.report_beside(rows, measured, out)


def bench_config(kind: str) -> ConfigDict:
  """The config of --config, with --batch_size; only input needs data."""
  if CONFIG.value is None:
    raise UserError(f"{kind} needs --config; for example --config=configs/retinanet.py:short=800")
  config = CONFIG.value
  if BATCH_SIZE.value:
    config.train.batch_size = config.eval.batch_size = BATCH_SIZE.value
  if kind != "input" and not config.data.path and not to_choose(config):
    config.data.path = "made up"
  from iou_det.training.own import settle

  return settle(config_from_flag(CONFIG))[0]
