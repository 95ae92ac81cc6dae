"""Table 4 of arXiv:1908.05641: the exponents eta and lambd one at a time, and Eq. (5) in place of w_loc.

Commands:
  iou-det reproduce table4 --preset=coco --data=DIR --workdir=runs/paper           (all ten, and the table)
  iou-det train --config=configs/table4.py:run=lambd1.0 --config.data.path=DIR --workdir=runs/one
  iou-det fit-wloc --config=configs/table4.py --coco_root=DIR                      (the column w_loc)
Argument: run=baseline|eta1.0|eta1.4|cls|eta1.6|lambd0.5|lambd1.0|loc|lambd1.8|loc_eq5 (cls: eta 1.5; loc:
          lambd 1.5; loc_eq5: lambd 1.5 with Eq. (5)), preset=coco|deeppcb|shapes, seed=S
          (default loc, coco, 0)
Hardware: hours on COCO not measured.
Expected on COCO val-2017, R50 at [600,1000] (paper): eta 0, 1.0, 1.4, 1.5, 1.6: 34.4 34.7 35.0 35.1 34.9;
lambd 0, 0.5, 1.0, 1.5, 1.8 with w_loc 1.0, 1.575, 2.226, 3.049, 3.649: 34.4 35.0 35.1 35.2 35.1; Eq. (5): no
number, "inferior". Ours: not measured.
"""

from ml_collections import ConfigDict

from iou_det.config_args import parse_arg
from iou_det.paper.runs import TABLE4, Run, choose, run_config


def get_config(arg: str = "") -> ConfigDict:
  args = parse_arg(arg, run="loc", preset="coco", seed=0)
  choose("run", args["run"], TABLE4)
  return run_config(Run(args["run"], args["seed"]), args["preset"])
