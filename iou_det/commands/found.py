"""What `iou-det predict` makes of detections, in pictures and in frames: drawings, rows, counts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8

from iou_det.commands.drawing import draw_detections
from iou_det.detector import ImageDetections, Pixels
from iou_det.errors import UserError

Seen: TypeAlias = Iterator[tuple[Pixels, ImageDetections] | UserError]
See: TypeAlias = Callable[[Iterable[Any], Callable[[Any, str], Pixels]], Seen]  # images, and what reads one


class Pen(NamedTuple):
  """Draws what has at least a score."""

  names: Sequence[str]
  score: float
  font: str | None

  def draw(
    self, pixels: Pixels, found: ImageDetections, truth: Float[np.ndarray, "m 4"] | None = None
  ) -> UInt8[np.ndarray, "H W 3"]:
    high = found.scores >= self.score
    boxes, labels, scores = found.boxes[high], found.labels[high], found.scores[high]
    return draw_detections(pixels, boxes, labels, scores, self.names, ground_truth=truth, font=self.font)


@dataclass
class Tally:
  """Counts detections."""

  score: float  # of those that are drawn, or more
  found: int = 0
  drawn: int = 0
  highest: float = 0.0

  def add(self, found: ImageDetections) -> None:
    self.found += len(found)
    self.drawn += int((found.scores >= self.score).sum())
    self.highest = max(self.highest, float(found.scores.max(initial=0.0)))

  def __str__(self) -> str:
    drawn = f"{self.drawn} drawn: score >= {self.score:g}, the highest is {self.highest:.2f}"
    return f"{self.found} detections ({drawn})"


def rows(found: ImageDetections) -> list[dict[str, Any]]:
  """As they stand in detections.json, behind the name of the file."""
  names = ("category_id", "score", "bbox")
  coco = zip(found.names, found.to_coco(0), strict=True)
  return [{"class": name} | {k: row[k] for k in names} for name, row in coco]
