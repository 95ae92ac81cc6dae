"""The embedded data set: the same on every call, boxes tight around what is drawn, hidden parts limited."""

import hashlib
import pickle

import cv2
import numpy as np
import pytest

from iou_det.data import open_dataset
from iou_det.data.plan import TrainingFilter, scan
from iou_det.data.shapes import MIN_VISIBLE, NAMES, UNITS, Shapes, arrange, export_coco
from iou_det.data.source import Source, corners
from iou_det.errors import UserError

COLUMNS = ("boxes", "labels", "crowd", "area", "annotation_id")


def same(a, b) -> bool:
  return a.image == b.image and all(np.array_equal(getattr(a, c), getattr(b, c)) for c in COLUMNS)


def decode(record) -> np.ndarray:
  return cv2.imdecode(np.frombuffer(record.image, np.uint8), cv2.IMREAD_COLOR)


def scenes(count, height=128, width=160):
  return [arrange(height, width, 0.0, np.random.default_rng(i)) for i in range(count)]


def test_a_source_with_the_documented_defaults():
  train, val = open_dataset("shapes", "train"), open_dataset("shapes", "val")
  assert isinstance(train, Source)
  assert (len(train), len(val), train.name, val.name) == (4000, 500, "shapes/train", "shapes/val")
  assert [(c.id, c.name) for c in train.categories] == list(enumerate(NAMES, 1))
  with pytest.raises(UserError, match="no split 'tset'; there are: train, val, test"):
    open_dataset("shapes", "tset")
  with pytest.raises(UserError, match="31x64"):
    Shapes("val", height=64, width=31).source()


def test_records_follow_from_seed_split_and_index_alone():
  source = Shapes("train", images=50).source()
  again = Shapes("train", images=9).source()
  assert all(same(source[i], again[i]) for i in (8, 0, 3))
  assert same(source[-1], source[49])
  others = [Shapes("val", images=1).source(), Shapes("train", images=1, seed=1).source()]
  assert not any(np.array_equal(source[0].boxes, other[0].boxes) for other in others)
  assert not np.array_equal(source[0].boxes, source[1].boxes)
  with pytest.raises(IndexError):
    source[50]


def test_pixels_and_boxes_never_change():
  """A changed data set makes earlier numbers incomparable."""
  r = Shapes("train", images=3, encoding="png").source()[2]
  assert hashlib.sha256(decode(r).tobytes()).hexdigest()[:16] == "0104a27629b64824"
  assert hashlib.sha256(r.boxes.tobytes()).hexdigest()[:16] == "ed85b125450dbbfb"


def test_annotations_equal_the_records():
  source = Shapes("val", images=30, portrait_share=0.5).source()
  a = source.annotations
  for i in range(len(source)):
    r, rows = source[i], a.rows(i)
    assert decode(r).shape == (r.height, r.width, 3) == (a.height[i], a.width[i], 3)
    assert (r.image_id, r.file_name) == (a.image_id[i], a.file_name[i])
    np.testing.assert_array_equal(r.boxes, corners(a.bbox[rows]))
    for column, expected in (("labels", a.label), ("area", a.area), ("annotation_id", a.annotation_id)):
      np.testing.assert_array_equal(getattr(r, column), expected[rows])
  assert r.file_name.endswith(".jpg")
  assert len(np.unique(a.annotation_id)) == len(a.annotation_id)
  assert set(zip(a.height.tolist(), a.width.tolist(), strict=True)) == {(128, 160), (160, 128)}


@pytest.mark.parametrize(("height", "width"), [(128, 160), (64, 96), (40, 40)])
def test_boxes_lie_inside_and_sizes_suit_the_image(height, width):
  source = Shapes("train", images=200, height=height, width=width).source()
  a = source.annotations
  boxes = corners(a.bbox)
  assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
  longer = a.bbox[:, 2:].max(axis=1)
  assert longer.min() >= 20 - 0.2 and longer.max() <= min(80, 0.6 * min(height, width)) + 0.2
  assert (a.area > 0.15 * a.bbox[:, 2] * a.bbox[:, 3]).all() and (a.area <= a.bbox[:, 2] * a.bbox[:, 3]).all()
  assert set(np.diff(a.first)) <= set(range(1, 7)) and set(a.label) == set(range(4))
  assert scan(source, TrainingFilter()).usable.all()


