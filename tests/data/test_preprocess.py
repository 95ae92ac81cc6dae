"""Resizing against OpenCV; flips, transposition and jitter move boxes with the pixels; legacy boxes."""

from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from iou_det.data.preprocess import _resized, preprocess
from iou_det.forms import ANY, Forms
from iou_det.ops.detection import unscale_boxes

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PRODUCTS = Forms(products=True)
NO_CHANGE = {"flip_horizontal": 0.0, "flip_vertical": 0.0, "transpose": 0.0, "scale_jitter": (1.0, 1.0)}
NO_CHANGE |= dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0) | {"rounding": "round"}


def make_batch(images, canvas, boxes=None, epochs=None, indices=None):
  """Canvases of images of any size; boxes [n, 4] of each in canvas pixels."""
  n = len(images)
  boxes = boxes or [np.zeros((0, 4))] * n
  rows = max(1, *map(len, boxes))
  batch = {
    "image": np.zeros((n, *canvas, 3), np.uint8),
    "image_size": np.array([i.shape[:2] for i in images], np.int32),
    "original_size": np.array([i.shape[:2] for i in images], np.int32),
    "boxes": np.zeros((n, rows, 4), np.float32),
    "labels": np.zeros((n, rows), np.int32),
    "valid": np.zeros((n, rows), bool),
    "index": np.array(indices if indices is not None else range(n), np.int32),
    "epoch": np.array(epochs if epochs is not None else [0] * n, np.int32),
    "seed": np.zeros(n, np.int32),
    "example": np.ones(n, bool),
  }
  for i, (image, own) in enumerate(zip(images, boxes, strict=True)):
    batch["image"][i, : image.shape[0], : image.shape[1]] = image
    batch["boxes"][i, : len(own)] = own
    batch["valid"][i, : len(own)] = True
  return {k: jnp.asarray(v) for k, v in batch.items()}


def run(batch, size, short, long, augment=None, convention="modern", seed=0, forms=ANY):
  batch = batch | {"seed": jnp.full_like(batch["index"], seed)}
  sizes = {"short": short, "long": long, "mean": MEAN, "std": STD}
  data = ConfigDict(sizes | NO_CHANGE | (augment or {}))
  f = lambda b: preprocess(b, data, size, convention, augment is not None, forms)
  return jax.device_get(jax.jit(f)(batch))


def pixels(images):
  """Back to 0..255."""
  return images * np.array(STD) + np.array(MEAN)


def linear(image, size):
  """Resizes in float64: half-pixel centres, clamped edges."""
  image = image.astype(np.float64)
  for axis in (0, 1):
    old, new = image.shape[axis], size[axis]
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    first = np.floor(at).astype(int)
    share = np.expand_dims(at - first, [1, 2] if axis == 0 else [0, 2])
    second = np.minimum(first + 1, old - 1)
    image = image.take(first, axis) * (1 - share) + image.take(second, axis) * share
  return image


