"""Trains a detector; with the same --config and --workdir it resumes, and only evaluates if all is done.

--config=FILE.py:ARG names a file of configs/ and its argument; --config.a.b=value changes a field. The
workdir gets config.json, metrics.jsonl, tensorboard/, checkpoints/ and eval/SPLIT/; with --compare_baseline
also baseline/: the same run with eta=0, lambd=0 and w_loc=1, and both are compared.
"""

import time

import jax
from absl import flags, logging

from iou_det.commands import flags as common
from iou_det.config import with_loss
from iou_det.config_args import config_from_flag
from iou_det.errors import UserError
from iou_det.evaluation import coco
from iou_det.processes import start_distributed
from iou_det.storage import AnyPath, user_path
from iou_det.training.checks import check_without_devices
from iou_det.training.loop import train
from iou_det.training.own import settle
from iou_det.training.summary import summary
from iou_det.workdir.run import read_config

CONFIG = common.config()
WORKDIR_HELP = "Folder for checkpoints, logs and metrics; gs://BUCKET/FOLDER is one too."
WORKDIR = flags.DEFINE_string("workdir", None, WORKDIR_HELP, required=True)
DISTRIBUTED = common.distributed()
CHECK_ONLY = flags.DEFINE_bool(
  "check_only", False, "Check all that needs no accelerator, say what could not be checked here, and end."
)
COMPARE_HELP = "Train the same with eta=0, lambd=0, w_loc=1 too (twice the time), and say what they brought."
COMPARE = flags.DEFINE_bool("compare_baseline", False, COMPARE_HELP)
FIGURES = ("AP", "AP50", "AP75", "AP90")
PLAIN = {"eta": 0.0, "lambd": 0.0, "w_loc": 1.0}


def main() -> None:
  if CHECK_ONLY.value:
    jax.config.update("jax_platforms", "cpu")  # before JAX looks for devices: another run may have them
    print(*check_without_devices(config_from_flag(CONFIG), user_path(WORKDIR.value, write=True)), sep="\n")
    return
  if DISTRIBUTED.value:
    start_distributed()
  config, began = config_from_flag(CONFIG), time.monotonic()
  if COMPARE.value and all(config.loss[name] == value for name, value in PLAIN.items()):
    raise UserError(
      "--compare_baseline: this config is the baseline, with eta=0, lambd=0 and w_loc=1; leave it out"
    )
  metrics = train(config, WORKDIR.value)
  workdir = user_path(WORKDIR.value, write=True)
  if jax.process_index() == 0:
    print(coco.table(metrics))
    print(summary(workdir, read_config(workdir).data.val_split, time.monotonic() - began))
  if COMPARE.value:
    logging.info(
      f"now the baseline ({', '.join(f'{k}={v:g}' for k, v in PLAIN.items())}): {workdir / 'baseline'}"
    )
    train(with_loss(settle(config, workdir)[0], **PLAIN), workdir / "baseline")
    if jax.process_index() == 0:
      print(comparison(workdir), f"\nmore: iou-det report --workdirs={workdir},{workdir}/baseline --out=DIR")


def comparison(workdir: AnyPath) -> str:
  """A table: what the losses of a run brought against those of the baseline below it, in points of AP."""
  from iou_det.paper.report import Intervals, Row  # imports matplotlib
  from iou_det.paper.results import Results

  results = Results.read(workdir)
  loss = results.config.loss
  ours = Row(f"eta={loss.eta:g}, lambd={loss.lambd:g}, w_loc={results.w_loc:.4g}", [results])
  plain = Row("eta=0, lambd=0, w_loc=1", [Results.read(workdir / "baseline")])
  rows = [ours, plain]
  if ours.mean("AP") is None or plain.mean("AP") is None:
    return f"{results.config.data.val_split} has no objects to score: there is nothing to compare"
  intervals = Intervals(rows)
  differences = [intervals.between(ours, plain, figure) for figure in FIGURES]
  cells = [
    ["", *FIGURES],
    *([row.label, *(f"{row.mean(figure):.1f}" for figure in FIGURES)] for row in rows),
    ["difference", *(f"{d.value:+.1f}" for d in differences)],
    ["95% interval, over images", *(f"{d.low:+.1f} to {d.high:+.1f}" for d in differences)],
  ]
  return "\n".join("".join([f"{first:<32}", *(f"{cell:>15}" for cell in rest)]) for first, *rest in cells)
