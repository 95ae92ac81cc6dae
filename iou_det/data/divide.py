"""Dividing a data set that has one split into train and val."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt64

from iou_det.data.labels import Labels
from iou_det.errors import UserError


def how_to(there: Sequence[str]) -> str:
  """What is said after the splits that there are: how one of them becomes two."""
  return "; `iou-det prepare --val_fraction=0.2` makes train and val of one" if len(there) == 1 else ""


def divide(
  labels: Labels, contents: UInt64[np.ndarray, " images"], fraction: float, seed: int
) -> dict[str, Labels]:
  """Train and val, so that val has about this share of the images of every class.

  The rarest class is shared out first (iterative stratification, Sechidis et al. 2011), at random by the
  seed; images of the same content stay together.

  Args:
    contents: a number for each image that those of the same content share.
  """
  a = labels.annotations
  group = np.unique(contents, return_inverse=True)[1]
  groups, classes = group.max() + 1, len(labels.categories)
  # Which classes each group of images has; images without boxes are a class of their own.
  has = np.zeros((groups, classes + 1), bool)
  has[group[a.image_of_box()], a.label] = True
  has[:, classes] = ~has.any(axis=1)
  left, in_val = has.sum(axis=0), np.zeros(groups, bool)
  free = np.ones(groups, bool)
  wanted = fraction * left
  order = np.random.default_rng(seed).permutation(groups)
  while free.any():
    left = has[free].sum(axis=0)
    rarest = int(np.argmin(np.where(left > 0, left, groups + 1)))
    here = order[(free & has[:, rarest])[order]]
    need = round(wanted[rarest] - has[in_val, rarest].sum())
    in_val[here[: max(0, need)]] = True
    free[here] = False
  if in_val.all() or not in_val.any():
    without = "train" if in_val.all() else "val"
    raise UserError(
      f"--val_fraction={fraction:g} of {len(a)} images ({groups} different ones) leaves {without} none; give "
      "another fraction, or more images"
    )
  chosen = in_val[group]
  return {name: labels.select(np.flatnonzero(which)) for name, which in (("train", ~chosen), ("val", chosen))}
