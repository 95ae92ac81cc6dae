"""Runs made by hand: pictures of one colour, objects and detections where a test wants them."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict

from iou_det.data.coco import to_coco
from iou_det.data.source import Category, Source, from_rows
from iou_det.evaluation.coco import Results
from iou_det.report.runs import Run


def png(i: int, height: int, width: int) -> bytes:
  pixels = np.full((height, width, 3), (40 + 7 * i) % 256, np.uint8)
  return cv2.imencode(".png", pixels)[1].tobytes()


def make_runs(
  images: Sequence[Sequence[tuple]],
  runs: dict[str, Sequence[tuple]],
  *,
  classes: Sequence[str] = ("disc", "star"),
  names: Sequence[str] = (),
  size: tuple[int, int] = (100, 100),
) -> list[Run]:
  """Runs that were scored on the same images, which have the ids 10, 11, ... .

  Args:
    images: of each image the objects: x, y, w, h, class (a place in `classes`), and True for a crowd.
    runs: name: detections: image (a place), x, y, w, h, class, score.
    names: of the image files; default: 0.png, 1.png, ...
  """
  height, width = size
  rows = [
    [(*o[:4], o[4], bool(o[5:]), o[2] * o[3], 100 * i + k + 1) for k, o in enumerate(objects)]
    for i, objects in enumerate(images)
  ]
  named = dict(enumerate(names))
  files = [(10 + i, named.get(i, f"{i}.png"), height, width) for i in range(len(images))]
  categories = tuple(Category(3 * k + 2, name) for k, name in enumerate(classes))
  source = Source("made", categories, from_rows(files, rows), lambda i: png(i, height, width))
  truth = to_coco(categories, source.annotations)

  def run(name: str, found: Sequence[tuple]) -> Run:
    columns = list(zip(*found, strict=True)) or [[] for _ in range(7)]
    results = Results(
      np.array(columns[0], np.int64) + 10,
      np.array([categories[c].id for c in columns[5]], np.int64),
      np.array(columns[1:5], float).T.reshape(-1, 4),
      np.array(columns[6], float),
    )
    return Run(name, Path(name), ConfigDict(), "val", {}, [], results, truth, source)

  return [run(name, found) for name, found in runs.items()]


# One picture with every kind, worked out by hand; the IoU of each detection with what it is on, and its kind.
DISC, STAR = 0, 1
OBJECTS = (
  (0, 0, 20, 20, DISC),
  (50, 50, 20, 20, STAR),
  (0, 70, 20, 20, DISC),
  (70, 0, 30, 30, DISC, True),
  (30, 80, 10, 10, STAR),  # that nothing is on
  (80, 80, 20, 10, STAR),
)
FOUND = (
  (0, 0, 20, 20, DISC, 0.9, "right", 0),  # 1
  (1, 0, 20, 20, DISC, 0.8, "duplicate", 0),  # 380 / 420
  (50, 50, 20, 20, DISC, 0.7, "class", 1),  # 1
  (0, 80, 20, 20, DISC, 0.6, "place", 2),  # 200 / 600
  (40, 10, 5, 5, DISC, 0.55, "false", -1),  # 0
  (75, 5, 10, 10, DISC, 0.5, "ignored", 3),  # all of it is in the crowd
  (50, 60, 20, 20, DISC, 0.45, "both", 1),  # 200 / 600
  (80, 80, 10, 10, STAR, 0.3, "right", 5),  # 100 / 200: exactly 0.5
)
EVERY_KIND = [(0, *row[:6]) for row in FOUND]
