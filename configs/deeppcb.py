"""DeepPCB (circuit boards, 1,000/500 images of 640x640, 6 defect classes): from scratch, on one GPU.

Commands:
  bash launch/get_deeppcb.sh datasets/deeppcb
  iou-det train --config=configs/deeppcb.py --workdir=runs/deeppcb
Argument: eta=E,lambd=L,w_loc=W  (exponents of the IoU-balanced losses; default 0, 0, 1: the baseline)
"""

from ml_collections import ConfigDict

from iou_det.config import base_config, parse_arg


def get_config(arg: str = "") -> ConfigDict:
  loss = parse_arg(arg, eta=0.0, lambd=0.0, w_loc=1.0)
  config = base_config()
  config.model.update(depth=18, norm="gn", frozen_stages=-1, head_norm="gn")
  config.anchors.convention = "modern"
  config.loss.update(**loss)
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
  return config
