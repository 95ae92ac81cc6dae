"""What a data set asks of a detector: input size, anchors and room for boxes, each with the reason."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int
from ml_collections import ConfigDict

from iou_det.config import padded
from iou_det.data.plan import TrainingFilter, scan
from iou_det.data.source import Source, corners
from iou_det.errors import UserError
from iou_det.ops.anchors import anchors

STEP = 32  # pixels: sides of the network's input are multiples
SMALLEST_INPUT = 128
FEW = 20  # boxes: of a class with fewer no usual size is known
SMALL = 0.1  # of a class's boxes are smaller than what is called a small one
WANTED = 32  # pixels of a small box in the network's input: 4 cells of stride 8
# Pixels of an input. What a CPU can train on for as many steps as it takes from scratch; on a GPU, COCO's.
MOST = {
  ("small", "cpu"): 2**17,
  ("medium", "cpu"): 2**18,
  ("small", "gpu"): 640 * 640,
  ("medium", "gpu"): 2**20,
}
ENLARGED = 2  # times an image at the most: it gets no sharper
SPARE = 1.25  # canvas over input: scale_jitter enlarges
SAMPLE = 5000  # boxes that anchors are tried on
SCALES = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
RATIOS = (0.5, 1.0, 2.0)
EVEN = 0.005  # shares of covered boxes so near to each other count as equal: the simpler anchors win
LOW = 0.8  # share of covered boxes
DETECTIONS = (100, 1000)  # an image: COCO's, and the most
ROUND = 8  # max_boxes is a multiple


class Row(NamedTuple):
  """A field that was chosen, or kept because it was given."""

  field: str
  value: Any
  why: str


class Boxes(NamedTuple):
  """The boxes to train on and the images they are in."""

  height: Int[np.ndarray, " images"]  # of the images to train on
  width: Int[np.ndarray, " images"]
  number: Int[np.ndarray, " images"]  # of boxes
  image: Int[np.ndarray, " boxes"]  # place of a box's image in the columns above
  label: Int[np.ndarray, " boxes"]
  corners: Float64[np.ndarray, "boxes 4"]  # x1, y1, x2, y2 in pixels of the image
  classes: tuple[str, ...]

  @classmethod
  def of(cls, source: Source, data: ConfigDict) -> "Boxes":
    """A UserError if there is nothing to train on."""
    keep, a = TrainingFilter.of(data), source.annotations
    index = scan(source, keep)
    usable = np.flatnonzero(index.usable)
    a = a.select(usable)
    good = keep.boxes(corners(a.bbox), a.crowd, a.area)
    of_boxes = (a.image_of_box()[good], a.label[good], corners(a.bbox[good]))
    names = tuple(c.name for c in source.categories)
    return cls(a.height, a.width, index.num_boxes[usable], *of_boxes, names)

  @property
  def short(self) -> Int[np.ndarray, " images"]:
    return np.minimum(self.height, self.width)

  @property
  def long(self) -> Int[np.ndarray, " images"]:
    return np.maximum(self.height, self.width)

  @property
  def side(self) -> Float64[np.ndarray, " boxes"]:
    """Square roots of the areas, pixels."""
    return np.sqrt((self.corners[:, 2:] - self.corners[:, :2]).prod(axis=1))


class Chooser:
  """Fills fields of a config that are None, and tells why; those that have a value keep it."""

  def __init__(self, config: ConfigDict) -> None:
    self.config = config
    self.rows: list[Row] = []

  def fill(self, why: str, given: str = "", **fields: Any) -> None:
    """Fills fields, named as data__short; the reason (`given` of those that were) stands at the first."""
    for name, value in fields.items():
      section, field = name.split("__")
      if self.config[section][field] is None:
        with self.config.ignore_type():
          self.config[section][field] = value
        self.rows.append(Row(f"{section}.{field}", value, why))
        why = ""
      else:
        self.rows.append(Row(f"{section}.{field}", self.config[section][field], f"given{given}"))
        given = ""


def choose(chooser: Chooser, boxes: Boxes) -> None:
  """Fills the fields of the sections data, anchors, model and eval by the boxes."""
  config = chooser.config
  d, own = config.data, config.own
  if config.model.init and config.anchors.scale is None:
    raise UserError(
      f"config.model.init={config.model.init}: give the detector to start from as "
      f"--config=own:init={config.model.init}, whose network and anchors are then taken"
    )
  if None in (d.short, d.long):
    given = config.anchors.scale and round(config.anchors.scale * 2**config.model.min_level)
    input_size(chooser, boxes, given or WANTED, MOST[own.size, own.device])
  else:
    chooser.fill("", data__short=d.short, data__long=d.long)
  canvas(chooser, boxes)
  most = int(boxes.number.max())
  room = -(-most // ROUND) * ROUND
  chooser.fill(f"an image has up to {most} boxes, {boxes.number.mean():.1f} on average", data__max_boxes=room)
  least, largest = DETECTIONS
  found = min(max(least, room), largest)
  why = "what COCO scores of an image and class" if found == least else f"an image has up to {most} boxes"
  if most > largest:
    why += ", of which no more than these are found: cut the images into tiles"
  chooser.fill(why, eval__max_detections=found)
  fit_anchors(chooser, boxes)


def input_size(chooser: Chooser, boxes: Boxes, wanted: int, most: int) -> None:
  """Short and long side: so large that small boxes can be seen, within what can be afforded."""
  aspect = float(np.median(boxes.long / boxes.short))
  own = float(np.median(boxes.short))
  small, what = smallest_class(boxes)
  limits = {
    f"as large as {wanted} px need": wanted / small,
    f"{ENLARGED} times the images": ENLARGED * own,
    f"at most {most:,} px an image": math.sqrt(most / aspect),
  }
  limit = min(limits, key=lambda name: limits[name])
  short = limits[limit]
  if short < SMALLEST_INPUT:
    limit, short = f"no side below {SMALLEST_INPUT} px", SMALLEST_INPUT
  short = max(round(short / STEP) * STEP, SMALLEST_INPUT)
  long = max(round(short * aspect / STEP) * STEP, short)
  why = (
    f"images of {own:.0f}x{np.median(boxes.long):.0f} (medians); {SMALL:.0%} of {what} are below "
    f"{small * own:.0f} px there (root of the area), {small * short:.0f} px in the input: {limit}"
  )
  d = chooser.config.data
  if d.short is not None:
    long, why = (
      max(round(d.short * aspect / STEP) * STEP, d.short),
      f"in proportion to the short side: {aspect:.2f}",
    )
  elif d.long is not None:
    short, why = (
      min(round(d.long / aspect / STEP) * STEP, d.long),
      f"in proportion to the long side: {aspect:.2f}",
    )
  chooser.fill(why, data__short=short, data__long=long)


def smallest_class(boxes: Boxes) -> tuple[float, str]:
  """The side of small boxes of the class whose are smallest, as a share of the short side; and its name."""
  side = boxes.side / boxes.short[boxes.image]
  often = np.flatnonzero(np.bincount(boxes.label) >= FEW).tolist()
  small = {k: float(np.quantile(side[boxes.label == k], SMALL)) for k in often}
  if not small:
    return float(np.quantile(side, SMALL)), "the boxes"
  smallest = min(often, key=lambda k: small[k])
  return small[smallest], f"the boxes of {boxes.classes[smallest]}, the smallest class,"


def canvas(chooser: Chooser, boxes: Boxes) -> None:
  """Large enough for every image, or for the input with some room."""
  d = chooser.config.data
  sides = [
    min(int(of_images.max()), round(SPARE * padded(of_input)))
    for of_images, of_input in ((boxes.short, d.short), (boxes.long, d.long))
  ]
  larger = int(((boxes.short > sides[0]) | (boxes.long > max(sides))).sum())
  why = f"{larger} of {len(boxes.short)} images are larger and shrunk to it when they are read"
  chooser.fill(why if larger else "as large as the largest images", data__canvas=(sides[0], max(sides)))


def fit_anchors(chooser: Chooser, boxes: Boxes) -> None:
  """Scale and ratios whose anchors cover most boxes, and as few levels as do that."""
  config, a = chooser.config, chooser.config.anchors
  which = np.random.default_rng(0).permutation(len(boxes.image))[:SAMPLE]
  sample, size = in_input(boxes, config.data, which)
  # Each class counts as much as another, as in AP.
  label = boxes.label[which]
  weight = 1 / np.bincount(label)[label] / len(np.unique(label))
  overlaps: dict[tuple[Any, ...], Float64[np.ndarray, " boxes"]] = {}

  def score(scale: float, ratios: tuple[float, ...], level: int) -> tuple[float, float]:
    """The share of boxes with an anchor that counts as positive, and the mean IoU of their best anchor."""
    key = (scale, ratios, level)
    if key not in overlaps:
      levels = tuple(2**i for i in range(config.model.min_level, level + 1))
      overlaps[key] = best_overlap(
        sample, size, levels, scale=scale, octaves=a.octaves, ratios=ratios, convention=a.convention
      )
    covered = overlaps[key] >= config.match.positive_iou
    return float(weight @ covered), float(weight @ overlaps[key])

  top = config.model.max_level or 7
  tried = [
    (ratios, scale)
    for ratios in ([tuple(a.ratios)] if a.ratios else ratio_sets(sample))
    for scale in ([a.scale] if a.scale else SCALES)
  ]
  best = max(score(scale, ratios, top)[0] for ratios, scale in tried)
  even = [(ratios, scale) for ratios, scale in tried if score(scale, ratios, top)[0] >= best - EVEN]
  ratios = even[0][0]
  scale = max((s for r, s in even if r == ratios), key=lambda s: score(s, ratios, top)[1])
  share, mean = score(scale, ratios, top)
  while not config.model.max_level and top > 5 and share - score(scale, ratios, top - 1)[0] <= EVEN / 5:
    top -= 1
  share, mean = score(scale, ratios, top)
  smallest, largest = (scale * 2**i for i in (config.model.min_level, top + (a.octaves - 1) / a.octaves))
  why = (
    f"{share:.1%} of {len(sample)} boxes, mean over the classes, have an anchor with an IoU of "
    f"{config.match.positive_iou:g} or more ({mean:.2f} on average); squares of {smallest:.0f} to "
    f"{largest:.0f} px"
  )
  if share < LOW:
    why += "; the others train by their best anchor alone: give larger data.short and data.long"
  chooser.fill(why, f": {why}", anchors__scale=float(scale), anchors__ratios=ratios, model__max_level=top)


def ratio_sets(sample: Float64[np.ndarray, "n 4"]) -> list[tuple[float, ...]]:
  """Heights over widths, the simplest first: the usual ones, around the median, wider ones, more."""
  width, height = (sample[:, 2:] - sample[:, :2]).T
  middle = float(np.median(height / width))
  around = lambda *factors: tuple(float(f"{middle * f:.2g}") for f in factors)
  return [RATIOS, around(0.5, 1, 2), around(1 / 3, 1, 3), around(0.25, 0.5, 1, 2, 4)]


def in_input(
  boxes: Boxes, data: ConfigDict, which: Int[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, "n 4"], Int[np.ndarray, "n 2"]]:
  """Some boxes in pixels of the network's input, and the height and width of each one's input."""
  factors = np.minimum(data.short / boxes.short, data.long / boxes.long)
  image = boxes.image[which]
  portrait = (boxes.height > boxes.width)[image]
  short, long = padded(data.short), padded(data.long)
  size = np.where(portrait[:, None], (long, short), (short, long))
  return boxes.corners[which] * factors[image, None], size


def best_overlap(
  boxes: Float64[np.ndarray, "n 4"], size: Int[np.ndarray, "n 2"], levels: Sequence[int], **shape: Any
) -> Float64[np.ndarray, " n"]:
  """The largest IoU of each box with an anchor, all of `iou_det.ops.anchors` being tried.

  Of the anchors of one shape the one whose cell is nearest has the largest: only that is looked at.

  Args:
    size: height and width of the input that each box is in, pixels.
    levels: strides.
    shape: scale, octaves, ratios and convention of the anchors.
  """
  best = np.zeros(len(boxes))
  area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None]
  middle = (boxes[:, :2] + boxes[:, 2:]) / 2
  for stride in levels:
    cell = anchors((stride, stride), strides=(stride,), **shape).astype(np.float64)  # of the first one
    offset = (cell[0, :2] + cell[0, 2:]) / 2
    last = -(-size[:, ::-1] // stride) - 1
    place = np.clip(np.round((middle - offset) / stride), 0, last) * stride
    low = np.maximum(boxes[:, None, :2], cell[:, :2] + place[:, None])
    high = np.minimum(boxes[:, None, 2:], cell[:, 2:] + place[:, None])
    common = np.clip(high - low, 0, None).prod(axis=2)
    union = area + (cell[:, 2:] - cell[:, :2]).prod(axis=1) - common
    best = np.maximum(best, (common / union).max(axis=1))
  return best
