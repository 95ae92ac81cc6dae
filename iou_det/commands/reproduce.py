"""Reproduces a table or figure of arXiv:1908.05641: runs what is missing, then writes it.

usage: iou-det reproduce EXPERIMENT --preset=coco|deeppcb|shapes --workdir=W

EXPERIMENT: table1, table2, table3, table4, fig1, fig2, fig3 (the paper's); comparison (other ways of tying
scores to IoU, other box losses); wloc_sweep (AP against the localization weight, with and without IoU
balancing); all. Trainings lie in W/runs/PRESET/NAME/seedS and are shared: a finished one is used as it is, an
interrupted one goes on. Tables (Markdown, CSV) and plots (PNG, SVG) go to W/PRESET/EXPERIMENT. Figures 2 and
3 of runs of your own: iou-det reproduce fig2 --workdirs=runs/a,runs/b --workdir=W.
"""

import shlex
import sys
from functools import partial

from absl import flags

from iou_det.commands import flags as common
from iou_det.errors import UserError
from iou_det.paper.experiments import EXPERIMENTS, detect_more, figures_of, write
from iou_det.paper.reproduce import dry_run, plan, prepare_smoke_data, run_all
from iou_det.paper.runs import PRESETS, Reproduction
from iou_det.processes import by_process_0, start_distributed
from iou_det.storage import local_path, user_path
from iou_det.workdir.run import check_no_file

PRESET = flags.DEFINE_enum("preset", "shapes", PRESETS, "What to train on; coco is the paper's protocol.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the runs, tables and figures.", required=True)
DATA = flags.DEFINE_string("data", "", "Dataset; default: the preset's own path (coco has none).")
SEEDS = flags.DEFINE_integer("seeds", 1, "Train each run with so many seeds, 0, 1, ...", 1, 1000)
CONTROLS_HELP = "table2: also a baseline with a larger localization weight (two ways), and Eq. (5)."
CONTROLS = flags.DEFINE_bool("controls", False, CONTROLS_HELP)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only list the runs, their images, steps and hours.")
WORKDIRS = flags.DEFINE_list("workdirs", [], "fig2, fig3: trained workdirs to compare, the baseline first.")
DISTRIBUTED = common.distributed()
SMOKE = flags.DEFINE_bool("smoke", False, "Toy size, to see that it works; no result.")


def main(arguments: list[str]) -> None:
  if DISTRIBUTED.value:
    start_distributed()
  known = (*EXPERIMENTS, "all")
  if len(arguments) != 1 or arguments[0] not in known:
    raise UserError(f"got {' '.join(arguments) or 'no experiment'}; give one of {', '.join(known)}")
  experiment = arguments[0]
  if CONTROLS.value and experiment not in ("table2", "all"):
    raise UserError(f"--controls belongs to table2, not to {experiment}")
  workdir = user_path(WORKDIR.value, write=True)
  check_no_file(workdir)
  command = shlex.join(["iou-det", "reproduce", *sys.argv[1:]])
  if WORKDIRS.value:
    if experiment not in ("fig2", "fig3") or len(WORKDIRS.value) < 2:
      raise UserError("--workdirs takes two or more trained workdirs, and fig2 or fig3")
    given = [f.name for f in (PRESET, DATA, SEEDS, DRY_RUN, SMOKE) if f.present]
    if given:
      raise UserError(f"--{given[0]} has no meaning with --workdirs, which trains nothing; leave it out")
    text = figures_of(experiment, [user_path(w) for w in WORKDIRS.value], workdir / experiment, command)
    by_process_0(partial(print, text))
    return
  if SMOKE.value and DATA.value:
    raise UserError("--smoke trains on shapes that it makes itself; leave out --data")
  if SMOKE.value:
    local_path(WORKDIR.value, "--smoke makes its data in --workdir:", "give one, or --data and no --smoke")
  data = str(workdir / "smoke_data") if SMOKE.value else DATA.value
  if PRESET.value == "coco" and not data and experiment != "fig1":
    raise UserError("--preset=coco needs --data=DIR: a COCO folder, or what TFDS or `prepare` made of it")
  reproduction = Reproduction(workdir, PRESET.value, data, SMOKE.value)
  controls = CONTROLS.value or experiment == "all"
  prepare_smoke_data(reproduction)
  names = EXPERIMENTS if experiment == "all" else [experiment]
  plans = {name: plan(name, reproduction, seeds=SEEDS.value, controls=controls) for name in names}
  if DRY_RUN.value:
    every = list(dict.fromkeys(run for runs in plans.values() for run in runs))  # shared ones once
    listed = by_process_0(partial(dry_run, every, reproduction))
    by_process_0(partial(print, f"{experiment}\n{listed}" if every else f"{experiment}: nothing to train"))
    return
  for name, runs in plans.items():
    run_all(runs, reproduction)
    more = detect_more(name, reproduction, runs)
    text = by_process_0(partial(write, name, reproduction, runs, command))
    by_process_0(partial(print, text + more))
