"""Which records form which batch of a training run: a pure function of (seed, step).

So a run resumes at any step, and neither the number of hosts nor of threads or processes changes a batch.
"""

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int, Int32
from ml_collections import ConfigDict

from iou_det.data.repeats import draw_counts, in_units, most_images, occurrences, repeat_factors
from iou_det.data.source import Source, corners
from iou_det.errors import UserError


@dataclass(frozen=True)
class TrainingFilter:
  """Which images and boxes to train on; the defaults are those of the paper's codebase (mmdetection 0.6).

  Crowd boxes and boxes of area 0 are never trained on.
  """

  min_image_side: int = 32  # pixels; of the shorter side
  min_box_side: float = 1.0
  keep_empty: bool = False  # train on images that have no box left

  @classmethod
  def of(cls, data: ConfigDict) -> "TrainingFilter":
    return cls(data.min_image_side, data.min_box_side, data.keep_empty)

  def boxes(
    self, boxes: Float[np.ndarray, "n 4"], crowd: Bool[np.ndarray, " n"], area: Float[np.ndarray, " n"]
  ) -> Bool[np.ndarray, " n"]:
    """Which boxes (x1, y1, x2, y2) to train on."""
    too_small = ((boxes[:, 2:] - boxes[:, :2]) < self.min_box_side).any(axis=1) | (area <= 0)
    return ~crowd & ~too_small


class Index(NamedTuple):
  """Sizes of all records of a source, and which of them to train on."""

  heights: Int32[np.ndarray, " n"]
  widths: Int32[np.ndarray, " n"]
  num_boxes: Int32[np.ndarray, " n"]  # boxes to train on
  usable: Bool[np.ndarray, " n"]  # images to train on


def scan(source: Source, keep: TrainingFilter) -> Index:
  """Sizes and box counts of all records, without opening an image; logs what the filter drops."""
  started = time.monotonic()
  a = source.annotations
  good = keep.boxes(corners(a.bbox), a.crowd, a.area)
  num_boxes = np.bincount(a.image_of_box()[good], minlength=len(a)).astype(np.int32)
  large = np.minimum(a.height, a.width) >= keep.min_image_side
  full = (num_boxes > 0) | keep.keep_empty
  index = Index(a.height, a.width, num_boxes, large & full)
  small = ~a.crowd & ~good
  counts = (
    f"{index.usable.sum()} of {len(a)} images and {num_boxes[index.usable].sum()} of {len(good)} boxes to "
    f"train on; left out: {(~large).sum()} images with a side below {keep.min_image_side} px, "
    f"{(large & ~full).sum()} images without usable boxes, {a.crowd.sum()} crowd boxes, {small.sum()} boxes "
    f"with a side below {keep.min_box_side:g} px or no area"
  )
  logging.info("%s: %s (%.1f s)", source.name, counts, time.monotonic() - started)
  if not index.usable.any():
    raise UserError(f"{source.name} has nothing to train on: {counts}; give other data or relax config.data")
  return index


class PlannedBatch(NamedTuple):
  """A global batch: all landscape (width >= height) or all portrait."""

  records: Int[np.ndarray, " batch"]
  epoch: int
  portrait: bool
  again: Int[np.ndarray, " batch"]  # how often repeat factors had the record before in its epoch


