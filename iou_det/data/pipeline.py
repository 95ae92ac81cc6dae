"""Host side of the input: which records form a batch, and decoding them into padded uint8 canvases.

The host only decodes; resizing, flipping and normalising happen on the device (`preprocess`). The order is
a pure function of (seed, step), so a run resumes at any step, and neither the number of hosts nor of
threads or worker processes changes a batch. Each process reads only its rows of every global batch.

Memory: about 3 batches of canvases are read ahead by threads; each worker process holds one more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import grain
import numpy as np
from absl import logging
from jaxtyping import Int, UInt8

from iou_det.data import image_files
from iou_det.data.records import Index, Record, Source, TrainingFilter
from iou_det.errors import UserError

AHEAD = 3  # batches


class PlannedBatch(NamedTuple):
  """A global batch: all landscape (width >= height) or all portrait."""

  records: Int[np.ndarray, " batch"]
  epoch: int
  portrait: bool


class Plan:
  """The batches of a training run.

  Every epoch has each usable image once, in batches of one orientation, shuffled. What is left of an
  orientation is filled up to a whole batch with other images of that orientation, which that epoch then has
  twice (as mmdetection does).

  Args:
    index: of the source, from `scan`.
    batch_size: images in a global batch.
    seed: of the order.
  """

  def __init__(self, index: Index, *, batch_size: int, seed: int):
    usable = np.flatnonzero(index.usable)
    portrait = index.heights[usable] > index.widths[usable]
    self._groups = [(p, usable[portrait == p]) for p in (False, True) if (portrait == p).any()]
    self.batch_size = batch_size
    self.seed = seed
    self.steps_per_epoch = sum(-(-len(records) // batch_size) for _, records in self._groups)
    self._epoch: tuple[int, list[PlannedBatch]] = (-1, [])
    again = self.steps_per_epoch * batch_size - len(usable)
    logging.info(
      "%d landscape and %d portrait images in %d batches of %d an epoch; %d images twice to fill them",
      (~portrait).sum(), portrait.sum(), self.steps_per_epoch, batch_size, again)  # fmt: skip

  def batch(self, step: int) -> PlannedBatch:
    """The batch of a step, counted from 0."""
    epoch, place = divmod(step, self.steps_per_epoch)
    if self._epoch[0] != epoch:
      self._epoch = (epoch, self._batches(epoch))
    return self._epoch[1][place]

  def _batches(self, epoch: int) -> list[PlannedBatch]:
    rng = np.random.default_rng([self.seed, epoch])
    batches = []
    for portrait, records in self._groups:
      number = -(-len(records) // self.batch_size)
      order = np.resize(rng.permutation(records), number * self.batch_size)
      batches += [PlannedBatch(row, epoch, portrait) for row in order.reshape(number, self.batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def check_max_boxes(index: Index, max_boxes: int) -> None:
  """Raises a UserError if an image to train on has more boxes than a batch has rows for."""
  needed = int(index.num_boxes[index.usable].max())
  if needed > max_boxes:
    images = int((index.num_boxes[index.usable] > max_boxes).sum())
    raise UserError(
      f"config.data.max_boxes={max_boxes} is too small: {images} images have more boxes, up to {needed}; "
      f"set it to {needed} or more"
    )


def log_shrunk(
  heights: Int[np.ndarray, " n"], widths: Int[np.ndarray, " n"], canvas: tuple[int, int]
) -> None:
  """Logs how many images exceed their canvas, so that the host shrinks them before anything else."""
  short, long = np.minimum(heights, widths), np.maximum(heights, widths)
  number = ((short > canvas[0]) | (long > canvas[1])).sum()
  if number:
    logging.info(
      "%d of %d images exceed the canvas of %dx%d pixels (data.canvas) and are shrunk to it first",
      number,
      len(short),
      *canvas,
    )


class Example(NamedTuple):
  """A row of a batch before it is loaded."""

  record: int
  epoch: int
  portrait: bool
  real: bool  # False: fills up the last batch of an evaluation


@dataclass(frozen=True)
class TrainRows:
  """One process's rows of the batches start_step to stop_step, by random access, for Grain."""

  plan: Plan
  start_step: int
  stop_step: int
  rows: range

  def __len__(self) -> int:
    return (self.stop_step - self.start_step) * len(self.rows)

  def __getitem__(self, i: int) -> Example:
    step, row = divmod(i, len(self.rows))
    batch = self.plan.batch(self.start_step + step)
    return Example(int(batch.records[self.rows[row]]), batch.epoch, batch.portrait, True)


