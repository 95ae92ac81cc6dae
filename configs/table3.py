"""Table 3 of arXiv:1908.05641: the runs of Table 2, AP at the IoUs 0.5, 0.6, 0.7, 0.8 and 0.9.

Commands:
  iou-det reproduce table3 --preset=coco --data=DIR --workdir=runs/paper           (all four, and the table)
  iou-det train --config=configs/table3.py:run=both --config.data.path=DIR --workdir=runs/one
Argument: run=baseline|cls|loc|both, preset=coco|deeppcb|shapes, seed=S  (default both, coco, 0)
Hardware: hours on COCO not measured; nothing to train after Table 2 in the same workdir.
Expected on COCO val-2017 (paper), AP50 to AP90: baseline 53.9 49.2 41.9 30.0 11.2, cls 54.6 50.2 42.7 31.0
11.4, loc 53.7 49.3 42.3 31.8 13.1, both 54.3 50.0 43.0 32.1 13.5. Ours: not measured.
"""

from ml_collections import ConfigDict

from iou_det.config_args import parse_arg
from iou_det.paper.runs import Run, choose, run_config


def get_config(arg: str = "") -> ConfigDict:
  args = parse_arg(arg, run="both", preset="coco", seed=0)
  choose("run", args["run"], ("baseline", "cls", "loc", "both"))
  return run_config(Run(args["run"], args["seed"]), args["preset"])
