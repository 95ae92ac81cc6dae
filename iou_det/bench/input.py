"""From JPEG bytes to ready batches: our pipeline beside bare decoding and beside the usual pipeline.

All decode the same images in the same order on the same cores with OpenCV. A sample leaves out the first
batches and stops before the last ones: what a pipeline has ready when the clock starts it also has when the
clock stops, so nothing is counted that was done before. Pipelines are sampled in turn.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import grain
import numpy as np
import psutil
from ml_collections import ConfigDict

from iou_det.bench.measure import Line, Measurement, Timing, print_line, versions
from iou_det.config import input_size
from iou_det.data import Reading, open_dataset, pipeline
from iou_det.data import images as image_files
from iou_det.data.pipeline import AHEAD
from iou_det.data.plan import images_per_step, make_plan
from iou_det.data.source import Source

EDGE = AHEAD + 3  # batches before the clock starts and after it stops: more than a pipeline has ready
BARE, OURS, USUAL = "decode alone", "ready batches", "decode + resize + float normalise"


def bench_input(config: ConfigDict, images: int, *, repeats: int, out: Path | None) -> dict[str, Line]:
  """Reports each pipeline, in samples of `images` at least, and each ratio of interest; lines by name."""
  d, batch_size = config.data, images_per_step(config.train)
  timed = max(1, -(-images // batch_size))
  reading = Measured(config, EDGE + timed + EDGE)
  workers = d.workers or len(os.sched_getaffinity(0))
  bare, threaded, other = (f"{name}, {reading.threads} threads" for name in (BARE, OURS, USUAL))
  processes = f"{OURS}, {workers} processes"
  readers: dict[str, Callable[[], Iterator[Any]]] = {
    bare: reading.decoded,
    threaded: partial(reading.ours, 0),
    processes: partial(reading.ours, workers),
    other: reading.usual,
  }
  # First of all: memory that an earlier pipeline gave back to Python would be no addition.
  sizes = {name: memory_and_bytes(read()) for name, read in readers.items() if name != bare}
  samples: dict[str, list[float]] = {name: [] for name in readers}
  for _ in range(repeats):
    for name, read in readers.items():
      samples[name].append(seconds_per_batch(read(), timed))

  rows = {}
  shapes: dict[str, Any] = {"canvas": list(d.canvas), "network_input": list(input_size(config, False))}
  shapes["file_bytes"] = reading.mean_file_bytes()
  same = {"batch": batch_size, "shapes": shapes, "versions": versions("grain", "opencv-python-headless")}
  for name in readers:
    by = {BARE: "opencv", OURS: "iou-det", USUAL: "usual"}[name.split(",")[0]]
    memory, nbytes = sizes.get(name, (None, None))
    own = {"bytes_to_device_per_image": nbytes and nbytes / batch_size, "host_memory_bytes": memory}
    timing = Timing(tuple(samples[name]), warmup=EDGE, calls=timed)
    rows[name] = Measurement("input", name, by, timing, fields=same | own).print(out)
  for a, b in ((threaded, bare), (processes, bare), (threaded, other), (threaded, processes)):
    ratio = rows[b]["seconds_median"] / rows[a]["seconds_median"]
    rows[f"{a} / {b}"] = {"bench": "input", "what": "images_per_second", "by": f"{a} / {b}", "ratio": ratio}
    print_line(rows[f"{a} / {b}"], out)
  return rows


class Measured:
  """What every pipeline reads: so many batches of training, epoch after epoch."""

  def __init__(self, config: ConfigDict, steps: int):
    d = config.data
    self.config, self.steps, self.threads = config, steps, pipeline.number_of_threads(d.threads)
    self.source = open_dataset(d.path, d.train_split, Reading.of(d))
    self.plan = make_plan(self.source, config)

  def ours(self, workers: int) -> Iterator[pipeline.HostBatch]:
    """Ready batches of our pipeline; by threads if there are no workers."""
    data = ConfigDict(self.config.data.to_dict() | {"threads": self.threads, "workers": workers})
    batches = pipeline.train_batches(self.source, self.plan, data, range(self.steps), (0, 1))
    return (batch for batch, _ in batches)

  def decoded(self) -> Iterator[int]:
    """Decodes the images from memory and forgets them; yields once a batch."""
    pipeline.decode_in_one_thread()
    records = [[int(i) for i in self.plan.batch(step).records] for step in range(self.steps)]
    encoded = {i: self.source[i].image for i in set(itertools.chain(*records))}

    decode = lambda record: image_files.open_picture(encoded[record]).pixels.size
    with ThreadPoolExecutor(self.threads) as pool:
      # The pool takes all that it is given at once: it gets what is timed when it is asked for.
      for part in (records[:EDGE], records[EDGE:-EDGE], records[-EDGE:]):
        for number, good in enumerate(pool.map(decode, itertools.chain(*part)), 1):
          assert good, "an image cannot be decoded"
          if number % self.plan.batch_size == 0:
            yield number

  def usual(self) -> Iterator[np.ndarray]:
    """Batches of `UsualLoader`, with as many threads and images ahead as our pipeline."""
    pipeline.decode_in_one_thread()
    size, load = self.plan.batch_size, UsualLoader(self.source, self.config)
    rows = pipeline.TrainRows(self.plan, range(self.steps), range(size))
    ahead = max(AHEAD * size, self.threads)
    options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(rows).map(load).to_iter_dataset(options).batch(size))

  def mean_file_bytes(self) -> float:
    """Of the encoded images of an epoch."""
    batches = (self.plan.batch(step) for step in range(self.plan.steps_per_epoch))
    some = sorted({int(i) for batch in batches for i in batch.records})[:500]
    return float(np.mean([len(self.source[i].image) for i in some]))


@dataclass(frozen=True)
class UsualLoader:
  """Decodes, resizes to the network's size, normalises to float32 and pads, all on the host."""

  source: Source
  config: ConfigDict

  def __call__(self, example: pipeline.Example) -> np.ndarray:
    d = self.config.data
    image = pipeline.decode_image(self.source[example.record])
    height, width = image.shape[:2]
    scale = min(d.short / min(height, width), d.long / max(height, width))
    image = cv2.resize(image, (round(width * scale), round(height * scale)))
    padded = np.zeros((*input_size(self.config, example.portrait), 3), np.float32)
    padded[: image.shape[0], : image.shape[1]] = (image - np.float32(d.mean)) / np.float32(d.std)
    return padded


def seconds_per_batch(batches: Iterator[Any], timed: int) -> float:
  """Reads all of a pipeline's batches; the first and last EDGE are not timed."""
  count = lambda some: sum(1 for _ in some)
  before = count(itertools.islice(batches, EDGE))
  start = time.perf_counter()
  during = count(itertools.islice(batches, timed))
  seconds = time.perf_counter() - start
  number = (before, during, count(batches))
  assert number == (EDGE, timed, EDGE), f"{number} batches in place of {(EDGE, timed, EDGE)}"
  return seconds / timed


def memory_and_bytes(batches: Iterator[Any]) -> tuple[int, int]:
  """What a pipeline adds to this process and its children at most, seen at each batch; bytes of a batch."""
  before, most, nbytes = resident_bytes(), 0, 0
  for batch in batches:
    most = max(most, resident_bytes() - before)
    nbytes = sum(x.nbytes for x in batch.values()) if isinstance(batch, dict) else batch.nbytes
  return most, nbytes


def resident_bytes() -> int:
  """Physical memory of this process and its descendants; what n of them share counts 1/n in each."""
  total, this = 0, psutil.Process()
  for process in (this, *this.children(recursive=True)):
    with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
      total += process.memory_full_info().pss
  return total
