"""Host side of the input: decoding the images of a `Plan` into padded uint8 canvases.

The host only decodes; resizing, flipping and normalising happen on the device (`preprocess`). Each process
reads only its rows of every global batch.

Memory: threads read AHEAD batches of decoded images ahead, and up to two stacked batches wait for the device;
worker processes hold up to four stacked batches each, and two more wait, all in shared memory (/dev/shm). A
stacked batch has short x long x 3 bytes an image. Its memory is used again as soon as nothing refers to the
batch: fresh pages cost more than the copy.
"""

import math
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import grain
import numpy as np
from absl import logging
from grain.experimental import ThreadPrefetchIterDataset
from jaxtyping import UInt8
from ml_collections import ConfigDict

from iou_det.data.images import Unreadable, depth_of, open_picture, size_problem
from iou_det.data.plan import Plan, TrainingFilter, log_shrunk
from iou_det.data.source import Record, Source
from iou_det.errors import UserError
from iou_det.storage import shared_memory

AHEAD = 3  # batches
EPOCHS = 1 << 20  # more than any run has
OR_DROP = "or drop it with `iou-det prepare --skip_bad` or --config.data.skip_bad=True"

# image uint8 [b, h, w, 3] RGB, top left in its canvas; image_size, original_size int32 [b, 2]: height, width
# in the canvas and as stored; boxes float32 [b, max_boxes, 4]: x1, y1, x2, y2 in canvas pixels; labels int32
# and valid bool [b, max_boxes]; index (of the record), epoch int32 [b] (plus EPOCHS for each time that repeat
# factors had the record before in the epoch, for other random numbers); seed int32 [b] (config.seed, for the
# augmentation; 0 in evaluations; as a constant of the step it would make each seed compile anew); example
# bool [b]: False for fillers.
HostBatch = dict[str, np.ndarray]


class Example(NamedTuple):
  """A row of a batch before it is loaded."""

  record: int
  epoch: int  # as in `HostBatch`
  portrait: bool
  real: bool  # False: fills up the last batch of an evaluation


@dataclass(frozen=True)
class TrainRows:
  """One process's rows of the batches of some steps, by random access, for Grain."""

  plan: Plan
  steps: range
  rows: range

  def __len__(self) -> int:
    return len(self.steps) * len(self.rows)

  def __getitem__(self, i: int) -> Example:
    step, row = divmod(i, len(self.rows))
    batch = self.plan.batch(self.steps[step])
    row = self.rows[row]
    epoch = batch.epoch + EPOCHS * int(batch.again[row])
    return Example(int(batch.records[row]), epoch, batch.portrait, True)


@dataclass(frozen=True)
class Loader:
  """Reads and decodes one example; `Stack` puts its image into the canvas."""

  source: Source
  canvas: tuple[int, int]  # short and long side, pixels
  max_boxes: int
  keep: TrainingFilter | None  # None: no boxes are needed
  seed: int = 0  # of the augmentation

  def __call__(self, example: Example) -> dict[str, np.ndarray]:
    record = self.source[example.record]
    row = picture_row(decode_image(record), self.canvas, example.portrait, self.max_boxes)
    if self.keep is not None:
      chosen = self.keep.boxes(record.boxes, record.crowd, record.area)
      number = int(chosen.sum())
      height, width = row["image_size"]
      scale = np.array([width / record.width, height / record.height] * 2)
      row["boxes"][:number] = record.boxes[chosen] * scale
      row["labels"][:number] = record.labels[chosen]
      row["valid"][:number] = True
    return row | {
      "index": np.array(example.record, np.int32),
      "epoch": np.array(example.epoch, np.int32),
      "seed": np.array(self.seed, np.int32),
      "example": np.array(example.real),
    }


