"""A network with its weights: called on images, evaluated on data sets."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Bool, Float32, Int32, Int64, PyTree, UInt8
from ml_collections import ConfigDict

from iou_det.data.ahead import read_ahead
from iou_det.data.images import Image, as_pixels
from iou_det.data.pipeline import Stack, eval_batches, number_of_threads, picture_row
from iou_det.data.plan import TrainingFilter
from iou_det.data.source import Category, Source, describe_categories
from iou_det.errors import Preempted, UserError
from iou_det.evaluation import coco
from iou_det.evaluation.truth import ground_truth
from iou_det.leaving import unhurried
from iou_det.models.retinanet import RetinaNet
from iou_det.network import look, suppression
from iou_det.ops.detection import Candidates, Detections, suppress
from iou_det.parallel import BATCH, input_share, progress_bar, replicated, split_batch, to_device
from iou_det.processes import by_process_0
from iou_det.storage import AnyPath, write_json, write_whole

Pixels: TypeAlias = UInt8[np.ndarray, "h w 3"]
NEVER: Callable[[], bool] = lambda: False


class Evaluation(NamedTuple):
  """What the detections of a split score; process 0 alone has the detections themselves, see `detect`."""

  metrics: dict[str, Any]
  results: coco.Results

  def write(self, folder: AnyPath, *, step: int, split: str) -> dict[str, Any]:
    """Writes detections.json and metrics.json (process 0 alone); returns the metrics, all of them."""
    metrics = self.metrics | {"step": step, "split": split}
    if jax.process_index() == 0:
      folder.mkdir(parents=True, exist_ok=True)
      checksum = write_whole(folder / "detections.json", self.results.as_json())
      write_json(folder / "metrics.json", metrics | {"detections_crc32": checksum})
      counts = f"{len(self.results)} detections of {metrics['images']} images"
      logging.info(f"wrote {folder / 'detections.json'} ({counts})")
    return metrics


@dataclass(frozen=True, repr=False)
class ImageDetections:
  """What was found in one image, by falling score; n objects.

  Attributes:
    boxes: x1, y1, x2, y2 in pixels of the image as given, x2 and y2 exclusive.
    scores: in [0, 1].
    labels: places in the detector's `classes`.
    category_ids: of the classes in the data that the detector was trained on.
    names: of the classes.
  """

  boxes: Float32[np.ndarray, "n 4"]
  scores: Float32[np.ndarray, " n"]
  labels: Int32[np.ndarray, " n"]
  category_ids: Int64[np.ndarray, " n"]
  names: list[str]

  def __len__(self) -> int:
    return len(self.scores)

  def __repr__(self) -> str:
    return (
      f"ImageDetections({len(self)} objects, the best a {self.names[0]})"
      if len(self)
      else "ImageDetections(none)"
    )

  def to_coco(self, image_id: int) -> list[dict[str, Any]]:
    """In COCO's results format: image_id, category_id, bbox (x, y, w, h in pixels), score."""
    image_ids = np.full(len(self), image_id)
    return list(coco.to_results(image_ids, self.boxes, self.scores, self.category_ids).rows())

  def to_arrays(
    self,
  ) -> tuple[Float32[np.ndarray, "n 4"], Float32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
    """Boxes, scores, labels: what supervision calls xyxy, confidence and class_id."""
    return self.boxes, self.scores, self.labels


@dataclass(eq=False)
class Also:
  """What else is computed of each batch of an evaluation, in the same program as its detections.

  Attributes:
    of: of the network's outputs for each view (see `look`), its variables, the batch and whether that is
      portrait: values of the whole batch, for all devices.
    keep, max_boxes: the boxes that the batches have for it, and the most of an image.
    values: of the last evaluation's batches.
  """

  of: Callable[[list[tuple[Any, ...]], PyTree, dict[str, jax.Array], bool], PyTree]
  keep: TrainingFilter
  max_boxes: int
  values: list[PyTree] = field(default_factory=list)


@dataclass(eq=False)
class Detector:
  """A network with its weights on a mesh of devices: call it on images, evaluate it on a data set.

  Attributes:
    config: what is changed in it after the first call or evaluation has no effect.
    categories: of its classes, in the order of the labels.
    variables: {"params": ..., "batch_stats": ...}; may be replaced by others of the same shapes.
    trained_steps: that the weights have seen.
    call_size: images in a batch when it is called; None: set by the first call.
    also: what else evaluations compute.
  """

  config: ConfigDict
  model: RetinaNet
  mesh: Mesh
  categories: tuple[Category, ...]
  variables: PyTree = None
  trained_steps: int = 0
  call_size: int | None = None
  also: Also | None = None

  @property
  def classes(self) -> tuple[str, ...]:
    """Names in the order of the labels."""
    return tuple(c.name for c in self.categories)

  @property
  def params(self) -> PyTree:
    return self.variables["params"]

  @overload
  def __call__(self, images: Image) -> ImageDetections: ...  # type: ignore[overload-overlap]

  @overload
  def __call__(self, images: Sequence[Image]) -> list[ImageDetections]: ...

  def __call__(self, images: Image | Sequence[Image]) -> ImageDetections | list[ImageDetections]:
    """Detects objects in an image, or in each of a list of images of any sizes.

    All batches have one size, so that one program each is compiled for landscape and for portrait images: the
    size is the number of images of the first call, or an even share of them that does not exceed
    `config.eval.batch_size`; or what `call_size` says.

    Args:
      images: RGB uint8 array [height, width, 3], or [height, width] or [height, width, 1] (grey), or
        [height, width, 4] (the alpha channel is left out); or the path of a picture file, which is turned as
        its EXIF orientation says. Or a list of such.

    Raises:
      UserError: naming an image that is none of these.
    """
    single = isinstance(images, (str, bytes)) or not isinstance(images, Sequence)
    several: Any = [images] if single else images
    if not len(several):
      return []
    found = []
    for seen in self.stream(several, len(several)):
      if isinstance(seen, UserError):
        raise seen
      found.append(seen[1])
    return found[0] if single else found

  def stream(
    self, images: Iterable[Any], number: int, read: Callable[[Any, str], Pixels] = as_pixels
  ) -> Iterator[tuple[Pixels, ImageDetections] | UserError]:
    """Pixels and detections of `number` images, in order; see `__call__`. Few images are held at a time.

    In place of an image that cannot be read stands the UserError of `read`, called in threads with an image
    and a name for it; the others are not affected.
    """
    if jax.process_count() > 1:
      raise UserError("a detector is called in a single process; several evaluate data sets: iou-det eval")
    if self.call_size is None:
      self.call_size = even_batch(number, self.config.eval.batch_size, self.mesh.size)
    threads = number_of_threads(self.config.data.threads)
    pixels = read_ahead(images, read, threads, 2 * self.call_size)
    for seen in self.in_batches(pixels, self.call_size, self.step):
      if isinstance(seen, UserError):
        yield seen
      else:
        yield seen[0], self.of_image(*seen[1])

  def in_batches(
    self, images: Iterable[Pixels | UserError], size: int, step: Callable[..., tuple]
  ) -> Iterator[tuple[Pixels, list[np.ndarray]] | UserError]:
    """Images and their rows of what `step` returns (see there), in order; errors as they come.

    Batches have one size; few images are held at a time.
    """
    canvas = tuple(self.config.data.canvas)
    stack = Stack(canvas)
    held: dict[int, Pixels | UserError] = {}  # read, not given out yet
    found: dict[int, list[np.ndarray]] = {}
    queues: dict[bool, list[int]] = {False: [], True: []}  # landscape, portrait: waiting for a whole batch
    running: deque[tuple[list[int], tuple]] = deque()  # one on the device while the next is made ready

    def start(portrait: bool) -> None:
      places, queues[portrait] = queues[portrait], []
      rows = [picture_row(cast(Pixels, held[i]), canvas, portrait) for i in places]
      batch = stack([*rows, *rows[:1] * (size - len(rows))])
      running.append((places, step(self.variables, to_device(batch, self.mesh), portrait)))
      if len(running) > 1:
        collect()

    def collect() -> None:
      places, outputs = running.popleft()
      arrays = jax.device_get(outputs)
      for k, i in enumerate(places):  # behind them: fillers
        found[i] = [array[k] for array in arrays]

    def ready() -> Iterator[tuple[Pixels, list[np.ndarray]] | UserError]:
      while held and (isinstance(image := held[first := min(held)], UserError) or first in found):
        del held[first]
        yield image if isinstance(image, UserError) else (image, found.pop(first))

    for i, image in enumerate(images):
      held[i] = image
      if isinstance(image, UserError):
        yield from ready()
        continue
      portrait = image.shape[0] > image.shape[1]
      queues[portrait].append(i)
      if len(queues[portrait]) == size:
        start(portrait)
      elif len(held) > 4 * size and queues[not portrait]:  # they have waited long enough to be filled up
        start(not portrait)
      yield from ready()
    for portrait in (False, True):
      if queues[portrait]:
        start(portrait)
    while running:
      collect()
    yield from ready()

  def of_image(
    self,
    boxes: Float32[np.ndarray, "max 4"],
    scores: Float32[np.ndarray, " max"],
    labels: Int32[np.ndarray, " max"],
    valid: Bool[np.ndarray, " max"],
  ) -> ImageDetections:
    """Of an image's row of `Detections`."""
    boxes, scores, labels = boxes[valid], scores[valid], labels[valid]
    ids = np.array([c.id for c in self.categories], np.int64)[labels]
    return ImageDetections(boxes, scores, labels, ids, [self.categories[k].name for k in labels])

  @cached_property
  def step(self) -> Callable[..., Detections]:
    """The jitted `step(variables, batch, portrait) -> Detections` in original pixels."""
    return self._jitted(lambda *batch: self._seen(self._suppressed, *batch)[1], split_batch(self.mesh))

  @cached_property
  def candidates(self) -> Callable[..., Candidates]:
    """The same without NMS: what would enter it, of all views."""
    join = lambda views: Candidates(*(jnp.concatenate(x, axis=1) for x in zip(*views, strict=True)))
    return self._jitted(lambda *batch: self._seen(join, *batch)[1], split_batch(self.mesh))

  @cached_property
  def evaluation_step(self) -> Callable[..., tuple[Detections, PyTree]]:
    """What `step` finds, and what `also` says (or None)."""

    def step(*batch: Any) -> tuple[Detections, PyTree]:
      outputs, found = self._seen(self._suppressed, *batch)
      return found, self.also and self.also.of(outputs, *batch)

    return self._jitted(step, (split_batch(self.mesh), replicated(self.mesh)))

  def _jitted(self, function: Callable[..., Any], out: Any) -> Callable[..., Any]:
    batch = split_batch(self.mesh)
    return jax.jit(function, static_argnums=2, in_shardings=(None, batch), out_shardings=out)

  def _suppressed(self, views: list[Candidates]) -> Detections:
    return suppress(views, **suppression(self.config.eval, self.mesh))

  def _seen(
    self,
    end: Callable[[list[Candidates]], Any],
    variables: PyTree,
    batch: dict[str, jax.Array],
    portrait: bool,
  ) -> tuple[list[tuple[Any, ...]], Any]:
    """The network's outputs for each view of a batch, and what `end` makes of their candidates."""
    outputs, find = look(self.config, self.model, self.mesh, variables, batch, portrait)
    # Per device: left to itself, XLA would gather all images for the sort inside.
    rows = PartitionSpec(BATCH)
    views = [(rows, rows, PartitionSpec(), *[rows] * (len(view) - 3)) for view in outputs]
    detect = lambda outputs: end(find(outputs))
    return outputs, jax.shard_map(detect, mesh=self.mesh, in_specs=(views,), out_specs=rows)(outputs)

  def detect(self, source: Source, interrupted: Callable[[], bool] = NEVER) -> coco.Results:
    """Detections of every image of a source, in process 0; the others take part and get none.

    Args:
      interrupted: asked after each batch whether to stop, by a `Preempted`.
    """
    parts: list[coco.Results] = []
    ids = np.array([c.id for c in self.categories], np.int64)
    seen: list[np.ndarray] = []

    def collect(also, *outputs):
      found, index, example = multihost_utils.process_allgather(outputs, tiled=True)
      if self.also:
        self.also.values.append(jax.device_get(also))
      seen.append(index[example])
      if jax.process_index() == 0:
        which = found.valid & example[:, None]
        image_ids = source.annotations.image_id[index[which.nonzero()[0]]].astype(np.int64)
        category_ids = ids[found.labels[which]]
        parts.append(coco.to_results(image_ids, found.boxes[which], found.scores[which], category_ids))

    share = input_share(self.mesh)
    boxes = (self.also.keep, self.also.max_boxes) if self.also else (None, 1)
    batches = eval_batches(source, self.config.data, self.config.eval.batch_size, share, boxes)
    if self.also:
      self.also.values.clear()
    waiting = None  # one batch stays in flight, so that the device works while the host collects
    bar = progress_bar(total=len(source), unit="img", desc="evaluate")
    with bar:
      for batch, portrait in batches:
        arrays = to_device(batch, self.mesh)
        detections, also = self.evaluation_step(self.variables, arrays, portrait)
        if waiting:
          collect(*waiting)
        waiting = (also, detections, arrays["index"], arrays["example"])
        bar.update(int(batch["example"].sum()) * share[1])
        if interrupted():
          raise Preempted
      if waiting:
        collect(*waiting)
    every = np.sort(np.concatenate(seen))
    assert np.array_equal(every, np.arange(len(source))), "an image was evaluated twice or not at all"
    return coco.Results.join(parts)

  def evaluate(
    self,
    source: Source,
    annotations: str | dict[str, Any] = "",
    *,
    backend: str = "pycocotools",
    interrupted: Callable[[], bool] = NEVER,
  ) -> Evaluation:
    """Detects on a source, whose categories the detector must know; process 0 scores the detections.

    Args:
      annotations: original COCO annotation file; "" scores against the source's own records. Or what
        `ground_truth` made of it, which then need not be read again.
      backend: see `coco.evaluate`.
    """
    source = source.adopt(self.categories)
    if not set(source.categories) <= set(self.categories):
      raise UserError(
        f"the detector knows the categories ({describe_categories(self.categories)}), the data {source.name} "
        f"have ({describe_categories(source.categories)}); evaluate on data with the same ids and names"
      )
    backend = coco.choose_backend(backend)  # before the work, so that a wrong name or file costs nothing
    skip_bad = self.config.data.skip_bad
    truth = ground_truth(source, annotations, skip_bad) if isinstance(annotations, str) else annotations
    results = self.detect(source, interrupted)
    ids = {c.id for c in source.categories}
    if len(ids) < len(self.categories):
      every, results = results, results[np.isin(results.category_id, sorted(ids))]
      others = f"{len(self.categories) - len(ids)} classes that {source.name} lacks"
      if jax.process_index() == 0:
        logging.info(f"{len(every) - len(results)} of {len(every)} detections are of {others}: not scored")
    with unhurried():
      return Evaluation(by_process_0(lambda: coco.evaluate(truth, results, backend=backend)), results)


def even_batch(number: int, most: int, devices: int) -> int:
  """Images in each of the fewest batches of at most `most` that hold `number`, the same in all; a multiple of
  `devices`."""
  size = -(-number // -(-number // most))
  return -(-size // devices) * devices
