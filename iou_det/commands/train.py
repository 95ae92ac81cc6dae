"""Trains a detector; with the same --config and --workdir it resumes, and only evaluates if all is done.

--config=FILE.py:ARG names a file of configs/ and its argument; --config.a.b=value changes a field. The
workdir gets config.json, metrics.jsonl, tensorboard/, checkpoints/ and eval/SPLIT/.
"""

import time

import jax
from absl import flags

from iou_det.commands import flags as common
from iou_det.config_args import config_from_flag
from iou_det.evaluation import coco
from iou_det.processes import start_distributed
from iou_det.storage import user_path
from iou_det.training.checks import check_without_devices
from iou_det.training.loop import train
from iou_det.training.summary import summary

CONFIG = common.config()
WORKDIR_HELP = "Folder for checkpoints, logs and metrics; gs://BUCKET/FOLDER is one too."
WORKDIR = flags.DEFINE_string("workdir", None, WORKDIR_HELP, required=True)
DISTRIBUTED = common.distributed()
CHECK_ONLY = flags.DEFINE_bool(
  "check_only", False, "Check all that needs no accelerator, say what could not be checked here, and end."
)


def main() -> None:
  if CHECK_ONLY.value:
    jax.config.update("jax_platforms", "cpu")  # before JAX looks for devices: another run may have them
    print(*check_without_devices(config_from_flag(CONFIG), user_path(WORKDIR.value, write=True)), sep="\n")
    return
  if DISTRIBUTED.value:
    start_distributed()
  config, began = config_from_flag(CONFIG), time.monotonic()
  metrics = train(config, WORKDIR.value)
  if jax.process_index() == 0:
    print(coco.table(metrics))
    print(summary(user_path(WORKDIR.value), config.data.val_split, time.monotonic() - began))
