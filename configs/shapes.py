"""Shapes: a small RetinaNet from scratch on the embedded procedural data set, on a laptop CPU.

Command:  iou-det train --config=configs/shapes.py --workdir=runs/shapes
Argument: eta=E,lambd=L,w_loc=W  (default 1.5, 1.5, paper: Table 4's w_loc for lambd; or auto, or a number;
          eta=0,lambd=0: baseline)
Hardware: 2 shared CPU cores (Intel Xeon, AVX-512), 4 min 20 s with compiling and scoring, 51 to 55 images/s.
Expected: val AP 0.809, AP50 0.981, AP75 0.923 (measured, one run, seed 0; chosen on the split test).
"""

from ml_collections import ConfigDict

from iou_det.config import base_config
from iou_det.config_args import loss_settings, parse_arg


def get_config(arg: str = "") -> ConfigDict:
  args = parse_arg(arg, eta=1.5, lambd=1.5, w_loc="paper")
  config = base_config()
  config.model.update(
    depth=18,
    width=16,
    norm="gn",
    frozen_stages=-1,
    stem="patchify",
    fpn_channels=48,
    head_convs=1,
    head_norm="gn",
    max_level=5,
  )
  config.anchors.update(convention="modern", scale=3.0)  # from 24 pixels on, 17 of the image's
  config.loss.update(**loss_settings(**args))
  config.data.update(
    path="shapes",
    short=180,  # 1.4 times the images: finer cells for the objects
    long=224,
    canvas=(128, 160),
    max_boxes=8,
    flip_vertical=0.5,
    threads=2,
  )
  config.eval.update(nms="gaussian", score_threshold=0.01, tta_scales=(1.0, 1.2))  # objects overlap
  config.train.update(
    batch_size=8,
    epochs=3,
    optimizer="muon",
    learning_rate=0.03,
    weight_decay=0.01,
    beta2=0.98,
    warmup_steps=100,
    schedule="cosine",
    clip_norm=10.0,
    eval_epochs=3,
    checkpoint_epochs=1,
  )
  return config
