"""Detects on a split with a trained workdir and scores it.

Writes eval/SPLIT/detections.json (COCO results format: original category ids, original pixels) and
eval/SPLIT/metrics.json into the workdir, and prints the COCO table.
"""

from pathlib import Path

import jax
from absl import flags

from iou_det.commands import flags as common
from iou_det.data import open_dataset
from iou_det.detector import load_run
from iou_det.evaluation import coco
from iou_det.parallel import Preemption, start_distributed

WORKDIR = common.trained_workdir()
BATCH_SIZE = common.batch_size()
STEP = common.step()
SPLIT = flags.DEFINE_string("split", None, "Split to evaluate; default: the config's data.val_split.")
DATA = flags.DEFINE_string("data", None, "Dataset to evaluate on; default: the config's data.path.")
ANNOTATIONS = flags.DEFINE_string(
  "annotations",
  None,
  "Original COCO annotation file to score against; default: the config's data.val_annotations for its own "
  "val_split, else the dataset's records.",
)
BACKEND_HELP = "pycocotools, the number of record, or hotcoco: the same, sooner."
BACKEND = flags.DEFINE_enum("backend", coco.BACKENDS[0], coco.BACKENDS, BACKEND_HELP)
DISTRIBUTED = common.distributed()


def main() -> None:
  if DISTRIBUTED.value:
    start_distributed()
  run = load_run(WORKDIR.value, STEP.value, BATCH_SIZE.value)
  data = run.detector.config.data
  split = SPLIT.value or data.val_split
  own = split == data.val_split and not DATA.value
  with Preemption() as preemption:
    scored = run.detector.evaluate(
      run.variables,
      open_dataset(DATA.value or data.path, split),
      ANNOTATIONS.value or (data.val_annotations if own else ""),
      backend=BACKEND.value,
      interrupted=preemption.requested,
    )
    # Other data do not overwrite the figures of the run's own split.
    folder = Path(WORKDIR.value) / "eval" / (f"{Path(DATA.value).name}_{split}" if DATA.value else split)
    metrics = scored.write(folder, step=run.step, split=split)
  if jax.process_index() == 0:
    print(coco.table(metrics))
