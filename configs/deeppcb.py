"""DeepPCB (circuit boards, 1,000/500 images of 640x640, 6 defect classes): from scratch, on one GPU.

Commands:
  bash launch/get_deeppcb.sh datasets/deeppcb
  iou-det train --config=configs/deeppcb.py --workdir=runs/deeppcb
Argument: eta=E,lambd=L,w_loc=W  (default 0, 0 and paper: Table 4's w_loc for lambd; or auto, or a number)
          cpu=1  (a reduced run for a CPU: narrow network, 320x320 pixels, 12 epochs)
Hardware: one H100, 2 min 12 s with compiling and scoring. cpu=1: 2 CPU cores (AMD EPYC, AVX-512), 14 min 33 s
          beside other jobs.
Expected: test AP 0.696, AP50 0.961, AP75 0.831, AP90 0.224 (measured on one H100, one run, seed 0);
          eta=1.5,lambd=1.5,w_loc=auto: 0.701, 0.958, 0.832, 0.255 (one H200, one run, seed 0).
          cpu=1: AP 0.080, 0.203 and 0.226 after 4, 8 and 12 epochs (one run, seed 0).
"""

from ml_collections import ConfigDict

from iou_det.config import base_config
from iou_det.config_args import loss_settings, parse_arg


def get_config(arg: str = "") -> ConfigDict:
  args = parse_arg(arg, eta=0.0, lambd=0.0, w_loc="paper", cpu=0)
  config = base_config()
  config.model.update(depth=18, norm="gn", frozen_stages=-1, head_norm="gn")
  config.anchors.convention = "modern"
  config.loss.update(**loss_settings(args["eta"], args["lambd"], args["w_loc"]))
  config.data.update(
    path="datasets/deeppcb",
    val_split="test",
    short=640,
    long=640,
    canvas=(640, 640),
    max_boxes=32,
    flip_vertical=0.5,
    transpose=0.5,
  )
  config.train.update(
    batch_size=16,
    epochs=40,
    learning_rate=0.02,
    warmup_steps=300,
    schedule="cosine",
    clip_norm=10.0,
    eval_epochs=40,
    checkpoint_epochs=20,
  )
  if args["cpu"]:
    config.model.update(width=16, fpn_channels=48, head_convs=2, max_level=5)
    config.anchors.scale = 2.0  # the boxes are half as large
    config.data.update(short=320, long=320, threads=2)
    config.train.update(epochs=12, warmup_steps=100, eval_epochs=4, checkpoint_epochs=4)
  return config