def test_boxes_and_areas_fit_the_drawn_pixels():
  for shape in [shape for scene in scenes(60) for shape in scene.shapes]:
    polygon = shape.polygon / UNITS
    x1, y1, _, _ = shape.window()
    cover = shape.cover()
    rows, columns = np.flatnonzero(cover.any(axis=1)), np.flatnonzero(cover.any(axis=0))
    drawn = np.array([columns[0] + x1, rows[0] + y1, columns[-1] + 1 + x1, rows[-1] + 1 + y1])
    assert np.abs(drawn - np.concatenate([polygon.min(axis=0), polygon.max(axis=0)])).max() <= 1
    area = cv2.contourArea(polygon.astype(np.float32))
    perimeter = cv2.arcLength(polygon.astype(np.float32), True)
    assert abs(cover.sum() / 255 - area) < 0.3 * perimeter  # the outline adds up to a quarter pixel
    assert abs(shape.mask().sum() - area) < 0.4 * perimeter


def test_ellipses_are_ellipses():
  """The 64 corners lie on an ellipse whose extents, found from its moments, are those of the box."""
  ellipses = [s for scene in scenes(40) for s in scene.shapes if NAMES[s.label] == "ellipse"]
  assert len(ellipses) > 10
  for shape in ellipses:
    points = shape.polygon / UNITS
    # The corners are cos and sin under a linear map, so twice their variance is the half extent squared.
    half = np.sqrt(2 * points.var(axis=0))
    np.testing.assert_allclose(half, np.ptp(points, axis=0) / 2, atol=0.1)
    np.testing.assert_allclose(points.mean(axis=0), points.min(axis=0) + half, atol=0.1)


def test_every_shape_stays_visible():
  hidden = 0
  for scene in scenes(60):
    owner = np.zeros((scene.height, scene.width), int)
    sizes = []
    for number, shape in enumerate(scene.shapes, 1):
      x1, y1, x2, y2 = shape.window()
      mask = shape.mask()
      owner[y1:y2, x1:x2][mask] = number
      sizes.append(mask.sum())
    visible = np.bincount(owner.ravel(), minlength=len(sizes) + 1)[1:] / sizes
    assert (visible >= MIN_VISIBLE).all()
    hidden += (visible < 1).sum()
  assert hidden > 20  # overlaps do occur


def test_shapes_stand_out_from_what_was_there_before():
  """In the middle of the topmost shape colours vary less than in the whole image."""
  source = Shapes("train", images=30).source()
  inside, outside = [], []
  for i in range(30):
    r = source[i]
    pixels = decode(r).astype(float)
    x1, y1, x2, y2 = r.boxes[-1].astype(int)
    cx, cy = (x1 + x2) // 2, (y1 + y2) // 2
    inside.append(pixels[cy - 2 : cy + 3, cx - 2 : cx + 3].std(axis=(0, 1)).mean())
    outside.append(pixels.std(axis=(0, 1)).mean())
  assert np.median(inside) < 0.6 * np.median(outside)


def test_exported_folders_hold_the_same_records(tmp_path):
  for split in ("train", "val"):
    shapes = Shapes(split, images=6, height=64, width=96)
    export_coco(shapes, tmp_path)
    source, copy = shapes.source(), open_dataset(tmp_path, split)
    assert len(copy) == 6 and copy.categories == source.categories
    for i in range(6):
      assert same(source[i], copy[i])
      assert source[i].file_name == copy[i].file_name and source[i].image_id == copy[i].image_id


def test_sources_survive_pickling():
  source = Shapes("val", images=3, height=64, width=96, seed=5).source()
  copy = pickle.loads(pickle.dumps(source))
  assert len(copy) == 3 and all(same(source[i], copy[i]) for i in range(3))
