"""What a config stands for: its network, its inputs and anchors, and a `Detector` of whole data sets.

Training, evaluation and prediction share what is here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict, FrozenConfigDict

from iou_det.config import input_size, strides
from iou_det.data.coco import to_coco
from iou_det.data.pipeline import eval_batches
from iou_det.data.preprocess import Inputs, preprocess
from iou_det.data.source import Category, Source, describe_categories
from iou_det.errors import Preempted, UserError
from iou_det.evaluation import coco
from iou_det.models.retinanet import RetinaNet
from iou_det.ops import anchors as anchor_ops
from iou_det.ops.detection import Detections, detect
from iou_det.parallel import (
  BATCH,
  abstract,
  device_mesh,
  input_share,
  progress_bar,
  replicated,
  split_batch,
  to_device,
)
from iou_det.workdir import Checkpoints, read_config, write_json

NEVER: Callable[[], bool] = lambda: False


def make_model(config: ConfigDict, num_classes: int) -> RetinaNet:
  """The network that a config describes; bfloat16 compute on accelerators if dtype is "auto"."""
  auto = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
  dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}.get(config.model.dtype, auto)
  anchors_per_cell = config.anchors.octaves * len(config.anchors.ratios)
  return RetinaNet(FrozenConfigDict(config.model), num_classes, anchors_per_cell, dtype)


def forward(
  model: RetinaNet, variables: PyTree, images: Float[Array, "b h w 3"], mesh: Mesh
) -> tuple[Float[Array, "b anchors classes"], Float[Array, "b anchors 4"]]:
  """Logits and box offsets, see `RetinaNet`; parameters are gathered, images split over `space`."""
  if mesh.size == 1:
    outputs: Any = model.apply(variables, images)
    return outputs
  constrain = jax.lax.with_sharding_constraint
  variables = constrain(variables, replicated(mesh))

  def on_device(variables, images):
    # Made different on each device once, for all uses: so gradients are summed over the levels that share the
    # heads before they are exchanged.
    variables = jax.lax.pcast(variables, BATCH, to="varying")
    if mesh.shape["space"] > 1:
      images = constrain(images, PartitionSpec(None, "space"))
    return model.apply(variables, images)

  # The batch is split by hand: where XLA splits both batch and rows, its gradients of kernels are wrong.
  batch = PartitionSpec(BATCH)
  split = jax.shard_map(
    on_device, mesh=mesh, in_specs=(PartitionSpec(), batch), out_specs=batch, axis_names=set(BATCH)
  )
  return constrain(split(variables, images), split_batch(mesh))


def make_anchors(
  config: ConfigDict, size: tuple[int, int]
) -> tuple[Float[Array, "anchors 4"], tuple[int, ...]]:
  """Anchors (x1, y1, x2, y2 pixels) of an input of `size` (height, width) and their number per level."""
  anchors = anchor_ops.anchors(size, strides=strides(config), **config.anchors)
  per_cell = config.anchors.octaves * len(config.anchors.ratios)
  shapes = anchor_ops.level_shapes(size, strides(config))
  return jnp.asarray(anchors), tuple(h * w * per_cell for h, w in shapes)


def network_inputs(
  config: ConfigDict, batch: dict[str, Array], portrait: bool, *, train: bool
) -> tuple[Inputs, Float[Array, "anchors 4"], tuple[int, ...]]:
  """What the network sees of a batch of the pipeline, its anchors and their number per level.

  Args:
    train: with the config's augmentation.
  """
  size = input_size(config, portrait)
  key = jax.random.key(config.seed) if train else None
  inputs = preprocess(batch, config.data, size, config.anchors.convention, key)
  return inputs, *make_anchors(config, size)


class Evaluation(NamedTuple):
  """Detections of a split as COCO results, and what they score."""

  metrics: dict[str, Any]
  results: list[dict[str, Any]]

  def write(self, folder: Path, *, step: int, split: str) -> dict[str, Any]:
    """Writes detections.json and metrics.json (process 0 alone); returns the metrics, all of them."""
    metrics = self.metrics | {"step": step, "split": split}
    if jax.process_index() == 0:
      folder.mkdir(parents=True, exist_ok=True)
      write_json(folder / "detections.json", self.results)
      write_json(folder / "metrics.json", metrics)
      counts = f"{len(self.results)} detections of {metrics['images']} images"
      logging.info(f"wrote {folder / 'detections.json'} ({counts})")
    return metrics


@dataclass(frozen=True)
class Detector:
  """A network on a mesh of devices; each call gets the variables, {"params": ..., "batch_stats": ...}.

  Attributes:
    categories: of its classes, in the order of the labels.
  """

  config: ConfigDict
  model: RetinaNet
  mesh: Mesh
  categories: tuple[Category, ...]

  @cached_property
  def step(self) -> Callable[..., Detections]:
    """The jitted `step(variables, batch, portrait) -> Detections` in original pixels."""
    e = self.config.eval

    def step(variables: PyTree, batch: dict[str, jax.Array], portrait: bool) -> Detections:
      inputs, anchors, level_sizes = network_inputs(self.config, batch, portrait, train=False)
      logits, deltas = forward(self.model, variables, inputs.images, self.mesh)
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
          convention=self.config.anchors.convention,
          nms=e.nms,
        ),
        mesh=self.mesh,
        in_specs=(rows, rows, PartitionSpec(), rows, rows),
        out_specs=rows,
      )(logits, deltas, anchors, inputs.image_size, inputs.scale)

    batch = split_batch(self.mesh)
    return jax.jit(step, static_argnums=2, in_shardings=(None, batch), out_shardings=batch)

  def detect(
    self, variables: PyTree, source: Source, interrupted: Callable[[], bool] = NEVER
  ) -> list[dict[str, Any]]:
    """Detections of every image of a source, as COCO results; every process gets all of them.

    Args:
      interrupted: asked after each batch whether to stop, by a `Preempted`.
    """
    results: list[dict[str, Any]] = []
    seen: list[np.ndarray] = []

    def collect(*outputs):
      detections, index, example = multihost_utils.process_allgather(outputs, tiled=True)
      seen.append(index[example])
      for row in np.flatnonzero(example):
        valid = detections.valid[row]
        results.extend(
          coco.to_results(
            int(source.annotations.image_id[index[row]]),
            detections.boxes[row][valid],
            detections.scores[row][valid],
            detections.labels[row][valid],
            source.categories,
          )
        )

    share = input_share(self.mesh)
    batches = eval_batches(source, self.config.data, self.config.eval.batch_size, share)
    waiting = None  # one batch stays in flight, so that the device works while the host collects
    bar = progress_bar(total=len(source), unit="img", desc="evaluate")
    with bar:
      for batch, portrait in batches:
        arrays = to_device(batch, self.mesh)
        detections = self.step(variables, arrays, portrait)
        if waiting:
          collect(*waiting)
        waiting = (detections, arrays["index"], arrays["example"])
        bar.update(int(batch["example"].sum()) * share[1])
        if interrupted():
          raise Preempted
      if waiting:
        collect(*waiting)
    every = np.sort(np.concatenate(seen))
    assert np.array_equal(every, np.arange(len(source))), "an image was evaluated twice or not at all"
    return results

  def evaluate(
    self,
    variables: PyTree,
    source: Source,
    annotations: str = "",
    *,
    backend: str = "pycocotools",
    interrupted: Callable[[], bool] = NEVER,
  ) -> Evaluation:
    """Detects on a source, which must have the detector's categories, and scores the detections.

    Args:
      annotations: original COCO annotation file; "" scores against the source's own records.
      backend: see `coco.evaluate`.
    """
    if source.categories != self.categories:
      raise UserError(
        f"the detector knows the categories ({describe_categories(self.categories)}), the data {source.name} "
        f"have ({describe_categories(source.categories)}); evaluate on data with the same ids and names"
      )
    truth = ground_truth(source, annotations)  # before the work, so that a wrong file costs nothing
    results = self.detect(variables, source, interrupted)
    return Evaluation(coco.evaluate(truth, results, backend=backend), results)


def ground_truth(source: Source, annotations: str) -> dict[str, Any]:
  """What to score against: the content of an annotation file that has all images of the source, or ("") the
  source's own records."""
  if not annotations:
    return to_coco(source.categories, source.annotations)
  truth, _ = coco.load_ground_truth(annotations)
  known = {image["id"] for image in truth["images"]}
  ours = set(source.annotations.image_id.tolist())
  if ours - known:
    raise UserError(
      f"{annotations} does not know {len(ours - known)} of the {len(ours)} images of {source.name} "
      f"(ids {', '.join(map(str, sorted(ours - known)[:5]))}, ...); give the file that belongs to them"
    )
  if known - ours:
    lacks = f"{len(known - ours)} images that {source.name} lacks"
    logging.warning(f"{annotations} has {lacks}; their objects count as missed")
  return truth