class Plan:
  """The batches of a training run.

  Every epoch has each usable image once, in batches of one orientation, shuffled. What is left of an
  orientation is filled up to a whole batch by going round again, so that epoch has some of its images twice
  (as mmdetection does), or more often if an orientation has fewer images than a batch.

  Args:
    factors: how often an epoch has each image, on average, instead of once; see `draw_counts`.
  """

  def __init__(
    self, index: Index, *, batch_size: int, seed: int, factors: Float[np.ndarray, " n"] | None = None
  ):
    usable = np.flatnonzero(index.usable)
    portrait = index.heights[usable] > index.widths[usable]
    self._groups = [(p, usable[portrait == p]) for p in (False, True) if (portrait == p).any()]
    self.batch_size = batch_size
    self.seed = seed
    self._units = None if factors is None else in_units(factors)
    images = [len(g) if self._units is None else most_images(self._units[g]) for _, g in self._groups]
    self._lengths = [-(-number // batch_size) for number in images]  # in batches
    self.steps_per_epoch = sum(self._lengths)
    self._epochs: dict[int, list[PlannedBatch]] = {}
    again = self.steps_per_epoch * batch_size - sum(images)
    logging.info(
      f"{(~portrait).sum()} landscape and {portrait.sum()} portrait images in {self.steps_per_epoch} batches "
      f"of {batch_size} an epoch; {again} images again to fill them"
    )

  def batch(self, step: int) -> PlannedBatch:
    """The batch of a step, counted from 0."""
    epoch, place = divmod(step, self.steps_per_epoch)
    # Threads that read ahead are in another epoch than the loop: both are kept, and the dict is replaced,
    # never changed, so that no thread sees another's epoch in the place of its own.
    epochs = self._epochs
    if epoch not in epochs:
      epochs = {e: b for e, b in epochs.items() if abs(e - epoch) == 1} | {epoch: self._batches(epoch)}
      self._epochs = epochs
    return epochs[epoch][place]

  def _batches(self, epoch: int) -> list[PlannedBatch]:
    rng = np.random.default_rng([self.seed, epoch])
    batches = []
    for (portrait, records), number in zip(self._groups, self._lengths, strict=True):
      order = rng.permutation(records)
      if self._units is not None:  # shuffled before, so that it is chance who shares a count, and after
        order = rng.permutation(np.repeat(order, draw_counts(self._units[order], rng)))
      order = np.resize(order, number * self.batch_size)
      again = np.zeros_like(order) if self._units is None else occurrences(order)
      rows = (a.reshape(number, self.batch_size) for a in (order, again))
      batches += [PlannedBatch(row, epoch, portrait, a) for row, a in zip(*rows, strict=True)]
    return [batches[i] for i in rng.permutation(len(batches))]


def images_per_step(train: ConfigDict) -> int:
  """Images of a step's whole batch, by config.train."""
  return train.batch_size * train.accumulate


def make_plan(source: Source, config: ConfigDict, *, batch_size: int | None = None) -> Plan:
  """The batches to train on, each a whole step's (or of `batch_size`); refuses data that do not fit."""
  keep, a = TrainingFilter.of(config.data), source.annotations
  index = scan(source, keep)
  check_max_boxes(index, config.data.max_boxes)
  log_shrunk(index.heights, index.widths, config.data)
  good, threshold = keep.boxes(corners(a.bbox), a.crowd, a.area), config.data.repeat_threshold
  factors = repeat_factors(source, good, index.usable, threshold) if threshold else None
  batch_size = batch_size or images_per_step(config.train)
  return Plan(index, batch_size=batch_size, seed=config.seed, factors=factors)


def check_max_boxes(index: Index, max_boxes: int) -> None:
  """Raises a UserError if an image to train on has more boxes than a batch has rows for."""
  needed = int(index.num_boxes[index.usable].max())
  if needed > max_boxes:
    images = int((index.num_boxes[index.usable] > max_boxes).sum())
    raise UserError(
      f"config.data.max_boxes={max_boxes} is too small: {images} images have more boxes, up to {needed}; "
      f"give --config.data.max_boxes={needed} or more"
    )


def log_shrunk(heights: Int[np.ndarray, " n"], widths: Int[np.ndarray, " n"], data: ConfigDict) -> None:
  """Logs how many images exceed their canvas and are shrunk by the host, with a warning if detail is lost."""
  canvas, limits = tuple(data.canvas), (data.short, data.long)
  short, long = np.minimum(heights, widths), np.maximum(heights, widths)
  number = int(((short > canvas[0]) | (long > canvas[1])).sum())
  if number and (canvas[0] < limits[0] or canvas[1] < limits[1]):
    logging.warning(
      f"{number} of {len(short)} images are shrunk to data.canvas={canvas} and then enlarged to the "
      f"network's {limits}: detail is lost; set --config.data.canvas=({limits[0]},{limits[1]})"
    )
  elif number:
    logging.info(f"{number} of {len(short)} images exceed data.canvas={canvas} and are shrunk to it first")
