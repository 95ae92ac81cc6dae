"""Fits w_loc: the factor of the localization loss that keeps its sum at the start of training (Table 4).

The prediction is taken to be the matched anchor, what an untrained head without norm puts out
(--start=anchors); a head with GroupNorm does not, then --start=network runs the untrained network. Training
with --config.loss.w_loc=auto does the same for its own lambd at its start and keeps the value in the workdir.
"""

import math

from absl import flags

from iou_det.commands import flags as common
from iou_det.config import W_LOC
from iou_det.config_args import config_from_flag
from iou_det.data import WHAT_A_PATH_MAY_BE, Reading, format_of, open_dataset
from iou_det.errors import UserError
from iou_det.training.own import settle
from iou_det.training.wloc import IMAGES, STARTS, fit_w_loc

CONFIG = common.config()
COCO_ROOT = flags.DEFINE_string(
  "coco_root",
  None,
  f"Data path ({WHAT_A_PATH_MAY_BE}) of which all splits count together. "
  "Default: the config's data.path and train_split.",
)
LAMBDAS = flags.DEFINE_list("lambdas", [str(x) for x in W_LOC if x], "Exponents of the localization weights.")
START = flags.DEFINE_enum("start", STARTS[0], STARTS, "What the untrained detector predicts.")
IMAGES_FLAG = flags.DEFINE_integer("images", IMAGES, "At most so many images of each split.", lower_bound=1)


def main() -> None:
  try:
    lambdas = [float(x) for x in LAMBDAS.value]
  except ValueError:
    lambdas = []
  if not lambdas or not all(0 <= x < math.inf for x in lambdas):
    raise UserError(f"--lambdas={','.join(LAMBDAS.value)}: must be numbers of 0 or more, as 0.5,1.5")
  if CONFIG.value is not None and COCO_ROOT.value:
    CONFIG.value.data.path = COCO_ROOT.value
  config = settle(config_from_flag(CONFIG))[0]
  reading = Reading.of(config.data)
  if COCO_ROOT.value:
    root = COCO_ROOT.value
    splits = format_of(root, reading.format).splits(root)
    if not splits:
      raise UserError(f"--coco_root={root} has no splits; give {WHAT_A_PATH_MAY_BE}")
    sources = [open_dataset(root, split, reading) for split in splits]
  else:
    sources = [open_dataset(config.data.path, config.data.train_split, reading)]
  fitted = fit_w_loc(config, sources, lambdas, start=START.value, images=IMAGES_FLAG.value)
  print("lambda  w_loc  paper (COCO, R50)")
  for lambd, w_loc in zip(lambdas, fitted, strict=True):
    paper = W_LOC.get(lambd)
    beside = f"{paper:5.3f}  ({100 * (w_loc / paper - 1):+.1f} %)" if paper else "    -"
    print(f"{lambd:6.2f}  {w_loc:5.3f}  {beside}")
