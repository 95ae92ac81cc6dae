"""The methods that arXiv:1908.05641 sets itself against, beside its own losses: RetinaNet R50 at [600,1000].

Commands:
  iou-det reproduce comparison --preset=coco --data=DIR --workdir=runs/paper    (all, soft-NMS too; the table)
  iou-det train --config=configs/comparison.py:run=ghm_r --config.data.path=DIR --workdir=runs/one
Argument: run=baseline|both|balanced_l1|ghm_r|bounded_iou|isr, preset=coco|deeppcb|shapes, seed=S
          (default balanced_l1, coco, 0)
Balanced L1 and GHM-R have their authors' weights for RetinaNet (1 and 10, the latter for a mean over the 4
offsets, so 2.5 here); bounded IoU has one fitted on the matched anchors (loss.w_loc=auto), which keeps the
baseline's first sum where the untrained head predicts the anchors.
Hardware: hours on COCO not measured.
Expected: not measured on COCO; the paper has no such table.
"""

from ml_collections import ConfigDict

from iou_det.config_args import parse_arg
from iou_det.paper.runs import COMPARISON, Run, choose, run_config


def get_config(arg: str = "") -> ConfigDict:
  args = parse_arg(arg, run="balanced_l1", preset="coco", seed=0)
  choose("run", args["run"], COMPARISON)
  return run_config(Run(args["run"], args["seed"]), args["preset"])
