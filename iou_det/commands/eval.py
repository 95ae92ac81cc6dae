"""Detects on a split with a trained workdir, or another detector, and scores it.

Writes eval/SPLIT/detections.json (COCO results format: original category ids, original pixels) and
eval/SPLIT/metrics.json into the workdir, or into a folder beside a file, and prints the COCO table. Other
data, and other ways to detect (--class_agnostic, --nms, --tta_flip, --tta_scales), have folders of their own
there.
"""

import signal

import jax
from absl import flags

from iou_det.commands import flags as common
from iou_det.data import WHAT_A_PATH_MAY_BE, Reading, open_dataset
from iou_det.errors import UserError
from iou_det.evaluation import coco
from iou_det.preemption import Preemption
from iou_det.processes import start_distributed
from iou_det.storage import local_path, user_path
from iou_det.weights.load import load_detector

WORKDIR = common.trained_workdir()
BATCH_SIZE = common.batch_size()
TEST_TIME = common.test_time()
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
SKIP_BAD_HELP = "Drop bad records of annotation files and folders, and say which."
SKIP_BAD = flags.DEFINE_bool("skip_bad", False, SKIP_BAD_HELP)
DISTRIBUTED = common.distributed()


def main() -> None:
  if DISTRIBUTED.value:
    start_distributed()
  where = user_path(WORKDIR.value, write=True)
  detector = load_detector(WORKDIR.value, STEP.value, batch_size=BATCH_SIZE.value)
  variant = TEST_TIME(detector.config)
  data = detector.config.data
  data.skip_bad |= SKIP_BAD.value
  split = SPLIT.value or data.val_split
  own = split == data.val_split and not DATA.value
  if not (DATA.value or data.path):
    raise UserError(f"{WORKDIR.value} names no data of its own; give --data={WHAT_A_PATH_MAY_BE}")
  with Preemption([signal.SIGTERM]) as preemption:
    scored = detector.evaluate(
      open_dataset(DATA.value or data.path, split, Reading.of(data)),
      ANNOTATIONS.value or (data.val_annotations if own else ""),
      backend=BACKEND.value,
      interrupted=preemption.requested,
    )
    # Other data, or another way to detect, do not overwrite the figures of the run's own split.
    folder = where if where.is_dir() else where.with_suffix("")
    parts = [local_path(DATA.value, "--data").name if DATA.value else "", split, variant]
    folder = folder / "eval" / "_".join(filter(None, parts))
    metrics = scored.write(folder, step=detector.trained_steps, split=split)
  if jax.process_index() == 0:
    print(coco.table(metrics))
