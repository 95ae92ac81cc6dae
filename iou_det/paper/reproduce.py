"""Plans and runs the trainings behind a table or figure, then writes it."""

import gc
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from iou_det.data import open_dataset
from iou_det.data.pipeline import Plan, TrainingFilter, scan
from iou_det.data.shapes import Shapes, export_coco
from iou_det.errors import UserError
from iou_det.paper.results import finished, images_per_second
from iou_det.paper.runs import COMPARISON, CONTROLS, SWEEP, TABLE2, TABLE4, Place, Run
from iou_det.training.loop import train
from iou_det.workdir import read_config

EXPERIMENTS: dict[str, tuple[str, ...]] = {
  "table1": ("baseline", "both"),  # with both backbones
  "table2": TABLE2,
  "table3": TABLE2,
  "table4": TABLE4,
  "fig1": (),
  "fig2": ("baseline", "cls"),
  "fig3": ("baseline", "loc"),
  "comparison": COMPARISON,
  "wloc_sweep": (
    "baseline", *(f"weight{w}" for w in SWEEP if w != 1.0), *(f"loc_weight{w}" for w in SWEEP)
  ),
}  # fmt: skip


def plan(experiment: str, place: Place, *, seeds: int, controls: bool) -> list[Run]:
  """The runs of an experiment, seed by seed; a run comes after the one that it needs."""
  names = EXPERIMENTS[experiment] + (CONTROLS if controls else ())
  if place.smoke and experiment == "wloc_sweep":
    names = ("baseline", "weight2.0", "loc_weight1.0", "loc_weight2.0")
  full_size = experiment == "table1" and place.preset == "coco"
  runs = [
    Run(name, seed, large, full_size)
    for seed in range(seeds)
    for large in ((False, True) if experiment == "table1" else (False,))
    for name in names
  ]
  ordered: list[Run] = []
  for run in runs:
    ordered += [r for r in (run.needs, run) if r is not None and r not in ordered]
  return ordered


def run_all(runs: Sequence[Run], place: Place) -> None:
  """Trains what is not finished; a run that was interrupted goes on from its last checkpoint."""
  prepare_smoke_data(place)
  for number, run in enumerate(runs, 1):
    config, workdir = place.config(run), place.of(run)
    if finished(config, workdir):
      logging.info("%d/%d %s: finished earlier", number, len(runs), workdir)
      then = read_config(workdir).data.path
      if then != config.data.path:  # data may move, but may also be others
        logging.warning("%s was trained on data.path=%s, not %s", workdir, then, config.data.path)
      continue
    logging.info("%d/%d %s: training", number, len(runs), workdir)
    train(config, workdir)
    jax.clear_caches()  # each run compiles its own programs: memory would grow with the runs
    gc.collect()


def dry_run(runs: Sequence[Run], place: Place) -> str:
  """What would run: state, images, steps, and hours where a begun run of the same size tells the speed."""
  prepare_smoke_data(place)
  lines: list[str] = []
  rates: dict[tuple, list[float]] = {}  # images/s of runs that were begun, by network and image size
  left: dict[tuple, int] = {}  # images to do
  steps_per_epoch: dict[tuple, int] = {}
  for run in runs:
    waits = run.needs is not None and not done(run.needs, place)
    config = place.config(Run("baseline", run.seed, run.large, run.full_size) if waits else run)
    key = (config.data.path, config.train.batch_size)
    if key not in steps_per_epoch:
      steps_per_epoch[key] = count_steps(config)
    steps = round(config.train.epochs * steps_per_epoch[key])
    size, images = (run.large, run.full_size), steps * config.train.batch_size
    state = "to do"
    speed = images_per_second(place.of(run))
    if speed is not None:
      rates.setdefault(size, []).append(speed)
    if done(run, place):
      state = "finished"
    else:
      left[size] = left.get(size, 0) + images
      if (place.of(run) / "checkpoints").is_dir():
        state = "interrupted"
    lines.append(f"{run.folder:<32} {state:<12} {images:>10,} {steps:>8,}")
  known = sum(n / min(rates[size]) / 3600 for size, n in left.items() if size in rates)
  unknown = sum(n for size, n in left.items() if size not in rates)
  hours = f"{known:.2f} hours at the speed measured here" if known or not unknown else ""
  if unknown:
    hours += ", " * bool(hours) + f"hours unknown for {unknown:,}: no run of their size was begun"
  heading = f"{'run':<32} {'state':<12} {'images':>10} {'steps':>8}"
  total = f"{len(runs)} runs; to do: {sum(left.values()):,} images, {hours} (training only)"
  return "\n".join([heading, *lines, total])


def done(run: Run, place: Place) -> bool:
  if run.needs is not None and not done(run.needs, place):
    return False
  return finished(place.config(run), place.of(run))


def count_steps(config: ConfigDict) -> int:
  """Steps of an epoch."""
  d = config.data
  keep = TrainingFilter(min_image_side=d.min_image_side, min_box_side=d.min_box_side, keep_empty=d.keep_empty)
  index = scan(open_dataset(d.path, d.train_split), keep)
  return Plan(index, batch_size=config.train.batch_size, seed=config.seed).steps_per_epoch


def prepare_smoke_data(place: Place) -> None:
  """The few small shapes that toy runs train and are scored on, as a COCO folder."""
  if not place.smoke or (Path(place.data) / "annotations" / "instances_test.json").exists():
    return
  if place.preset != "shapes":
    raise UserError(f"--smoke runs on shapes, not on --preset={place.preset}; give --preset=shapes")
  for split, images in (("train", 16), ("test", 8)):
    export_coco(Shapes(split, images=images, height=64, width=96), Path(place.data))
