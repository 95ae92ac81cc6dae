"""From JPEG bytes to ready batches: our pipeline beside bare decoding and beside the usual pipeline.

All decode the same images in the same order on the same cores with OpenCV. A sample leaves out the first
batches and stops before the last ones: what a pipeline has ready when the clock starts it also has when the
clock stops, so nothing is counted that was done before. Pipelines are sampled in turn.
"""

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
from ml_collections import ConfigDict

from iou_det.bench.measure import Timing, print_line, report
from iou_det.config import input_size
from iou_det.data import images as image_files
from iou_det.data import open_dataset
from iou_det.data.pipeline import (
  AHEAD,
  Example,
  Plan,
  TrainingFilter,
  TrainRows,
  check_max_boxes,
  decode_image,
  init_worker,
  number_of_threads,
  scan,
  train_batches,
)
from iou_det.data.source import Source

EDGE = AHEAD + 3  # batches before the clock starts and after it stops: more than a pipeline has ready
BARE, OURS, USUAL = "decode alone", "ready batches", "decode + resize + float normalise"


def bench_input(
  config: ConfigDict, images: int, *, repeats: int, out: str | Path | None
) -> dict[str, dict[str, Any]]:
  """Reports a line for each pipeline and one for each ratio of interest; returns them by name.

  Args:
    images: in a sample, at least; the batches of training are read, epoch after epoch.
  """
  d, batch_size = config.data, config.train.batch_size
  source = open_dataset(d.path, d.train_split)
  keep = TrainingFilter(min_image_side=d.min_image_side, min_box_side=d.min_box_side, keep_empty=d.keep_empty)
  index = scan(source, keep)
  check_max_boxes(index, d.max_boxes)
  plan = Plan(index, batch_size=batch_size, seed=config.seed)
  timed = max(1, -(-images // batch_size))
  steps = EDGE + timed + EDGE
  threads, workers = number_of_threads(d.threads), d.workers or len(os.sched_getaffinity(0))

  def ours(workers: int) -> Iterator[Any]:
    batches = train_batches(
      source, plan, start_step=0, stop_step=steps, canvas=tuple(d.canvas), max_boxes=d.max_boxes, keep=keep,
      part=0, parts=1, threads=threads, workers=workers,
    )  # fmt: skip
    return (batch for batch, _ in batches)

  pipelines: dict[str, Callable[[], Iterator[Any]]] = {
    f"{BARE}, {threads} threads": partial(decoded, source, plan, steps, threads),
    f"{OURS}, {threads} threads": partial(ours, 0),
    f"{OURS}, {workers} processes": partial(ours, workers),
    f"{USUAL}, {threads} threads": partial(usual, config, source, plan, steps, threads),
  }
  # First of all: memory that an earlier pipeline gave back to Python would be no addition.
  sizes = {name: memory_and_bytes(p()) for name, p in pipelines.items() if not name.startswith(BARE)}
  samples: dict[str, list[float]] = {name: [] for name in pipelines}
  for _ in range(repeats):
    for name, pipeline in pipelines.items():
      samples[name].append(seconds_per_batch(pipeline(), timed))
  timings = {name: Timing(tuple(s), warmup=EDGE, calls=timed) for name, s in samples.items()}

  rows = {}
  for name in pipelines:
    by = {BARE: "opencv", OURS: "iou-det", USUAL: "usual"}[name.split(",")[0]]
    memory, nbytes = sizes.get(name, (None, None))
    rows[name] = report(
      "input", name, by=by, timing=timings[name], images=batch_size, out=out,
      more_versions=("grain", "opencv-python-headless"),
      shapes={"canvas": list(d.canvas), "network_input": list(input_size(config, False)),
              "file_bytes": mean_file_bytes(source, plan)},
      bytes_to_device_per_image=nbytes and nbytes / batch_size, host_memory_bytes=memory,
    )  # fmt: skip
  bare, threaded, processes, other = pipelines
  for ours_name, theirs in ((threaded, bare), (processes, bare), (threaded, other), (threaded, processes)):
    ratio = {
      "bench": "input", "what": "images_per_second", "by": f"{ours_name} / {theirs}",
      "ratio": timings[theirs].median / timings[ours_name].median,
    }  # fmt: skip
    print_line(ratio, out)
    rows[f"{ours_name} / {theirs}"] = ratio
  return rows


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


def decoded(source: Source, plan: Plan, steps: int, threads: int) -> Iterator[int]:
  """Decodes the images of the steps from memory and forgets them; yields once a batch."""
  init_worker(0, 1)
  records = [[int(i) for i in plan.batch(step).records] for step in range(steps)]
  encoded = {i: source[i].image for i in set(itertools.chain(*records))}

  def decode(record: int) -> bool:
    return image_files.decode(encoded[record]) is not None

  with ThreadPoolExecutor(threads) as pool:
    # The pool takes all that it is given at once: it gets what is timed when it is asked for.
    for part in (records[:EDGE], records[EDGE:-EDGE], records[-EDGE:]):
      for number, good in enumerate(pool.map(decode, itertools.chain(*part)), 1):
        assert good, "an image cannot be decoded"
        if number % plan.batch_size == 0:
          yield number


@dataclass(frozen=True)
class UsualLoader:
  """Decodes, resizes to the network's size, normalises to float32 and pads, all on the host."""

  source: Source
  config: ConfigDict

  def __call__(self, example: Example) -> np.ndarray:
    d = self.config.data
    image = decode_image(self.source[example.record])
    height, width = image.shape[:2]
    scale = min(d.short / min(height, width), d.long / max(height, width))
    image = cv2.resize(image, (round(width * scale), round(height * scale)))
    padded = np.zeros((*input_size(self.config, example.portrait), 3), np.float32)
    padded[: image.shape[0], : image.shape[1]] = (image - np.float32(d.mean)) / np.float32(d.std)
    return padded


def usual(
  config: ConfigDict, source: Source, plan: Plan, steps: int, threads: int
) -> Iterator[np.ndarray]:
  """Batches of `UsualLoader`, with as many threads and images ahead as our pipeline."""
  init_worker(0, 1)
  rows = TrainRows(plan, 0, steps, range(plan.batch_size))
  ahead = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(AHEAD * plan.batch_size, threads)
  )  # fmt: skip
  loaded = grain.MapDataset.source(rows).map(UsualLoader(source, config)).to_iter_dataset(ahead)
  return iter(loaded.batch(plan.batch_size))


def mean_file_bytes(source: Source, plan: Plan) -> float:
  """Of the encoded images of an epoch."""
  records = {int(i) for step in range(plan.steps_per_epoch) for i in plan.batch(step).records}
  some = sorted(records)[:500]
  return float(np.mean([len(source[i].image) for i in some]))


def memory_and_bytes(batches: Iterator[Any]) -> tuple[int, int]:
  """What a pipeline adds to this process and its children at most, seen at each batch; bytes of a batch."""
  before, most, nbytes = resident_bytes(), 0, 0
  for batch in batches:
    most = max(most, resident_bytes() - before)
    nbytes = sum(x.nbytes for x in batch.values()) if isinstance(batch, dict) else batch.nbytes
  return most, nbytes


def resident_bytes() -> int:
  """Physical memory of this process and its descendants; what n of them share counts 1/n in each."""
  total, todo = 0, [os.getpid()]
  while todo:
    process = Path(f"/proc/{todo.pop()}")
    try:
      lines = (process / "smaps_rollup").read_text().splitlines()
      children = [p.read_text() for p in (process / "task").glob("*/children")]
    except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
      continue
    total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    todo += [int(pid) for line in children for pid in line.split()]
  return total
