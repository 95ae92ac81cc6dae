"""Trains a detector; with the same --config and --workdir it resumes, and only evaluates if all is done.

--config=FILE.py:ARG names a file of configs/ and its argument; --config.a.b=value changes a field. The
workdir gets config.json, metrics.jsonl, tensorboard/, checkpoints/ and eval/SPLIT/.
"""

import jax
from absl import flags
from ml_collections import config_flags

from iou_det.config_args import config_from_flag
from iou_det.evaluation import coco
from iou_det.parallel import start_distributed
from iou_det.training.loop import train

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and argument, FILE.py:ARG.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs and metrics.", required=True)

DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "This is one of several processes; they find each other by SLURM, TPU pod, Open MPI, or by "
  "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
)


def main() -> None:
  if DISTRIBUTED.value:
    start_distributed()
  metrics = train(config_from_flag(CONFIG), WORKDIR.value)
  if jax.process_index() == 0:
    print(coco.table(metrics))
