"""Detects on a whole split, on any number of devices, and scores it with COCO metrics."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict
from tqdm import tqdm

from iou_det.data.pipeline import eval_batches, log_shrunk
from iou_det.data.records import Category, Source
from iou_det.errors import Preempted, UserError
from iou_det.evaluation import coco
from iou_det.evaluation.detect import Detections, detect
from iou_det.models.retinanet import RetinaNet
from iou_det.training.mesh import BATCH, input_share, split_batch, to_device
from iou_det.training.state import TrainState, forward
from iou_det.training.step import network_inputs


def make_detect_step(config: ConfigDict, model: RetinaNet, mesh: Mesh) -> Callable[..., Detections]:
  """The jitted `detect_step(state, batch, portrait) -> Detections` in original pixels."""
  e = config.eval

  def step(state: TrainState, batch: dict[str, jax.Array], portrait: bool) -> Detections:
    inputs, anchors, level_sizes = network_inputs(config, batch, portrait, train=False)
    logits, deltas = forward(model, state.params, state.batch_stats, inputs.images, mesh)
    # Per device: left to itself, XLA would gather all images for the sort inside.
    rows = PartitionSpec(BATCH)
    return jax.shard_map(
      partial(
        detect,
        level_sizes=level_sizes,
        score_threshold=e.score_threshold,
        candidates_per_level=e.candidates_per_level,
        nms_iou=e.nms_iou,
        max_detections=e.max_detections,
        convention=config.anchors.convention,
        nms=e.nms,
      ),
      mesh=mesh,
      in_specs=(rows, rows, PartitionSpec(), rows, rows),
      out_specs=rows,
    )(logits, deltas, anchors, inputs.image_size, inputs.scale)

  return jax.jit(
    step,
    static_argnums=2,
    in_shardings=(None, split_batch(mesh)),
    out_shardings=split_batch(mesh),
  )


def detect_all(
  detect_step: Callable[..., Detections],
  state: TrainState,
  source: Source,
  config: ConfigDict,
  mesh: Mesh,
  interrupted: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
  """Detections of every image of a source, as COCO results; every process gets all of them.

  Args:
    interrupted: asked after each batch whether to stop.

  Raises:
    Preempted: if `interrupted`.
    AssertionError: if an image was seen twice or not at all.
  """
  results: list[dict[str, Any]] = []
  seen: list[np.ndarray] = []

  def collect(detections, index, example):
    detections, index, example = multihost_utils.process_allgather((detections, index, example), tiled=True)
    seen.append(index[example])
    for row in np.flatnonzero(example):
      valid = detections.valid[row]
      results.extend(
        coco.to_results(
          source.image_id(int(index[row])),
          detections.boxes[row][valid],
          detections.scores[row][valid],
          detections.labels[row][valid],
          source.categories,
        )
      )

  sizes = source.annotations()
  limits = (config.data.short, config.data.long)
  log_shrunk(sizes.height, sizes.width, tuple(config.data.canvas), limits)
  part, parts = input_share(mesh)
  batches = eval_batches(
    source,
    batch_size=config.eval.batch_size,
    canvas=tuple(config.data.canvas),
    part=part,
    parts=parts,
    threads=config.data.threads,
    workers=config.data.workers,
  )
  waiting = None  # one batch stays in flight, so that the device works while the host collects
  bar = tqdm(
    total=len(source),
    unit="img",
    desc="evaluate",
    disable=jax.process_index() != 0,
    mininterval=0.5 if sys.stderr.isatty() else 15,
  )
  with bar:
    for batch, portrait in batches:
      arrays = to_device(batch, mesh)
      detections = detect_step(state, arrays, portrait)
      if waiting:
        collect(*waiting)
      waiting = (detections, arrays["index"], arrays["example"])
      bar.update(int(batch["example"].sum()) * parts)
      if interrupted():
        raise Preempted
    if waiting:
      collect(*waiting)
  every = np.sort(np.concatenate(seen))
  assert np.array_equal(every, np.arange(len(source))), "an image was evaluated twice or not at all"
  return results


def evaluate(
  detect_step: Callable[..., Detections],
  state: TrainState,
  source: Source,
  config: ConfigDict,
  mesh: Mesh,
  *,
  categories: tuple[Category, ...],
  annotations: str,
  split: str,
  step: int,
  folder: Path,
  backend: str = "pycocotools",
  interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
  """Detects on a split, scores with pycocotools, writes both files to `folder`; returns the metrics.

  Args:
    categories: the detector's; the source must have the same table.
    backend: see `coco.evaluate`.
    annotations: original COCO annotation file; "" scores against the source's own records.
    interrupted: see `detect_all`.
  """
  if source.categories != categories:
    raise UserError(
      f"the detector knows the categories {describe(categories)}, split {split!r} of the data has "
      f"{describe(source.categories)}; evaluate on data with the same ids and names"
    )
  truth = ground_truth(source, annotations)  # before the work, so that a wrong file costs nothing
  results = detect_all(detect_step, state, source, config, mesh, interrupted)
  metrics = coco.evaluate(truth, results, backend=backend) | {"step": step, "split": split}
  if jax.process_index() == 0:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "detections.json", results)
    write_json(folder / "metrics.json", metrics)
    logging.info(
      "wrote %s (%d detections of %d images)", folder / "detections.json", len(results), len(source)
    )
  return metrics


def ground_truth(source: Source, annotations: str) -> dict[str, Any]:
  """What to score against: an annotation file's content, or ("") the source's own records.

  Raises:
    UserError: the file is not readable as COCO annotations or lacks images of the source.
  """
  if not annotations:
    return coco.coco_ground_truth(source)
  truth, _ = coco.load_ground_truth(annotations)
  known = {image["id"] for image in truth["images"]}
  ours = set(source.annotations().image_id.tolist())
  if ours - known:
    raise UserError(
      f"{annotations} does not know {len(ours - known)} of the {len(ours)} images of {source.name} "
      f"(ids {', '.join(map(str, sorted(ours - known)[:5]))}, ...); give the file that belongs to them"
    )
  if known - ours:
    logging.warning(
      "%s has %d images that %s lacks; their objects count as missed",
      annotations,
      len(known - ours),
      source.name,
    )
  return truth


def describe(categories: tuple[Category, ...]) -> str:
  shown = ", ".join(f"{c.id}: {c.name}" for c in categories[:5])
  return f"({shown}{', ...' if len(categories) > 5 else ''}; {len(categories)} in all)"


def write_json(path: Path, value: Any) -> None:
  """Writes beside and renames, so that a file that is there is whole."""
  part = path.with_suffix(".part")
  part.write_text(json.dumps(value) + "\n")
  part.replace(path)
