"""`bench input` and `bench eval`: what the host does, decoding images and scoring detections."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from iou_det.bench.measure import Timing, process_memory
from iou_det.data import image_files
from iou_det.data.pipeline import Plan, train_batches
from iou_det.data.records import Source, TrainingFilter, open_dataset, scan
from iou_det.errors import UserError
from iou_det.evaluation import coco

STARTING = 6  # batches: more than a pipeline holds ready


def bench_input(
  config: ConfigDict, batch_size: int, images: int, cores: int, repeats: int
) -> Iterator[dict[str, Any]]:
  """From encoded images to ready batches, beside decoding alone and the usual float pipeline, in turn.

  All use `cores` threads, or as many worker processes. "usual" decodes, resizes to the network's size and
  normalises to float32, as PyTorch's toolboxes do on the host. The clock starts when the first batches have
  come, so that starting threads and processes is not in it.

  Raises:
    UserError: if there are fewer images than a batch.
  """
  d = config.data
  source = open_dataset(d.path, d.train_split)
  keep = TrainingFilter(min_image_side=d.min_image_side, min_box_side=d.min_box_side, keep_empty=d.keep_empty)
  plan = Plan(scan(source, keep), batch_size=batch_size, seed=config.seed)
  steps = images // batch_size
  if steps == 0:
    raise UserError(f"--images={images} is less than --batch_size={batch_size}; give at least one batch")
  total = STARTING + steps
  records = [int(r) for step in range(total) for r in plan.batch(step).records]
  cv2.setNumThreads(0)

  def pipeline(workers: int) -> float:
    batches = train_batches(
      source, plan, start_step=0, stop_step=total, canvas=tuple(d.canvas), max_boxes=d.max_boxes, keep=keep,
      part=0, parts=1, threads=cores, workers=workers,
    )  # fmt: skip
    return seconds_after(batches, STARTING)

  def pooled(work: Callable[[int], Any]) -> float:
    with ThreadPoolExecutor(cores) as pool:
      return seconds_after(pool.map(work, records), STARTING * batch_size)

  calls = {
    "decode": lambda: pooled(lambda r: decode(source, r)),
    "pipeline, threads": lambda: pipeline(0),
    "pipeline, processes": lambda: pipeline(cores),
    "usual": lambda: pooled(lambda r: decode_resize_normalise(source, r, config)),
  }
  rounds = [{name: call() for name, call in calls.items()} for _ in range(repeats)]
  timings = {name: Timing(tuple(r[name] for r in rounds), warmup=0) for name in calls}
  decoding = timings["decode"].median
  short, long = d.canvas
  for name, timing in timings.items():
    yield {
      "bench": "input", "piece": name, "images": steps * batch_size, "batch_size": batch_size,
      "threads": cores, "canvas": [short, long], **timing.row(),
      "images_per_second": steps * batch_size / timing.median,
      "against_decode": decoding / timing.median, "against_usual": timings["usual"].median / timing.median,
      "bytes_to_device_per_image": 3 * short * long if name.startswith("pipeline") else None,
      "process_memory_peak_bytes": process_memory(),
    }  # fmt: skip


def seconds_after(items: Iterable[Any], starting: int) -> float:
  """Seconds from when the first `starting` items have come to the last."""
  items = iter(items)
  for _ in range(starting):
    next(items)
  start = time.perf_counter()
  for _ in items:
    pass
  return time.perf_counter() - start


def decode(source: Source, record: int) -> np.ndarray:
  image = image_files.decode(source[record].image)
  assert image is not None
  return image


def decode_resize_normalise(source: Source, record: int, config: ConfigDict) -> np.ndarray:
  """The network's input made on the host: float32, resized keeping the ratio."""
  d = config.data
  image = decode(source, record)
  height, width = image.shape[:2]
  scale = min(d.short / min(height, width), d.long / max(height, width))
  resized = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_LINEAR)
  return (resized.astype(np.float32) - np.float32(d.mean)) / np.float32(d.std)


def bench_eval(images: int, detections: int, classes: int) -> Iterator[dict[str, Any]]:
  """Scores made-up detections with both backends: seconds, their ratio, and how far the 12 figures differ."""
  truth, results = made_up_detections(images, detections, classes)
  figures, seconds = {}, {}
  for backend in coco.BACKENDS:
    start = time.perf_counter()
    metrics = coco.evaluate(truth, results, backend=backend)
    seconds[backend] = time.perf_counter() - start
    figures[backend] = [metrics[name] for name in coco.FIGURES]
  record = figures[coco.BACKENDS[0]]
  for backend in coco.BACKENDS:
    pairs = [(a, b) for a, b in zip(record, figures[backend], strict=True) if a is not None or b is not None]
    yield {
      "bench": "eval", "piece": backend, "images": images, "detections": len(results), "classes": classes,
      "repeats": 1, "median_s": seconds[backend],
      "against_pycocotools": seconds[coco.BACKENDS[0]] / seconds[backend],
      "largest_difference": max(abs(a - b) for a, b in pairs), "AP": record[0],
    }  # fmt: skip


def made_up_detections(
  images: int, detections: int, classes: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """COCO annotations of 7 boxes an image, and detections: the boxes shifted a little, and noise."""
  rng = np.random.default_rng(0)
  each, boxes = detections // images, 7
  truth: dict[str, Any] = {
    "images": [{"id": i, "height": 480, "width": 640} for i in range(1, images + 1)],
    "categories": [{"id": c, "name": f"class {c}"} for c in range(1, classes + 1)],
    "annotations": [],
  }
  results = []
  for image in range(1, images + 1):
    corner, side = rng.uniform(0, 400, (each, 2)), rng.uniform(8, 200, (each, 2))
    labels = rng.integers(1, classes + 1, each)
    scores = rng.uniform(0.05, 1, each)
    for k in range(boxes):
      width, height = side[k]
      truth["annotations"].append(
        {"id": len(truth["annotations"]) + 1, "image_id": image, "category_id": int(labels[k]),
         "bbox": [*corner[k].tolist(), width, height], "area": width * height, "iscrowd": 0})  # fmt: skip
    shift = corner + rng.normal(0, 6, (each, 2))
    for k in range(each):
      results.append(
        {"image_id": image, "category_id": int(labels[k]), "bbox": [*shift[k].tolist(), *side[k].tolist()],
         "score": float(scores[k])})  # fmt: skip
  return truth, results
