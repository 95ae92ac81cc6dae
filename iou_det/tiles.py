"""Large pictures in overlapping tiles: the candidates of all, and of the whole picture, enter one NMS."""

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from iou_det.data.ahead import read_ahead
from iou_det.data.pipeline import number_of_threads
from iou_det.detector import Detector, ImageDetections, Pixels
from iou_det.errors import UserError
from iou_det.network import suppression
from iou_det.ops.detection import Candidates, suppress

SMALLEST, MOST_OVERLAP = 32, 0.9
ALLOWED = (
  f"SIZE[,overlap=SHARE], as 640,overlap=0.2: SIZE in whole pixels, {SMALLEST} or more, SHARE of it from "
  f"0 to {MOST_OVERLAP}"
)
View = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the picture


class Tiling(NamedTuple):
  """Squares of `side` pixels that share at least `overlap` of their side with the next."""

  side: int
  overlap: float = 0.2

  @classmethod
  def parse(cls, text: str) -> "Tiling":
    """From SIZE[,overlap=SHARE]; a UserError for anything else."""
    match = re.fullmatch(r"(\d{1,6})(?:,overlap=(\d*\.?\d+))?", text.replace(" ", ""))
    tiling = match and cls(int(match[1]), *(float(share) for share in match.groups()[1:] if share))
    if not tiling or tiling.side < SMALLEST or tiling.overlap > MOST_OVERLAP:
      raise UserError(f"--tile={text}: give {ALLOWED}")
    return tiling

  def views(self, height: int, width: int) -> list[View]:
    """The whole picture and, where it exceeds a tile, the tiles: of one size, evenly spread, row by row."""
    whole = (0, 0, width, height)
    if max(height, width) <= self.side:
      return [whole]
    h, w = min(self.side, height), min(self.side, width)
    corners = product(self._starts(height), self._starts(width))
    return [whole, *((x, y, x + w, y + h) for y, x in corners)]

  def _starts(self, length: int) -> list[int]:
    """Of the fewest tiles that cover so many pixels and overlap by no less than they have to."""
    if length <= self.side:
      return [0]
    shared = math.ceil(self.overlap * self.side)
    number = math.ceil((length - shared) / (self.side - shared))
    return [round(i * (length - self.side) / (number - 1)) for i in range(number)]


def stream(
  detector: Detector, images: Iterable[Any], read: Callable[[Any, str], Pixels], tiling: Tiling
) -> Iterator[tuple[Pixels, ImageDetections] | UserError]:
  """As `Detector.stream`, but in tiles: views of all pictures share batches of `eval.batch_size`."""
  pictures: deque[tuple[Pixels, deque[View]]] = deque()  # whose views have not all come back

  def views() -> Iterator[Pixels | UserError]:
    # One picture gives many views: few need to be decoded beforehand.
    threads = number_of_threads(detector.config.data.threads)
    for picture in read_ahead(images, read, threads, 2):
      if isinstance(picture, UserError):
        yield picture
        continue
      places = tiling.views(*picture.shape[:2])
      pictures.append((picture, deque(places)))
      yield from (picture[y1:y2, x1:x2] for x1, y1, x2, y2 in places)

  size = detector.call_size or detector.config.eval.batch_size
  threshold = detector.config.eval.score_threshold
  parts: list[tuple[np.ndarray, np.ndarray]] = []
  for seen in detector.in_batches(views(), size, detector.candidates):
    if isinstance(seen, UserError):
      yield seen
      continue
    picture, places = pictures[0]
    (x, y, _, _), (boxes, scores) = places.popleft(), seen[1]
    enters = (scores > threshold).any(axis=-1)
    parts.append((boxes[enters] + np.array([x, y, x, y], np.float32), scores[enters]))
    if not places:
      yield picture, merge(detector, parts)
      pictures.popleft()
      parts.clear()


def merge(
  detector: Detector, parts: list[tuple[Float[np.ndarray, "_ 4"], Float[np.ndarray, "_ classes"]]]
) -> ImageDetections:
  """One NMS over the candidates of all views of a picture, with the settings of the config's section `eval`.

  A picture may have `max_detections` for each of its views.
  """
  boxes, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
  settings = suppression(detector.config.eval, detector.mesh)
  most = settings.pop("max_detections") * len(parts)
  # Programs of few shapes: what is added has scores of 0 and never enters, and the best come first.
  room, rows = (2 ** math.ceil(math.log2(max(n, 2))) for n in (len(boxes), min(most, scores.size)))
  added = ((0, room - len(boxes)), (0, 0))
  candidates = Candidates(*(jnp.asarray(np.pad(array, added)[None]) for array in (boxes, scores)))
  found = jax.device_get(_suppress([candidates], max_detections=rows, **settings))
  return detector.of_image(*(values[0, :most] for values in found))


SETTINGS = ("score_threshold", "nms_iou", "max_detections", "nms", "class_agnostic", "nms_block")
_suppress = jax.jit(suppress, static_argnames=SETTINGS)
