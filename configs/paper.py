"""Every run of arXiv:1908.05641's Tables 1 to 4, of the compared methods and of the sweep of w_loc, by name.

On COCO: configs/retinanet.py (its head says which values are the paper's, and where they stand) with the
paper's own batch and groups:
  short=600 (Tables 2 to 4)  4 images a step (2 GPUs x 2), learning rate 0.0025, warm-up 500 steps
  short=800 (Table 1)        16 images a step (8 GPUs x 2), learning rate 0.01, warm-up 500 steps
  loss.group=2               the sums of Eq. (2) and the normalisers run over a GPU's 2 images, then the mean

Commands:
  iou-det reproduce table1 --preset=coco --data=DIR --workdir=runs/paper      (or table2, ...: runs and table)
  iou-det train --config=configs/paper.py:run=both --config.data.path=DIR --workdir=runs/one
  iou-det fit-wloc --config=configs/paper.py --coco_root=DIR                   (Table 4's column w_loc)
Argument: run=both (default) or another of iou_det/paper/runs.py: baseline, cls, loc, eta1.4, lambd0.5,
          loc_eq5, isr, quality_focal, varifocal, iou_branch, concordance, balanced_l1, giou, weight2.0,
          loc_weight2.0, ... (those whose weight comes from the results of others, as baseline_effective and
          giou_effective: `reproduce table2 --controls` and `reproduce comparison` make them);
          preset=coco|deeppcb|shapes (default coco); seed=S (default 0);
          backbone=r50|r101 (default r50; deeppcb and shapes have ResNet-18 and 34 for them);
          short=600 ([600,1000], default) or 800 ([800,1333], Table 1; coco only)
w_loc is Table 4's on coco (2.878 for R101 at 800, as the authors' code) and fitted on the data elsewhere.
Hardware: hours on COCO not measured; 4 images go on 1, 2 or 4 devices;
          shapes: 2 min 30 s a run with compiling and scoring beside other work, 2 CPU cores (Intel Xeon).
Expected (paper): AP on test-dev at short=800: R50 35.9 -> 37.0, R101 38.1 -> 39.2 (Table 1); on val-2017 with
          R50 at 600: baseline 34.4, cls 35.1, loc 35.2, both 35.7 (Table 2), eta 1.0, 1.4, 1.6: 34.7, 35.0,
          34.9, lambd 0.5, 1.0, 1.8: 35.0, 35.1, 35.1 (Table 4). Ours on COCO: not measured.
"""

from ml_collections import ConfigDict

from iou_det.config_args import parse_arg
from iou_det.paper.runs import RUNS, Run, choose, run_config


def get_config(arg: str = "") -> ConfigDict:
  args = parse_arg(arg, run="both", preset="coco", backbone="r50", short=600, seed=0)
  choose("run", args["run"], [name for name in RUNS if not Run(name, 0).needs])
  choose("backbone", args["backbone"], ("r50", "r101"))
  choose("short", args["short"], (600, 800) if args["preset"] == "coco" else (600,))
  run = Run(args["run"], args["seed"], args["backbone"] == "r101", args["short"] == 800)
  return run_config(run, args["preset"])