def picture_row(
  image: UInt8[np.ndarray, "h w 3"], canvas: tuple[int, int], portrait: bool, max_boxes: int = 1
) -> dict[str, np.ndarray]:
  """A row for `Stack` without boxes: the image, shrunk if it exceeds the canvas (short and long side)."""
  fitted = fit(image, canvas[::-1] if portrait else canvas)
  return {
    "image": fitted,
    "image_size": np.array(fitted.shape[:2], np.int32),
    "original_size": np.array(image.shape[:2], np.int32),
    "boxes": np.zeros((max_boxes, 4), np.float32),
    "labels": np.zeros(max_boxes, np.int32),
    "valid": np.zeros(max_boxes, bool),
    "portrait": np.array(portrait),
  }


class Stack:
  """Makes a batch of loaded examples: images top left in canvases (short, long), zeros beside them."""

  def __init__(self, canvas: tuple[int, int]):
    self.canvas = canvas
    self.free: list[np.ndarray] = []  # memory of batches that nothing refers to any more

  def __call__(self, rows: Sequence[dict[str, np.ndarray]]) -> HostBatch:
    canvas_size = self.canvas[::-1] if rows[0]["portrait"] else self.canvas
    shape = (len(rows), *canvas_size, 3)
    images = self.memory(math.prod(shape)).reshape(shape)
    for canvas, row in zip(images, rows, strict=True):
      height, width = row["image_size"]
      canvas[:height, :width] = row["image"]
      canvas[:height, width:] = 0
      canvas[height:] = 0
    names = [name for name in rows[0] if name not in ("image", "portrait")]
    return {"image": images} | {name: np.stack([row[name] for row in rows]) for name in names}

  def memory(self, size: int) -> UInt8[np.ndarray, " size"]:
    """Bytes with any content; they come back when the last array that shows a part of them is gone."""
    # Another thread may be giving memory back, so nothing is asked before it is taken.
    try:
      memory = self.free.pop()
    except IndexError:
      memory = np.empty(size, np.uint8)
    # Through a memoryview: views of `shown` keep `shown` alive, while views of `memory` would keep only that.
    shown = np.frombuffer(memory.data, np.uint8)
    weakref.finalize(shown, self.free.append, memory).atexit = False
    return shown


def decode_image(record: Record) -> UInt8[np.ndarray, "h w 3"]:
  """RGB pixels, as `Record.exif` says; they must be all there and of the record's size."""
  name = f"image {record.file_name} (id {record.image_id})"
  size = (record.height, record.width)
  try:
    picture = open_picture(record.image, record.exif, size)
  except Unreadable as error:
    raise UserError(f"{name}: {error}; mend it, {OR_DROP}") from None
  if problem := size_problem(picture, record.exif, size):
    raise UserError(f"{name} {problem}; correct the annotation file, {OR_DROP}")
  if picture.turned:
    logging.log_first_n(logging.INFO, "%s is turned by its EXIF orientation; others are not named", 1, name)
  if picture.largest:
    what = "%s has more than 8 bits, values up to %d: taken as %d bits; others are not named"
    logging.log_first_n(logging.INFO, what, 1, name, picture.largest, depth_of(picture.largest))
  if picture.warning:
    what = "%s: the decoder says %r, and takes it; others are not named"
    logging.log_first_n(logging.WARNING, what, 1, name, picture.warning)
  return picture.pixels


