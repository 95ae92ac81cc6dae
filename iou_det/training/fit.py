"""Whether machine and data fit a config: the memory that it needs, and objects and images at its sizes."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from iou_det.config import input_size, strides
from iou_det.data.labels import Labels
from iou_det.data.pipeline import AHEAD, number_of_threads
from iou_det.data.plan import TrainingFilter, images_per_step
from iou_det.data.source import Annotations, Source, corners
from iou_det.finding import Finding, some
from iou_det.network import make_model, variable_shapes
from iou_det.ops import anchors as anchor_ops
from iou_det.parallel import device_mesh
from iou_det.training.step import create_state

# The stacked batches that may wait, see `iou_det.data.pipeline`.
STACKED, OF_A_WORKER = 2, 4
SURE = 1.25  # times the memory that is there: beyond what counting may be wrong by
# Times what is kept: what the backward pass computes again is written on a CPU (1.5 to 2.0 by XLA's figures).
AGAIN_ON_CPU = 1.8
TINY = 0.2  # of the boxes; of COCO's, at the paper's size and with its anchors, a tenth are so small
SHRUNK = 4  # times: what is 16 pixels wide in the image is 4 in the network's input, half a cell of stride 8
SHRUNK_IMAGES = 0.1  # of the images


class HostMemory(NamedTuple):
  """Bytes that batches on their way to the devices take at the most."""

  ram: int
  shared: int  # in /dev/shm


def host_memory(config: ConfigDict, splits: Mapping[str, Labels]) -> HostMemory:
  """By the rule of `iou_det.data.pipeline`, for a single process; and a whole picture in each thread."""
  d = config.data
  stacked = images_per_step(config.train) * math.prod(d.canvas) * 3
  pixels = [a.height.astype(np.int64) * a.width for a in (x.annotations for x in splits.values()) if len(a)]
  picture = 3 * max((int(p.max()) for p in pixels), default=0)
  if d.workers:
    return HostMemory(d.workers * picture, (d.workers * OF_A_WORKER + STACKED) * stacked)
  return HostMemory((AHEAD + STACKED) * stacked + number_of_threads(d.threads) * picture, 0)


class DeviceMemory(NamedTuple):
  """Bytes on a device in a training step."""

  state: int  # parameters, statistics and the optimizer's state
  kept: int  # what the backward pass keeps of the forward one, gradients, outputs, and the batch

  @property
  def total(self) -> int:
    return self.state + self.kept


def device_memory(config: ConfigDict, classes: int, platform: str, devices: int) -> DeviceMemory:
  """Counted, nothing is compiled; a UserError if batches do not divide over so many devices.

  What a compiler adds for itself (workspaces, losses, and what model.remat does again) is not counted, nor
  what it saves: of ResNet-50 at 800x1344 with 16 images on an H100 the count is 94 % of the compiler's
  figure, of configs/deeppcb.py there 99 %, of configs/shapes.py and bccd.py on a CPU 91 and 97 %.
  """
  train = config.train
  for setting, batch in (
    ("config.train.batch_size", train.batch_size),
    ("config.eval.batch_size", config.eval.batch_size),
  ):
    device_mesh(batch, jax.devices()[:1] * devices, setting=setting)
  if config.model.dtype == "auto":  # this process has no accelerator
    config = ConfigDict(config.to_dict())
    config.model.dtype = "float32" if platform == "cpu" else "bfloat16"
  model = make_model(config, classes)
  one = device_mesh(1, jax.devices()[:1])
  state: Any = jax.eval_shape(lambda: create_state(config, model, 1, one, None)[0])
  variables = variable_shapes(config, classes)
  images = jax.ShapeDtypeStruct((train.batch_size, *input_size(config, False), 3), jnp.float32)

  def forward(variables: Any, images: Any) -> Any:
    rest = {name: v for name, v in variables.items() if name != "params"}
    return jax.vjp(lambda params: model.apply(rest | {"params": params}, images), variables["params"])

  outputs, pull = jax.eval_shape(forward, variables, images)
  canvas = images_per_step(train) * math.prod(config.data.canvas) * 3
  # The parameters are in what is kept, and in the state; a device has all of their gradients.
  kept = nbytes(pull) - nbytes(state.params) + nbytes(outputs) * train.accumulate + canvas
  kept *= AGAIN_ON_CPU if platform == "cpu" else 1
  return DeviceMemory(nbytes(state), nbytes(state.params) + round(kept / devices))


def nbytes(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def objects_and_images(config: ConfigDict, splits: Mapping[str, Labels]) -> Iterator[Finding]:
  """Objects below the smallest anchor, images above the canvas or the network's input, what is left out."""
  columns = [labels.annotations for labels in splits.values()]
  factors = np.concatenate([resize_factors(a, config.data) for a in columns])
  yield from tiny_objects(config, columns)
  if train := splits.get(config.data.train_split):
    yield from unmatched_classes(config, train)
  yield from large_images(config.data, columns, factors)
  keep = TrainingFilter.of(config.data)
  boxes = [a.bbox[~a.crowd & (a.area > 0)] for a in columns]
  if narrow := sum(int((keep.min_box_side > b[:, 2:]).any(axis=1).sum()) for b in boxes):
    what = f"{narrow} boxes have a side below {keep.min_box_side:g} px: they are not trained on"
    yield Finding("note", what, "--config.data.min_box_side=0 trains on them")
  if small := sum(int((np.minimum(a.height, a.width) < keep.min_image_side).sum()) for a in columns):
    what = f"{small} images have a side below {keep.min_image_side} px: they are not trained on"
    yield Finding("note", what, "--config.data.min_image_side=1 trains on them")


