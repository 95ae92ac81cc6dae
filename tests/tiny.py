"""A configuration that compiles and trains in seconds on a CPU."""

from ml_collections import FrozenConfigDict

from iou_det.config import base_config


def tiny_config(path, epochs=2, eta=1.5):
  """For the fixture `shapes_folder`: 4 steps an epoch, evaluation and checkpoint each epoch."""
  config = base_config()
  config.model.update(
    depth=18, width=8, norm="gn", frozen_stages=-1, fpn_channels=16, head_convs=1, max_level=5
  )
  config.anchors.update(convention="modern", octaves=1)
  config.loss.update(eta=eta, lambd=1.5, w_loc=3.049)
  config.data.update(path=str(path), short=64, long=96, canvas=(64, 96), max_boxes=16, threads=2)
  config.train.update(batch_size=8, epochs=epochs, warmup_steps=4, decay_epochs=(), log_every=2)
  config.eval.update(batch_size=8, score_threshold=0.001)  # so barely trained, no score reaches 0.05
  return config


def model_section(**changes):
  """config.model with other values of some fields."""
  return FrozenConfigDict(base_config().model.to_dict() | changes)


def tinier_config(path):
  """Without group norm and with one level: compiles in half the time."""
  config = tiny_config(path)
  config.model.update(norm="frozen_bn", min_level=5)
  return config
