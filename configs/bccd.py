"""BCCD (blood cells, 205 training images of 640x480, 3 classes): from scratch, on a CPU.

Commands:
  iou-det prepare --images BCCD/train --annotations BCCD/annotations/instances_train.json \
      --name bccd --split train --data_dir datasets     (and the same for val)
  iou-det train --config=configs/bccd.py --workdir=runs/bccd
Argument: eta=E,lambd=L,w_loc=W  (default 1.5, 1.5, paper: Table 4's w_loc for lambd; or auto, or a number;
          eta=0,lambd=0: baseline)
Hardware: 2 shared CPU cores (Intel Xeon, AVX-512), 20 minutes with compiling and scoring.
Expected: val AP 0.613, AP50 0.902, AP75 0.688 (measured, one run, seed 0; chosen on the split test: 0.609).
"""

from ml_collections import ConfigDict

from iou_det.config import base_config
from iou_det.config_args import loss_settings, parse_arg


def get_config(arg: str = "") -> ConfigDict:
  args = parse_arg(arg, eta=1.5, lambd=1.5, w_loc="paper")
  config = base_config()
  config.model.update(
    depth=18,
    width=32,
    norm="gn",
    frozen_stages=-1,
    stem="patchify",
    fpn_channels=96,
    head_convs=2,
    head_norm="gn",
    max_level=6,
  )
  config.anchors.update(convention="modern", scale=3.0)  # platelets are 24 pixels after resizing
  config.loss.update(**loss_settings(**args))
  config.data.update(
    path="datasets/bccd",
    short=288,
    long=384,
    canvas=(480, 640),
    max_boxes=64,
    flip_vertical=0.5,
    scale_jitter=(0.8, 1.2),
    threads=2,
  )
  config.train.update(
    batch_size=4,
    epochs=30,
    optimizer="muon",
    learning_rate=0.03,
    weight_decay=0.01,
    warmup_steps=75,
    schedule="cosine",
    clip_norm=10.0,
    ema=0.998,
    eval_epochs=10,
    checkpoint_epochs=5,
  )
  return config