def fit(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
  """The image, shrunk (area interpolation, keeping the ratio) if it exceeds (height, width)."""
  factor = min(size[0] / image.shape[0], size[1] / image.shape[1])
  if factor >= 1:
    return image
  sides = zip(image.shape[:2], size, strict=True)
  height, width = (max(1, min(round(side * factor), room)) for side, room in sides)
  return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def train_batches(
  source: Source, plan: Plan, data: ConfigDict, steps: range, share: tuple[int, int]
) -> Iterator[tuple[HostBatch, bool]]:
  """Batches of the steps, in order: this process's rows, and whether portrait.

  An image that cannot be decoded or is not of the annotated size is a UserError of the iterator.

  Args:
    data: the config's section; images larger than its `canvas` (short and long side in pixels) are shrunk.
    share: (part, parts), see `iou_det.parallel.input_share`.
  """
  rows = part_rows(plan.batch_size, *share)
  load = Loader(source, tuple(data.canvas), data.max_boxes, TrainingFilter.of(data), plan.seed)
  batches = run(TrainRows(plan, steps, rows), load, len(rows), data.threads, data.workers)
  return zip(batches, (plan.batch(step).portrait for step in steps), strict=True)


def eval_batches(
  source: Source,
  data: ConfigDict,
  batch_size: int,
  share: tuple[int, int],
  boxes: tuple[TrainingFilter | None, int] = (None, 1),
) -> Iterator[tuple[HostBatch, bool]]:
  """Every record once over all processes, landscape before portrait; otherwise like `train_batches`.

  The last batch of an orientation is filled up with rows that have `example` False.

  Args:
    boxes: which boxes the rows have, and how many at the most; (None, 1): none.
  """
  rows = part_rows(batch_size, *share)
  sizes = source.annotations
  log_shrunk(sizes.height, sizes.width, data)
  examples, orientations = [], []
  for portrait in (False, True):
    records = np.flatnonzero((sizes.height > sizes.width) == portrait)
    for start in range(0, len(records), batch_size):
      here = records[start : start + batch_size]
      examples += [Example(int(here[r if r < len(here) else 0]), 0, portrait, r < len(here)) for r in rows]
      orientations.append(portrait)
  keep, max_boxes = boxes
  load = Loader(source, tuple(data.canvas), max_boxes, keep)
  return zip(run(examples, load, len(rows), data.threads, data.workers), orientations, strict=True)


def part_rows(batch_size: int, part: int, parts: int) -> range:
  """Rows of a global batch that a process loads."""
  if batch_size % parts:
    raise UserError(f"batch_size={batch_size} is not divisible by the {parts} processes")
  size = batch_size // parts
  return range(part * size, (part + 1) * size)


def run(
  examples: Sequence[Example] | TrainRows, load: Loader, batch_size: int, threads: int, workers: int
) -> Iterator[HostBatch]:
  """Loads the examples in order and stacks them."""
  dataset = grain.MapDataset.source(examples).map(load)
  stack = Stack(load.canvas)
  if workers:
    # Batched before the split over the workers, which hand out elements in turn: so they are whole batches.
    no_threads = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    whole = dataset.batch(batch_size, batch_fn=stack).to_iter_dataset(no_threads)
    return of_processes(
      lambda: whole.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), init_process)
    )
  decode_in_one_thread()
  threads = number_of_threads(threads)
  # Threads share the images of a batch, not whole batches: that keeps what is read ahead small.
  ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(AHEAD * batch_size, threads))
  stacked = dataset.to_iter_dataset(ahead).batch(batch_size, batch_fn=stack)
  return iter(ThreadPrefetchIterDataset(stacked, prefetch_buffer_size=1))


def of_processes(batches: Callable[[], Iterable[HostBatch]]) -> Iterator[HostBatch]:
  """Batches of worker processes, which come through shared memory."""
  with shared_memory("config.data.workers", " or --config.data.workers=0"):
    yield from batches()


def number_of_threads(threads: int) -> int:
  """What `config.data.threads` stands for."""
  # Two may wait for the disk. With many more, images go cold in the cache: 16 on 2 cores took 6% more time.
  return threads or len(os.sched_getaffinity(0)) + 2


def decode_in_one_thread() -> None:
  """OpenCV decodes and shrinks each image in one thread: the images are what is done in parallel."""
  cv2.setNumThreads(0)


def init_process(index: int, count: int) -> None:
  """A worker process: Ctrl-C, which a terminal sends to all, is the parent's to act on; it ends with that."""
  decode_in_one_thread()
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
  """Grain's workers would wait for ever for one that was killed, with memory in /dev/shm."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)