class Run(NamedTuple):
  """A trained detector read from a workdir."""

  detector: Detector
  variables: PyTree
  step: int


def load_run(workdir: str | Path, step: str = "last", batch_size: int | None = None) -> Run:
  """Reads a workdir's config and the parameters of a step ("last", "best" or a number) onto all devices.

  Args:
    batch_size: replaces the config's `eval.batch_size`.
  """
  config = read_config(workdir)
  config.eval.batch_size = batch_size or config.eval.batch_size
  checkpoints = Checkpoints(workdir, read_only=True)
  number = checkpoints.step_number(step)
  categories = tuple(Category(**c) for c in checkpoints.run_information(number)["categories"])
  model = make_model(config, len(categories))
  if jax.device_count() % (config.mesh.fsdp * config.mesh.space):
    logging.info("the run's mesh does not divide the %d devices here: data only", jax.device_count())
    config.mesh.update(fsdp=1, space=1)
  mesh = device_mesh(
    config.eval.batch_size, **config.mesh.to_dict(), setting="eval.batch_size (--batch_size)"
  )
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)  # shapes do not depend on their size
  shapes = {"batch_stats": {}, **jax.eval_shape(model.init, jax.random.key(0), images)}
  variables = checkpoints.restore_variables(number, abstract(mesh, shapes), averaged=config.train.ema > 0)
  checkpoints.close()
  return Run(Detector(config, model, mesh, categories), variables, number)
