"""What training starts from: a whole detector, for the same classes or others (`config.model.init`)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from iou_det.config import differences
from iou_det.data.source import Category
from iou_det.errors import UserError
from iou_det.weights.load import Stored, find_detector

TRAINING_ONLY = ("init", "pretrained", "frozen_stages", "prior", "dtype", "remat")  # no part of the network


def start_from_detector(
  config: ConfigDict, categories: Sequence[Category], variables: PyTree, mesh: Mesh
) -> PyTree:
  """A fresh network's variables, replaced by those of the detector `config.model.init`.

  Where it knows a class of every name in `categories`, all is taken, the outputs for classes in their order;
  otherwise the last class convolution stays as it is and the rest is taken.

  Raises:
    UserError: it is a detector of another network; says which settings would make this its network.
  """
  source, stored = config.model.init, detector_to_start_from(config)
  loaded, _ = stored.read(mesh)
  own, theirs = (v["params"]["classification_head"] for v in (variables, loaded))
  label_of = {c.name: k for k, c in enumerate(stored.categories)}
  names = [c.name for c in categories]
  unknown = [name for name in names if name not in label_of]
  if unknown or len(set(names)) < len(names):
    what = f"fresh for {len(names)} classes ({', '.join(unknown[:5]) or 'a repeated name'}: not known to it)"
    theirs["output"] = own["output"]
  else:
    what = f"of {len(names)} of its {len(stored.categories)} classes, by name"
    labels = jnp.array([label_of[name] for name in names])
    cells = lambda x: x.reshape(*x.shape[:-1], -1, len(stored.categories))  # an anchor's classes lie together
    pick = lambda x: cells(x)[..., labels].reshape(*x.shape[:-1], -1)
    theirs["output"] = jax.tree.map(pick, theirs["output"])
  logging.info(f"model.init={source}: backbone, FPN and heads taken; the last class convolution {what}")
  if config.model.pretrained:
    logging.info(f"model.pretrained={config.model.pretrained} is not read: model.init has a backbone")
  return loaded


def detector_to_start_from(config: ConfigDict) -> Stored:
  """The detector `config.model.init`, its weights not read; a UserError if it is of another network."""
  stored = find_detector(config.model.init)
  compare_networks(config, stored.config, config.model.init)
  return stored


def compare_networks(config: ConfigDict, theirs: ConfigDict, source: str) -> None:
  """Refuses settings that make another network; logs those that show it other boxes or pixels."""
  flags = []
  for section in ("model", "anchors"):
    for field, value in theirs[section].items():
      if field not in TRAINING_ONLY and value != config[section][field]:
        shown = f"'{value}'".replace(" ", "") if isinstance(value, tuple) else value
        flags.append(f"--config.{section}.{field}={shown}")
  if flags:
    raise UserError(
      f"config.model.init={source} is of another network or other anchors; add {' '.join(flags)}, "
      f"or start from its config: --config=finetune:init={source}"
    )
  seen = lambda c: ConfigDict({k: c.data[k] for k in ("mean", "std", "rounding", "short", "long")})
  if different := differences(seen(theirs), seen(config)):
    logging.warning(f"model.init={source} saw its images otherwise (there != here): {'; '.join(different)}")