def resize_factors(a: Annotations, data: ConfigDict) -> Float[np.ndarray, " images"]:
  """Network pixels per pixel of each image."""
  return np.minimum(data.short / np.minimum(a.height, a.width), data.long / np.maximum(a.height, a.width))


def tiny_objects(config: ConfigDict, columns: list[Annotations]) -> Iterator[Finding]:
  """Objects with less than positive_iou of the smallest anchor's area: no anchor is positive but by force."""
  sides = []
  for a in columns:
    kept = TrainingFilter.of(config.data).boxes(corners(a.bbox), a.crowd, a.area)
    sides.append(
      (np.sqrt(a.bbox[:, 2] * a.bbox[:, 3]) * resize_factors(a, config.data)[a.image_of_box()])[kept]
    )
  side, smallest = np.concatenate(sides), config.anchors.scale * strides(config)[0]
  least = smallest * math.sqrt(config.match.positive_iou)
  if not len(side) or (tiny := float((side < least).mean())) < TINY:
    return
  wanted = float(np.quantile(side, TINY / 2)) / math.sqrt(config.match.positive_iou)
  what = (
    f"{tiny:.0%} of the boxes are below {least:.0f} px after resizing, too small for an IoU of "
    f"{config.match.positive_iou:g} (match.positive_iou) with the smallest anchor ({smallest:g} px)"
  )
  scale = max(1.0, math.floor(10 * wanted / strides(config)[0]) / 10)
  larger = enlarged(config.data, max(1.1, smallest / wanted))
  yield Finding("warning", what, f"--config.anchors.scale={scale:g}, or larger images: {larger}")


def unmatched_classes(config: ConfigDict, train: Labels | Source) -> Iterator[Finding]:
  """Classes with boxes of which none can have a positive anchor."""
  a, match = train.annotations, config.match
  kept = TrainingFilter.of(config.data).boxes(corners(a.bbox), a.crowd, a.area)
  least = match.min_forced_iou if match.force_match else match.positive_iou
  matched = kept & (best_ious(config, a) >= least) if least else kept

  def without(which: Bool[np.ndarray, " boxes"], of: Bool[np.ndarray, " boxes"]) -> str:
    """Classes that have such boxes but none of those."""
    count = lambda rows: np.bincount(a.label[rows], minlength=len(train.categories))
    return some(train.categories[k].name for k in np.flatnonzero((count(which) > 0) & (count(of) == 0)))

  if names := without(np.ones_like(kept), kept):
    what = f"classes all of whose boxes are crowds or too small to train on: {names}"
    yield Finding("warning", what, "they are never found; --config.data.min_box_side=0 trains on small boxes")
  if names := without(kept, matched):
    what = f"classes without a positive, as no anchor can reach an IoU of {least:g} with their boxes: {names}"
    todo = (
      "--config.match.force_match=True --config.match.min_forced_iou=0, or other anchors.scale and ratios"
    )
    yield Finding("warning", what, todo)


