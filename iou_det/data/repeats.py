"""Repeat-factor sampling: images with rare classes come more often (LVIS, arXiv:1908.03195)."""

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int

from iou_det.data.source import Source

UNIT = 1 << 32  # factors are drawn as whole numbers of 1 / UNIT: sums of them are exact


def repeat_factors(
  source: Source, good: Bool[np.ndarray, " boxes"], usable: Bool[np.ndarray, " images"], threshold: float
) -> Float[np.ndarray, " images"]:
  """r(i) = max r(c) over the classes c in image i, 1 without any; r(c) = max(1, sqrt(threshold / f(c))), f(c)
  being the share of the images to train on that have a box of c. Logs the largest r(c).

  Args:
    good: which boxes to train on; `usable`: which images.
  """
  annotations, categories = source.annotations, source.categories
  image, label = annotations.image_of_box()[good], annotations.label[good]
  image, label = np.unique(np.stack([image, label])[:, usable[image]], axis=1)
  share = np.bincount(label, minlength=len(categories)) / usable.sum()
  of_class = np.maximum(1.0, np.sqrt(threshold / np.where(share > 0, share, np.inf)))
  of_image = np.ones(len(usable))
  np.maximum.at(of_image, image, of_class[label])
  rare = np.argsort(-of_class, kind="stable")[: (of_class > 1).sum()]
  largest = ", ".join(f"{categories[c].name} {of_class[c]:.3g}" for c in rare[:5])
  logging.info(
    f"{source.name}: images of {len(rare)} of {len(categories)} classes come more often, as fewer than "
    f"data.repeat_threshold={threshold:g} of the images have them (factors: {largest or 'none'}"
    f"{', ...' if len(rare) > 5 else ''}); an epoch has {of_image[usable].sum():.1f} images instead of "
    f"{usable.sum()}"
  )
  return of_image


def in_units(factors: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
  """Factors as multiples of 1 / UNIT."""
  return np.rint(factors * UNIT).astype(np.int64)


def most_images(units: Int[np.ndarray, " n"]) -> int:
  """The largest sum that `draw_counts` may give: the factors' sum, rounded up."""
  return -(-int(units.sum()) // UNIT)


def draw_counts(units: Int[np.ndarray, " n"], rng: np.random.Generator) -> Int[np.ndarray, " n"]:
  """A random whole number for each factor, in units: one of its two neighbours, the factor on average.

  Systematic resampling: one random offset for all, so the sum, too, is one of the neighbours of the factors'.
  """
  ends = (np.cumsum(units) + rng.integers(UNIT)) // UNIT
  return np.diff(ends, prepend=0)


def occurrences(records: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
  """How many equal ones stand before each."""
  order = np.argsort(records, kind="stable")
  ordered = records[order]
  before = np.empty(len(records), np.int64)
  before[order] = np.arange(len(records)) - np.searchsorted(ordered, ordered)
  return before