@pytest.mark.parametrize("forms", [ANY, PRODUCTS], ids=["gathers", "products"])
@pytest.mark.parametrize(
  ("sizes", "canvas", "size", "short", "long"),
  [
    ([(60, 90), (47, 96), (64, 64)], (64, 96), (96, 128), 90, 120),  # up
    ([(60, 90), (47, 96), (61, 61)], (64, 96), (32, 64), 31, 50),  # down
    ([(90, 60), (96, 47)], (96, 64), (128, 96), 90, 120),  # portrait
    ([(427, 640), (480, 333)], (480, 640), (640, 640), 640, 640),  # at sizes where float32 positions round
  ],
)
def test_resize_is_opencvs(sizes, canvas, size, short, long, forms):
  rng = np.random.default_rng(0)
  images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in sizes]
  out = run(make_batch(images, canvas), size, short, long, forms=forms)
  for i, image in enumerate(images):
    h, w = image.shape[:2]
    s = min(short / min(h, w), long / max(h, w))
    new = int(h * s + 0.5), int(w * s + 0.5)
    np.testing.assert_array_equal(out.image_size[i], new)
    np.testing.assert_allclose(out.scale[i], [new[0] / h, new[1] / w], rtol=1e-6)
    ours = pixels(out.images[i])[: new[0], : new[1]]
    in_float = cv2.resize(image.astype(np.float32), new[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(ours, linear(image, new), atol=1e-3)
    np.testing.assert_allclose(ours, in_float, atol=1e-3 * 255)
    if max(new) <= 128:  # beyond, OpenCV's own positions have errors
      np.testing.assert_allclose(ours, in_float, atol=0.005)
    in_uint8 = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(ours - in_uint8).max() <= 1.0
    assert not out.images[i, new[0] :].any() and not out.images[i, :, new[1] :].any()


def one_rectangle(height=60, width=80, box=(12, 20, 40, 36)):
  image = np.zeros((height, width, 3), np.uint8)
  x1, y1, x2, y2 = box
  image[y1:y2, x1:x2] = 255
  return image, np.array([box], np.float32)


def recovered(image):
  """The bright rectangle's x1, y1, x2, y2."""
  bright = pixels(image)[..., 0] > 127
  rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
  return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize(
  "augment",
  [
    dict(flip_horizontal=1.0),
    dict(flip_vertical=1.0),
    dict(flip_horizontal=0.5, flip_vertical=0.5, transpose=0.5),
    dict(flip_horizontal=0.5, scale_jitter=(0.5, 1.6)),
  ],
  ids=["horizontal", "vertical", "all", "jitter"],
)
def test_boxes_follow_the_pixels(augment):
  image, box = one_rectangle()
  count = 24
  batch = make_batch([image] * count, (64, 80), [box] * count)
  out = run(batch, (96, 96), 72, 96, augment)
  seen = set()
  for i in range(count):
    if out.valid[i, 0]:
      np.testing.assert_allclose(out.boxes[i, 0], recovered(out.images[i]), atol=1.01)
      seen.add(tuple(np.round(out.boxes[i, 0])))
  assert out.valid.sum() + out.cropped.sum() == count
  assert len(seen) == 1 if 1.0 in augment.values() else len(seen) > 2


def test_products_give_the_same_as_gathers_whatever_is_changed_by_chance():
  augment = dict(flip_horizontal=0.5, flip_vertical=0.5, transpose=0.5, scale_jitter=(0.6, 1.6))
  augment |= dict.fromkeys(("brightness", "contrast", "saturation"), 0.4) | {"hue": 0.1}
  rng = np.random.default_rng(1)
  images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in [(60, 80), (64, 51), (33, 80)] * 4]
  batch = make_batch(images, (64, 80), [np.array([[3, 4, 30, 31]])] * len(images))
  gathered, multiplied = (run(batch, (96, 96), 72, 96, augment, forms=f) for f in (ANY, PRODUCTS))
  np.testing.assert_allclose(pixels(multiplied.images), pixels(gathered.images), atol=1e-3)
  for ours, theirs in zip(multiplied[1:], gathered[1:], strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_random_numbers_depend_on_seed_epoch_and_record_only():
  augment = dict(flip_horizontal=0.5, flip_vertical=0.5, transpose=0.5, scale_jitter=(0.7, 1.3))
  image, box = one_rectangle()

  def make(epochs, indices):
    n = len(epochs)
    return make_batch([image] * n, (64, 80), [box] * n, epochs, indices)

  first = run(make([3, 3, 3, 4], [7, 8, 9, 7]), (96, 96), 72, 96, augment)
  other = run(make([4, 3], [7, 9]), (96, 96), 72, 96, augment)
  np.testing.assert_array_equal(first.images[3], other.images[0])
  np.testing.assert_array_equal(first.boxes[2], other.boxes[1])
  assert (first.images[0] != first.images[3]).any()
  seeded = run(make([3, 3], [7, 8]), (96, 96), 72, 96, augment, seed=1)
  assert (first.images[0] != seeded.images[0]).any() and (first.images[1] != seeded.images[1]).any()


def test_boxes_cropped_away_are_counted_and_invalid():
  image, _ = one_rectangle()
  corner = np.array([[0, 0, 2, 2], [10, 10, 70, 50]], np.float32)
  batch = make_batch([image] * 16, (64, 80), [corner] * 16)
  out = run(batch, (64, 64), 64, 64, dict(scale_jitter=(2.0, 2.0)))
  assert out.cropped.sum() > 0
  np.testing.assert_array_equal(out.valid.sum(axis=1) + out.cropped, 2)
  assert (out.boxes[~out.valid] == 0).all()
  assert out.boxes.min() >= 0 and out.boxes.max() <= 64


def test_boxes_beyond_the_image_are_clipped_and_those_without_a_pixel_in_it_counted():
  image, _ = one_rectangle()
  boxes = np.array([[70, 50, 90, 64], [81, 10, 90, 20], [10, 10, 10.5, 20]], np.float32)
  out = run(make_batch([image], (64, 80), [boxes]), (64, 80), 60, 80, dict())
  # The second lies outside; the third is small, but not by clipping.
  assert out.valid.tolist() == [[True, False, True]] and out.cropped.tolist() == [1]
  np.testing.assert_allclose(out.boxes[0], [[70, 50, 80, 60], [0, 0, 0, 0], boxes[2]])


def test_transposition_needs_a_square_input():
  image, box = one_rectangle()
  with pytest.raises(ValueError, match="square input, got 96x128"):
    run(make_batch([image], (64, 80), [box]), (96, 128), 72, 96, dict(transpose=0.5))


def test_legacy_boxes_of_an_image_that_the_host_shrunk_scale_from_the_original():
  batch = make_batch([one_rectangle()[0]], (64, 80), [np.array([[10, 10, 30, 20]], np.float32)])
  batch["original_size"] = 2 * batch["image_size"]  # so the box was 20, 20, 60, 40
  out = run(batch, (96, 128), 90, 120, convention="legacy")
  np.testing.assert_allclose(out.scale[0], 0.75)
  np.testing.assert_allclose(out.boxes[0, 0], [20 * 0.75, 20 * 0.75, 59 * 0.75 + 1, 39 * 0.75 + 1], rtol=1e-6)
  back = unscale_boxes(jnp.asarray(out.boxes), jnp.asarray(out.scale), convention="legacy")
  np.testing.assert_allclose(back[0, 0], [20, 20, 60, 40], rtol=1e-6)


def test_legacy_scales_inclusive_corners():
  image, box = one_rectangle()
  out = run(make_batch([image], (64, 80), [box]), (128, 160), 120, 160, convention="legacy")
  x1, y1, x2, y2 = box[0]
  expected = [2 * x1, 2 * y1, 2 * (x2 - 1) + 1, 2 * (y2 - 1) + 1]
  np.testing.assert_allclose(out.boxes[0, 0], expected, rtol=1e-6)
  flip = run(make_batch([image], (64, 80), [box]), (128, 160), 120, 160, dict(flip_horizontal=1.0), "legacy")
  # mmdetection 0.6: x1' = width - 1 - x2 on inclusive corners.
  inclusive = [160 - 1 - 2 * (x2 - 1), 2 * y1, 160 - 1 - 2 * x1, 2 * (y2 - 1)]
  np.testing.assert_allclose(flip.boxes[0, 0], np.array(inclusive) + [0, 0, 1, 1], rtol=1e-6)


def test_transposition_swaps_the_size_of_the_content():
  image, box = one_rectangle()
  out = run(make_batch([image], (64, 80), [box]), (96, 96), 72, 96, dict(transpose=1.0))
  np.testing.assert_array_equal(out.image_size, [[96, 72]])
  np.testing.assert_allclose(out.boxes[0, 0], box[0][[1, 0, 3, 2]] * 1.2, rtol=1e-6)


# --- sizes as torchvision's ---


def resized(sizes, short, long, rounding):
  return jax.jit(jax.vmap(lambda size: _resized(size, short, long, rounding)))(sizes.astype(np.int32))


@pytest.mark.parametrize("short, long", [(800, 1333), (160, 256), (17, 4096)])
def test_floored_sizes_are_those_of_doubles(short, long):
  """int(side * min(short / shorter, long / longer)): in doubles some whole products come out below it."""
  sizes = np.stack(np.meshgrid(np.r_[1:4096:41, 4096], np.arange(1, 4097)), axis=-1).reshape(-1, 2)
  smaller, larger = sizes.min(axis=1), sizes.max(axis=1)
  factor = np.minimum(short / smaller, long / larger)  # float64
  expected = np.maximum((sizes * factor[:, None]).astype(int), 1)
  np.testing.assert_array_equal(resized(sizes, short, long, "floor"), expected)
  exact = np.minimum(sizes * short // smaller[:, None], sizes * long // larger[:, None])
  assert (expected < exact).any()


def test_floored_sizes_are_torchvisions():
  with np.load(Path(__file__).parent.parent / "golden" / "detectors.npz") as file:
    sizes = file["sizes"].astype(np.int32)
  for column, target in ((2, (800, 1333)), (4, (160, 256))):
    wanted = sizes[:, column : column + 2]
    np.testing.assert_array_equal(resized(sizes[:, :2], *target, "floor"), wanted)
    assert (resized(sizes[:, :2], *target, "round") != wanted).any(axis=1).mean() > 0.3
  assert sizes[-4].tolist()[:4] == [387, 387, 799, 799]
