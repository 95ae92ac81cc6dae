"""Drawings: boxes, colours and labels are where they should be."""

import numpy as np
import pytest

from iou_det.commands.drawing import MIN_SIDE, contact_sheet, draw_detections

NAMES = ["cell", "square", "a rather long class name"]
GREY = 90


def draw(boxes=(), labels=(), scores=(), size=(640, 640), **more):
  image = np.full((*size, 3), GREY, np.uint8)
  picture = draw_detections(
    image, np.float32(boxes).reshape(-1, 4), np.int32(labels), np.float32(scores), NAMES, **more
  )
  assert (image == GREY).all()  # the picture is new
  return picture


def changed(picture):
  """x1, y1, x2, y2 (exclusive) of what was drawn."""
  ys, xs = np.nonzero((picture != GREY).any(axis=-1))
  return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def test_nothing_to_draw_is_the_image():
  np.testing.assert_array_equal(draw(), np.full((640, 640, 3), GREY, np.uint8))


def test_the_outline_is_on_the_box():
  picture = draw([[100, 200, 300, 400]], [0], [0.9])
  colour = picture[399, 250]
  assert (colour != GREY).any()
  for y, x in [(250, 100), (250, 299), (399, 150), (399, 299)]:  # the last pixel row and column belong to it
    np.testing.assert_array_equal(picture[y, x], colour)
  assert (picture[210:390, 110:290] == GREY).all() and (picture[401:] == GREY).all()
  x1, y1, x2, y2 = changed(picture)
  assert (x1, x2, y2) == (100, 300, 400) and 170 < y1 < 190  # the label stands on the box


def test_a_label_has_its_text_and_stays_in_the_picture():
  plain = draw([[5, 0, 30, 25]], [0], [0.5])
  other = draw([[5, 0, 30, 25]], [0], [0.51])
  assert (plain != other).any()
  picture = draw([[620, 600, 640, 640], [0, 0, 20, 20]], [2, 2], [0.5, 0.9])
  assert picture.shape == (640, 640, 3)
  assert changed(picture) == (0, 0, 640, 640)


def test_labels_of_boxes_in_one_place_do_not_cover_each_other():
  box = [200.0, 200.0, 420.0, 420.0]
  alone = [draw([box], [k], [0.9]) for k in range(3)]
  colours = {tuple(picture[419, 300]) for picture in alone}
  assert len(colours) == 3
  together = draw([box] * 3, [0, 1, 2], [0.9, 0.8, 0.7])
  for colour, single in zip([tuple(p[419, 300]) for p in alone], alone, strict=True):
    label = (single[:200] == colour).all(axis=-1).sum()
    shown = (together == colour).all(axis=-1).sum()
    assert shown >= 0.95 * label


def test_the_best_detection_is_on_top():
  for scores in ([0.9, 0.2], [0.2, 0.9]):
    picture = draw([[100, 100, 300, 300]] * 2, [0, 1], scores)
    best = draw([[100, 100, 300, 300]], [int(np.argmax(scores))], [0.9])
    np.testing.assert_array_equal(picture[299, 200], best[299, 200])


def test_colours_of_classes_differ():
  names = [str(i) for i in range(12)]
  colours = []
  for label in range(12):
    picture = draw_detections(
      np.full((640, 640, 3), GREY, np.uint8),
      np.float32([[100, 100, 300, 300]]),
      np.int32([label]),
      np.float32([0.9]),
      names,
    )
    colours.append(picture[299, 200].astype(int))
  distances = [np.abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i]]
  assert min(distances) >= 60


def test_ground_truth_is_dashed_and_below_the_detections():
  truth = np.float64([[100, 100, 300, 300]])
  picture = draw(ground_truth=truth)
  assert changed(picture) == (100, 100, 300, 300)
  assert len(np.unique(picture[100, 100:300].reshape(-1, 3), axis=0)) == 2  # white and dark
  both = draw(truth, [0], [0.9], ground_truth=truth)
  np.testing.assert_array_equal(both, draw(truth, [0], [0.9]))


@pytest.mark.parametrize("size, factor", [((128, 128), 5), ((100, 300), 3), ((640, 480), 1), ((700, 900), 1)])
def test_small_images_are_enlarged(size, factor):
  picture = draw([[10, 40, 50, 90]], [0], [0.9], size=size)
  assert picture.shape == (size[0] * factor, size[1] * factor, 3)
  assert max(picture.shape) >= MIN_SIDE
  x1, _, _, y2 = changed(picture)
  assert (x1, y2) == (10 * factor, 90 * factor)


def test_boxes_outside_empty_or_inverted_are_drawn_at_the_border():
  boxes = [[-50, -50, 5, 5], [900, 900, 950, 950], [60, 60, 60, 60], [300, 300, 200, 200]]
  picture = draw(boxes, [0] * 4, [0.9] * 4)
  assert picture.shape == (640, 640, 3) and (picture[639, 639] != GREY).any()


def test_contact_sheet_shows_every_picture():
  pictures = [np.full((60 + 20 * k, 100, 3), 20 * k, np.uint8) for k in range(7)]
  sheet = contact_sheet(pictures, columns=3, cell=100)
  assert sheet.shape[1] == 3 * 100 + 4 * 8
  for k, picture in enumerate(pictures):
    scale = min(1, 100 / max(picture.shape[:2]))
    area = picture.shape[0] * picture.shape[1] * scale**2
    assert (sheet == 20 * k).all(axis=-1).sum() == pytest.approx(area, rel=0.02)
  assert contact_sheet(pictures[:1]).shape[1] == 480 + 16  # no empty columns
  with pytest.raises(ValueError, match="at least one image"):
    contact_sheet([])