def best_ious(config: ConfigDict, a: Annotations) -> Float[np.ndarray, " boxes"]:
  """The IoU of each box with the anchor shape that fits best, in the same place: no anchor exceeds it."""
  anchors = anchor_ops.anchors((1, 1), strides=strides(config), **config.anchors)  # a cell of each level
  factors, (low, high) = resize_factors(a, config.data)[a.image_of_box()], config.data.scale_jitter
  best = np.zeros(len(a.bbox))
  for jitter in np.linspace(low, high, 5 if high > low else 1):
    sides = a.bbox[:, 2:] * (factors * jitter)[:, None]
    for shape in np.unique(anchors[:, 2:] - anchors[:, :2], axis=0).astype(np.float64):
      overlap = np.minimum(sides, shape).prod(axis=1)
      best = np.maximum(best, overlap / (sides.prod(axis=1) + shape.prod() - overlap))
  return best


def large_images(
  data: ConfigDict, columns: list[Annotations], factors: Float[np.ndarray, " images"]
) -> Iterator[Finding]:
  sides = np.concatenate([np.stack([a.height, a.width], axis=1) for a in columns])
  above = (np.sort(sides, axis=1) > data.canvas).any(axis=1)
  canvas, network = tuple(data.canvas), (data.short, data.long)
  if above.any() and (canvas[0] < network[0] or canvas[1] < network[1]):
    what = (
      f"{above.sum()} of {len(above)} images are shrunk to data.canvas={canvas}, then enlarged to {network}"
    )
    todo = f"'--config.data.canvas=({network[0]},{network[1]})', or detail is lost"
    yield Finding("warning", what, todo)
  shrunk = factors < 1 / SHRUNK
  if shrunk.mean() >= SHRUNK_IMAGES:
    what = (
      f"{shrunk.sum()} of {len(shrunk)} images are shrunk more than {SHRUNK} times (median "
      f"{np.median(1 / factors[shrunk]):.1f}): small things in them vanish"
    )
    yield Finding(
      "warning", what, f"if they matter, {enlarged(data, 2.0)} (four times the memory), or cut the images"
    )


def enlarged(data: ConfigDict, factor: float) -> str:
  """Flags for images so many times as large, in steps of 32 pixels."""
  short, long = (math.ceil(side * factor / 32) * 32 for side in (data.short, data.long))
  canvas = (max(short, int(data.canvas[0])), max(long, int(data.canvas[1])))
  return (
    f"--config.data.short={short} --config.data.long={long} '--config.data.canvas=({canvas[0]},{canvas[1]})'"
  )


def memory(
  host: HostMemory, device: DeviceMemory, available: int, shared: int, device_limit: int | None
) -> Iterator[Finding]:
  """Where memory is too small.

  Args:
    available, shared: bytes of the machine and of /dev/shm.
    device_limit: bytes of each device; None: it shares the machine's.
  """
  lower = "lower --config.train.batch_size"
  level = lambda needed, there: "error" if needed > SURE * there else "warning"
  if host.shared > shared:
    what = f"worker processes need {gib(host.shared)} of /dev/shm, {gib(shared)} are free"
    todo = "docker run --shm-size=... (Kubernetes: an emptyDir of medium Memory), or --config.data.workers=0"
    yield Finding("error", what, todo)
  ram = host.ram + host.shared + (device.total if device_limit is None else 0)
  if ram > available:
    what = f"training takes about {gib(ram)} of this machine's memory, {gib(available)} are available"
    yield Finding(level(ram, available), what, f"{lower} or --config.data.canvas")
  if device_limit is not None and device.total > device_limit:
    what = f"a training step takes about {gib(device.total)} of each device, which has {gib(device_limit)}"
    todo = f"{lower} (and raise --config.train.accumulate), or --config.model.remat=True: less is kept"
    yield Finding(level(device.total, device_limit), what, todo)


def gib(number: int) -> str:
  return f"{number / 2**30:.2f} GiB"
