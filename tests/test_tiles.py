"""Tiles cover a picture, and what is found in them is what plain loops find in their crops."""

import itertools
import math
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iou_det import tiles
from iou_det.errors import UserError
from iou_det.tiles import Tiling
from iou_det.weights.load import load_detector
from tests import oracle_nms
from tests.same import assert_same_detections


@pytest.mark.parametrize(
  ("text", "tiling"),
  [
    ("640", (640, 0.2)),
    ("640,overlap=0.2", (640, 0.2)),
    ("32,overlap=0", (32, 0.0)),
    ("128, overlap=.9", (128, 0.9)),
  ],
)
def test_what_is_taken(text, tiling):
  assert Tiling.parse(text) == tiling


@pytest.mark.parametrize(
  "text",
  ["", "31", "640x480", "640,0.2", "640,overlap=1", "640,overlap=-0.1", "640,overlap=", "overlap=0.2", "6.5"],
)
def test_all_else_is_one_line_that_says_what_is_allowed(text):
  line = (
    rf"--tile={re.escape(text)}: give SIZE\[,overlap=SHARE\], as 640,overlap=0.2: SIZE in whole pixels, 32"
  )
  with pytest.raises(UserError, match=line) as refused:
    Tiling.parse(text)
  assert "\n" not in str(refused.value)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(32, 300), st.floats(0, 0.9))
def test_tiles_cover_the_picture_and_overlap_enough(height, width, side, overlap):
  whole, *rest = Tiling(side, overlap).views(height, width)
  assert whole == (0, 0, width, height)
  if max(height, width) <= side:
    return
  seen = np.zeros((height, width), int)
  for x1, y1, x2, y2 in rest:
    assert 0 <= x1 and 0 <= y1 and x2 <= width and y2 <= height
    assert (x2 - x1, y2 - y1) == (min(side, width), min(side, height)), "one shape, so one program"
    seen[y1:y2, x1:x2] += 1
  assert rest and seen.min() >= 1
  for axis, length in ((0, width), (1, height)):
    starts = sorted({view[axis] for view in rest})
    assert all(a + side - b >= overlap * side - 1 for a, b in itertools.pairwise(starts))
    fewer = len(starts) - 1
    assert fewer < 1 or fewer * side - (fewer - 1) * math.ceil(overlap * side) < length, "one is too many"


def by_loops(detector, everything, picture, tiling):
  """Labels, scores and boxes in float64: each view cropped and seen alone, then NMS over all.

  Each pair of box and class is a box of its own: of one class, or (class_agnostic) put out by its best one.
  """
  pairs = []
  views = tiling.views(*picture.shape[:2])
  for x1, y1, x2, y2 in views:
    found = everything(np.ascontiguousarray(picture[y1:y2, x1:x2]))
    shifted = found.boxes + [x1, y1, x1, y1]
    pairs += zip(shifted.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
  boxes = np.array([box for box, _, _ in pairs])
  scores = np.zeros((len(pairs), len(detector.categories)))
  for i, (_, label, score) in enumerate(pairs):
    scores[i, label] = score
  e = detector.config.eval
  most = e.max_detections * len(views)

  def suppress(boxes, scores):
    if e.nms == "hard":
      return oracle_nms.nms(boxes, scores, e.nms_iou, e.score_threshold, most)
    return oracle_nms.soft_nms(boxes, scores, e.nms, e.nms_iou, 0.5, e.score_threshold, most)

  kept = oracle_nms.over_all_classes(suppress, boxes, scores) if e.class_agnostic else suppress(boxes, scores)
  return as_rows((label, score, boxes[box]) for box, label, score in kept)


def as_rows(found):
  return [{"image_id": 1, "category_id": int(k), "score": float(s), "bbox": list(b)} for k, s, b in found]


@pytest.mark.parametrize(
  "changes", [{}, {"nms": "gaussian"}, {"class_agnostic": True, "max_detections": 5}], ids=str
)
def test_it_finds_what_loops_over_crops_find(reference, changes):
  rng = np.random.default_rng(0)
  picture = rng.integers(0, 256, (100, 130, 3), np.uint8)  # of a canvas of 64x96
  tiling = Tiling(64, 0.25)
  everything, detector = (load_detector(reference[0], batch_size=8) for _ in range(2))
  everything.config.eval.update(nms="none", max_detections=2000, score_threshold=0.0)
  limit = float(np.quantile(everything(picture).scores, 0.9))
  everything = load_detector(reference[0], batch_size=8)
  everything.config.eval.update(nms="none", max_detections=2000, score_threshold=limit)
  detector.config.eval.update(score_threshold=limit, **changes)
  others = [picture[:64, :96], picture[:, :60]]  # one is no larger than a tile in one direction
  expected = [by_loops(detector, everything, p, tiling) for p in (picture, *others)]
  bad = UserError("gone")

  def read(image, name):
    if isinstance(image, UserError):
      raise image
    return image

  seen = list(tiles.stream(detector, [picture, bad, *others], read, tiling))
  assert seen.pop(1) is bad
  for (pixels, found), same, rows in zip(seen, (picture, *others), expected, strict=True):
    np.testing.assert_array_equal(pixels, same)
    assert len(rows) > 4 and (np.diff(found.scores) <= 0).all()
    assert_same_detections(as_rows(zip(found.labels, found.scores, found.boxes, strict=True)), rows)


def test_a_picture_no_larger_than_a_tile_is_seen_as_without(reference):
  picture = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
  detector = load_detector(reference[0], batch_size=8)
  ((_, found),) = tiles.stream(detector, [picture], lambda image, name: image, Tiling(96))
  expected = detector(picture)
  assert found.names == expected.names and len(found)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found.to_arrays(), expected.to_arrays()
  )
