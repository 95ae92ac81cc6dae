"""Table 1 of arXiv:1908.05641: RetinaNet and IoU-balanced RetinaNet, two backbones, at [800,1333].

Commands:
  iou-det reproduce table1 --preset=coco --data=DIR --workdir=runs/paper           (all four, and the table)
  iou-det train --config=configs/table1.py:run=both,backbone=r101 --config.data.path=DIR --workdir=runs/one
Argument: run=baseline|both, backbone=r50|r101, preset=coco|deeppcb|shapes, seed=S
          (default both, r50, coco, 0; deeppcb and shapes have ResNet-18 and 34 for r50 and r101)
Hardware: hours not measured.
Expected on COCO test-dev (paper): R50 35.9 -> 37.0, R101 38.1 -> 39.2. Ours: not measured.
w_loc is 3.049 for R50 (Table 4) and 2.878 for R101 (the authors' code).
"""

from ml_collections import ConfigDict

from iou_det.config_args import parse_arg
from iou_det.paper.runs import Run, choose, run_config


def get_config(arg: str = "") -> ConfigDict:
  args = parse_arg(arg, run="both", backbone="r50", preset="coco", seed=0)
  choose("run", args["run"], ("baseline", "both"))
  choose("backbone", args["backbone"], ("r50", "r101"))
  large = args["backbone"] == "r101"
  run = Run(args["run"], args["seed"], large, full_size=args["preset"] == "coco")
  return run_config(run, args["preset"])
