"""Table 2 of arXiv:1908.05641: the two parts of the IoU-balanced loss, alone and together.

Commands:
  iou-det reproduce table2 --preset=coco --data=DIR --workdir=runs/paper           (all four, and the table)
  iou-det train --config=configs/table2.py:run=both --config.data.path=DIR --workdir=runs/one
Argument: run=baseline|cls|loc|both, preset=coco|deeppcb|shapes, seed=S  (default both, coco, 0)
Hardware: hours on COCO not measured. shapes: see the README.
Expected on COCO val-2017, R50 at [600,1000] (paper): 34.4, 35.1, 35.2, 35.7. Ours: not measured.
"""

from ml_collections import ConfigDict

from iou_det.config_args import parse_arg
from iou_det.paper.runs import Run, choose, run_config


def get_config(arg: str = "") -> ConfigDict:
  args = parse_arg(arg, run="both", preset="coco", seed=0)
  choose("run", args["run"], ("baseline", "cls", "loc", "both"))
  return run_config(Run(args["run"], args["seed"]), args["preset"])