@dataclass(frozen=True)
class Loader:
  """Reads and decodes one example into its canvas."""

  source: Source
  canvas: tuple[int, int]  # short and long side, pixels
  max_boxes: int
  keep: TrainingFilter | None  # None: no boxes are needed

  def __call__(self, example: Example) -> dict[str, np.ndarray]:
    record = self.source[example.record]
    canvas_size = self.canvas[::-1] if example.portrait else self.canvas
    image = fit(decode_image(record), canvas_size)
    height, width = image.shape[:2]
    canvas = np.zeros((*canvas_size, 3), np.uint8)
    canvas[:height, :width] = image

    boxes = np.zeros((self.max_boxes, 4), np.float32)
    labels = np.zeros(self.max_boxes, np.int32)
    valid = np.zeros(self.max_boxes, bool)
    if self.keep is not None:
      chosen = self.keep.boxes(record.boxes, record.crowd, record.area)
      number = int(chosen.sum())
      scale = np.array([width / record.width, height / record.height] * 2)
      boxes[:number] = record.boxes[chosen] * scale
      labels[:number] = record.labels[chosen]
      valid[:number] = True
    return {
      "image": canvas, "image_size": np.array([height, width], np.int32),
      "original_size": np.array([record.height, record.width], np.int32), "boxes": boxes, "labels": labels,
      "valid": valid, "index": np.array(example.record, np.int32), "epoch": np.array(example.epoch, np.int32),
      "example": np.array(example.real),
    }  # fmt: skip


def decode_image(record: Record) -> UInt8[np.ndarray, "h w 3"]:
  """RGB pixels as stored.

  Raises:
    UserError: if they cannot be decoded or are not of the record's size.
  """
  image = image_files.decode(record.image)
  name = f"image {record.file_name} (id {record.image_id})"
  if image is None:
    raise UserError(f"{name} cannot be decoded; mend it, or drop it with `iou-det prepare --skip_bad`")
  if image.shape[:2] != (record.height, record.width):
    raise UserError(
      f"{name} has {image.shape[1]}x{image.shape[0]} pixels, its annotation says "
      f"{record.width}x{record.height}; correct the annotation file"
    )
  return np.ascontiguousarray(image[..., ::-1])


def fit(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
  """The image, shrunk (area interpolation, keeping the ratio) if it exceeds (height, width)."""
  factor = min(size[0] / image.shape[0], size[1] / image.shape[1])
  if factor >= 1:
    return image
  height, width = (max(1, int(side * factor + 1e-6)) for side in image.shape[:2])
  return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def train_batches(
  source: Source,
  plan: Plan,
  *,
  start_step: int,
  stop_step: int,
  canvas: tuple[int, int],
  max_boxes: int,
  keep: TrainingFilter,
  process_index: int,
  process_count: int,
  threads: int,
  workers: int,
) -> Iterator[tuple[dict[str, np.ndarray], bool]]:
  """Batches of the steps start_step to stop_step - 1, in order: this process's rows, and whether portrait.

  Args:
    canvas: short and long side in pixels; larger images are shrunk to it.
    max_boxes: rows of boxes per image; see `check_max_boxes`.
    keep: which boxes to train on.
    threads: for reading and decoding.
    workers: processes for it; 0: threads of this process only.

  Yields:
    (batch, portrait). batch: image uint8 [b, h, w, 3] RGB, top left in its canvas; image_size, original_size
    int32 [b, 2] (height, width); boxes float32 [b, max_boxes, 4] (x1, y1, x2, y2 in canvas pixels), labels
    int32 and valid bool [b, max_boxes]; index, epoch int32 [b]; example bool [b] (all True).
  """
  rows = process_rows(plan.batch_size, process_index, process_count)
  load = Loader(source, canvas, max_boxes, keep)
  batches = run(TrainRows(plan, start_step, stop_step, rows), load, len(rows), threads, workers)
  for step, batch in enumerate(batches, start_step):
    yield batch, plan.batch(step).portrait


def eval_batches(
  source: Source,
  *,
  batch_size: int,
  canvas: tuple[int, int],
  process_index: int,
  process_count: int,
  threads: int,
  workers: int,
) -> Iterator[tuple[dict[str, np.ndarray], bool]]:
  """Every record once over all processes, landscape before portrait; like `train_batches`, without boxes.

  The last batch of an orientation is filled up with rows that have `example` False.
  """
  rows = process_rows(batch_size, process_index, process_count)
  sizes = source.annotations()
  portrait = sizes.height > sizes.width
  log_shrunk(sizes.height, sizes.width, canvas)
  load = Loader(source, canvas, 1, None)
  for orientation in (False, True):
    records = np.flatnonzero(portrait == orientation)
    examples = []
    for start in range(0, len(records), batch_size):
      for row in rows:
        real = start + row < len(records)
        record = records[start + row] if real else records[start]
        examples.append(Example(int(record), 0, orientation, real))
    for batch in run(examples, load, len(rows), threads, workers):
      yield batch, orientation


def process_rows(batch_size: int, process_index: int, process_count: int) -> range:
  """Rows of a global batch that a process loads."""
  if batch_size % process_count:
    raise UserError(f"batch_size={batch_size} is not divisible by the {process_count} processes")
  size = batch_size // process_count
  return range(process_index * size, (process_index + 1) * size)


def run(
  examples: Sequence[Example] | TrainRows, load: Loader, batch_size: int, threads: int, workers: int
) -> Iterator[dict[str, np.ndarray]]:
  """Loads the examples in order and stacks them."""
  cv2.setNumThreads(0)  # the images are decoded in parallel, not the rows of one
  ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD * batch_size)
  dataset = grain.MapDataset.source(examples).map(load).batch(batch_size)
  batches = dataset.to_iter_dataset(ahead)
  if workers:
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
  return iter(batches)
