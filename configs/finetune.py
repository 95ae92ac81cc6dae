"""Fine-tuning: network, anchors, loss and image size of a detector that is there, on other data.

Command:  iou-det train --config=finetune:init=DETECTOR --config.data.path=DATA --workdir=runs/mine
          DETECTOR: a training run's folder, a file of `iou-det export`, a folder of `iou-det import-weights`.
Argument: init=DETECTOR, epochs=12, lr=0.0025 (for 16 images; it drops after 2/3 and 11/12 of the epochs).
Hardware: as the detector's own config; a run on BCCD, beside one from scratch, is in docs/detectors.md.
Expected: depends on detector and data.
"""

from ml_collections import ConfigDict

from iou_det.config import base_config
from iou_det.config_args import parse_arg
from iou_det.errors import UserError
from iou_det.weights.load import WHAT, detector_config


def get_config(arg: str = "") -> ConfigDict:
  args = parse_arg(arg, init="", epochs=12, lr=0.0025)
  if not args["init"]:
    raise UserError(f"--config=finetune:init=DETECTOR: init is missing; give {WHAT}")
  config, theirs = base_config(), detector_config(args["init"]).to_dict()
  own = {name: config.data[name] for name in ("path", "val_annotations", "train_split", "val_split")}
  with config.ignore_type():  # loss.w_loc is a number or "auto"
    for section in ("model", "anchors", "match", "loss", "data", "eval"):
      config[section].update(theirs[section])
  config.data.update(own)
  config.model.update(init=args["init"], pretrained="")
  epochs = args["epochs"]
  config.train.update(
    epochs=epochs, learning_rate=args["lr"], decay_epochs=(round(epochs * 2 / 3), round(epochs * 11 / 12))
  )
  return config
