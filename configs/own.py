"""Your own data: chooses input size, anchors, room for boxes and length of training by looking at them.

Command:  iou-det train --config=own --config.data.path=DATA --workdir=runs/mine
Argument: size=small|medium, device=cpu|gpu, minutes=20 (of training and scoring; steps are timed first),
          init=DETECTOR (a run's folder, a file of `iou-det export`, a folder of `iou-det import-weights`;
          default: from scratch). What it chooses can be given: --config.data.short=480
Hardware: what device says. docs/own.md has the rules.
Expected: depends on the data; BCCD, minutes=20, one shared core of an Intel Xeon (780 steps): val AP 0.581,
          AP50 0.901, AP75 0.635 (measured, one run, seed 0).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from iou_det.config import base_config
from iou_det.config_args import parse_arg
from iou_det.errors import UserError
from iou_det.weights.load import detector_config

NETWORKS = {
  ("small", "cpu"): {"depth": 18, "width": 32, "fpn_channels": 96, "head_convs": 2},
  ("medium", "cpu"): {"depth": 18, "width": 64, "fpn_channels": 128, "head_convs": 2},
  ("small", "gpu"): {"depth": 18, "width": 64, "fpn_channels": 256, "head_convs": 4},
  ("medium", "gpu"): {"depth": 50, "width": 64, "fpn_channels": 256, "head_convs": 4},
}
TO_CHOOSE = {  # by the data and, in the section train, by the machine's speed
  "data": ("train_split", "val_split", "short", "long", "canvas", "max_boxes"),
  "anchors": ("scale", "ratios"),
  "model": ("max_level",),
  "eval": ("max_detections",),
  "train": ("epochs", "warmup_steps", "eval_epochs", "checkpoint_epochs"),
}


def get_config(arg: str = "") -> ConfigDict:
  args = parse_arg(arg, size="small", device="cpu", minutes=20.0, init="")
  for name, known in zip(("size", "device"), zip(*NETWORKS, strict=True), strict=True):
    if args[name] not in known:
      raise UserError(f"{name}={args[name]}: must be {' or '.join(dict.fromkeys(known))}")
  config, cpu, init = base_config(), args["device"] == "cpu", args.pop("init")
  config.own.update(args)
  config.data.update(scale_jitter=(0.8, 1.2), threads=2 if cpu else 0)
  config.train.update(
    batch_size=4 if cpu else 16,
    optimizer="muon",
    weight_decay=0.01,
    learning_rate=0.03 if cpu else 0.01,
    schedule="cosine",
    clip_norm=10.0,
    ema=0.998,
  )
  to_choose = dict(TO_CHOOSE)
  if init:
    theirs = detector_config(init).to_dict()
    with config.ignore_type():  # loss.w_loc is a number or "auto"
      for section in ("model", "anchors", "match", "loss", "eval"):
        config[section].update(theirs[section])
    config.data.update({name: theirs["data"][name] for name in ("mean", "std", "rounding")})
    config.model.update(init=init, pretrained="")
    config.train.update(optimizer="adamw", beta2=0.98, learning_rate=0.001)  # small steps: much is there
    for section in ("anchors", "model"):
      del to_choose[section]
  else:
    config.model.update(
      **NETWORKS[args["size"], args["device"]], norm="gn", frozen_stages=-1, head_norm="gn", stem="patchify"
    )
    config.anchors.convention = "modern"
    with config.ignore_type():
      config.loss.update(eta=1.5, lambd=1.5, w_loc="auto")
  for section, names in to_choose.items():
    for name in names:
      config[section][name] = placeholder(type(config[section][name]))
  return config
