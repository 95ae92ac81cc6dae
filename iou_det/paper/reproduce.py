"""Plans and runs the trainings behind a table or figure."""

import gc
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from iou_det.config import from_dict, training_differences
from iou_det.data import Reading, open_dataset
from iou_det.data.plan import images_per_step, make_plan
from iou_det.data.shapes import Shapes, export_coco
from iou_det.errors import UserError
from iou_det.paper.experiments import CONTROLS, EXPERIMENTS
from iou_det.paper.results import finished
from iou_det.paper.runs import Reproduction, Run
from iou_det.processes import by_process_0
from iou_det.storage import local_path
from iou_det.training.loop import train
from iou_det.workdir.metrics import read_metrics
from iou_det.workdir.run import read_config, without_epochs

# What is trained at toy size of the experiments with many runs.
SMOKE_RUNS = {
  "wloc_sweep": ("baseline", "weight2.0", "loc_weight1.0", "loc_weight2.0"),
  "comparison": (
    "baseline", "quality_focal", "quality_focal_scaled", "iou_branch_attached",
    "loc", "giou", "giou_effective",
  ),
}  # fmt: skip


def plan(experiment: str, reproduction: Reproduction, *, seeds: int, controls: bool) -> list[Run]:
  """The runs of an experiment, seed by seed; a run comes after those that it needs."""
  full_size = experiment == "table1" and reproduction.preset == "coco"
  runs: list[Run] = []
  for seed in range(seeds):
    for line in EXPERIMENTS[experiment]:
      if experiment == "table2" and line in CONTROLS and not controls:
        continue
      if reproduction.smoke and line.run not in SMOKE_RUNS.get(experiment, (line.run,)):
        continue
      run = Run(line.run, seed, line.large, full_size)
      runs += [r for r in (*run.needs, run) if r not in runs]
  return runs


def run_all(runs: Sequence[Run], reproduction: Reproduction) -> None:
  """Trains what is not finished; a run that was interrupted goes on from its last checkpoint.

  All processes train; process 0 decides what, and with which weights from other runs. A folder whose run was
  trained otherwise is refused before any training.
  """
  by_process_0(partial(check_folders, runs, reproduction))
  for number, run in enumerate(runs, 1):
    config = by_process_0(partial(config_to_train, run, reproduction, f"{number}/{len(runs)}"))
    if config is not None:
      config = from_dict(config)
      train(config, reproduction.folder(run), devices_for(config))
      jax.clear_caches()  # each run compiles its own programs: memory would grow with the runs
      gc.collect()


def devices_for(config: ConfigDict) -> list[jax.Device]:
  """All devices; of a single process the most that a step's and an evaluation's images are divisible by."""
  devices = jax.devices()
  if jax.process_count() > 1:
    return devices
  used = math.gcd(config.train.batch_size, config.eval.batch_size, len(devices))
  if used < len(devices):
    what = f"a step has {config.train.batch_size} images, an evaluation's batch {config.eval.batch_size}"
    logging.warning("%d of %d devices are used: %s", used, len(devices), what)
  return devices[:used]


def check_folders(runs: Sequence[Run], reproduction: Reproduction) -> None:
  for run in runs:
    if different := trained_otherwise(run, reproduction):
      raise UserError(
        f"{reproduction.folder(run)} was trained with other settings than this command's (there != here: "
        f"{'; '.join(different)}), perhaps by another version; delete the folder, or give another --workdir"
      )


def trained_otherwise(run: Run, reproduction: Reproduction) -> list[str]:
  """Settings in which the run in a folder differs from the one to be trained there."""
  workdir = reproduction.folder(run)
  if not (workdir / "config.json").exists() or not all(done(needed, reproduction) for needed in run.needs):
    return []
  there = read_config(workdir)
  return without_epochs(training_differences(there, reproduction.config(run)), there)


def config_to_train(run: Run, reproduction: Reproduction, number: str) -> dict[str, Any] | None:
  """The settings of a run; None if it is finished."""
  config, workdir = reproduction.config(run), reproduction.folder(run)
  if not finished(config, workdir):
    logging.info("%s %s: training", number, workdir)
    return config.to_dict()
  logging.info("%s %s: finished earlier", number, workdir)
  then = read_config(workdir).data.path
  if then != config.data.path:  # data may move, but may also be others
    logging.warning("%s was trained on data.path=%s, not %s", workdir, then, config.data.path)
  return None


def dry_run(runs: Sequence[Run], reproduction: Reproduction) -> str:
  """What would run: state, images, steps, and hours where a begun run of the same size tells the speed."""
  lines = [f"{'run':<36} {'state':<14} {'images':>10} {'steps':>8}"]
  rates: dict[tuple, list[np.floating]] = {}  # images/s of runs that were begun, by network and image size
  left: dict[tuple, int] = {}  # images to do
  steps_per_epoch: dict[tuple, int] = {}
  for run in runs:
    waits = not all(done(needed, reproduction) for needed in run.needs)
    config = reproduction.config(Run("baseline", run.seed, run.large, run.full_size) if waits else run)
    key = (config.data.path, images_per_step(config.train))
    if key not in steps_per_epoch:
      source = open_dataset(config.data.path, config.data.train_split, Reading.of(config.data))
      steps_per_epoch[key] = make_plan(source, config).steps_per_epoch
    steps = round(config.train.epochs * steps_per_epoch[key])
    size, images = (run.large, run.full_size), steps * images_per_step(config.train)
    log = [row for row in read_metrics(reproduction.folder(run) / "metrics.jsonl") if "loss" in row]
    if len(log) > 1:  # the first step compiles
      rates.setdefault(size, []).append(np.median([row["images_per_second"] for row in log[1:]]))
    if done(run, reproduction):
      state = "finished"
    elif trained_otherwise(run, reproduction):
      state = "other settings"
    else:
      left[size] = left.get(size, 0) + images
      state = "interrupted" if (reproduction.folder(run) / "checkpoints").is_dir() else "to do"
    lines.append(f"{run.folder:<36} {state:<14} {images:>10,} {steps:>8,}")
  known = sum(n / min(rates[size]) / 3600 for size, n in left.items() if size in rates)
  unknown = sum(n for size, n in left.items() if size not in rates)
  hours = [f"{known:.2f} hours at the speed measured here"] if known or not unknown else []
  if unknown:
    hours.append(f"hours unknown for {unknown:,}: no run of their size was begun")
  total = f"{len(runs)} runs; to do: {sum(left.values()):,} images, {', '.join(hours)} (training only)"
  if any(" other settings " in line for line in lines):
    total += "; what was trained with other settings is refused: delete it, or give another --workdir"
  return "\n".join([*lines, total])


def done(run: Run, reproduction: Reproduction) -> bool:
  ready = all(done(needed, reproduction) for needed in run.needs)
  return ready and finished(reproduction.config(run), reproduction.folder(run))


def prepare_smoke_data(reproduction: Reproduction) -> None:
  """Makes the few small shapes that toy runs train and are scored on, as a COCO folder."""
  if not reproduction.smoke:
    return
  if reproduction.preset != "shapes":
    raise UserError(f"--smoke runs on shapes, not on --preset={reproduction.preset}; give --preset=shapes")
  folder = local_path(reproduction.data, "data")

  def make() -> None:
    if not (folder / "annotations" / "instances_test.json").exists():
      for split, images in (("train", 16), ("test", 8)):
        export_coco(Shapes(split, images=images, height=64, width=96), folder)

  by_process_0(make)
