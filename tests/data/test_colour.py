"""Colour augmentation against loops over pixels with colorsys, torchvision's own output and identities."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from iou_det.data.colour import change_colour, jitter_colour, turn_hue
from iou_det.data.preprocess import preprocess
from tests import oracle_colour
from tests.data.test_preprocess import make_batch, pixels, run

GOLDEN = Path(__file__).parents[1] / "golden" / "colour.npz"
NAMES = ("brightness", "contrast", "saturation", "hue")
ALL = dict(brightness=0.6, contrast=0.5, saturation=1.4, hue=0.5)
SIZES = [(12, 16), (9, 16), (12, 11)]


def draw(size, seed=0):
  """Random colours, with grey, black, white and pure ones among them."""
  image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  image[0, :6] = [[0, 0, 0], [255] * 3, [90] * 3, [255, 0, 0], [0, 255, 0], [0, 0, 255]]
  image[1, :6] = [[255, 255, 0], [0, 255, 255], [255, 0, 255], [7, 7, 9], [9, 7, 7], [200, 200, 10]]
  return image


def drawn_amounts(augment, epoch, index, seed=0):
  """Factor or turns of each step of a record, None where it is off: the documented random numbers."""
  key = jax.random.key(seed)
  for number in (epoch, index, 1):
    key = jax.random.fold_in(key, number)
  amounts = []
  for name, u in zip(NAMES, np.float64(jax.random.uniform(key, (4,))), strict=True):
    b = augment.get(name, 0.0)
    low, high = (-b, b) if name == "hue" else (max(0.0, 1 - b), 1 + b)
    amounts.append(low + u * (high - low) if b else None)
  return amounts


@pytest.mark.parametrize("augment", [ALL, dict(contrast=2.0)], ids=str)
def test_is_the_loop_over_pixels_of_the_content(augment):
  images = [draw(size, seed) for seed, size in enumerate(SIZES)]
  epochs, indices = [3, 3, 5], [7, 11, 7]
  batch = make_batch(images, (16, 20), epochs=epochs, indices=indices)
  plain, out = (run(batch, (32, 32), 12, 16, a) for a in (None, augment))
  assert np.abs(pixels(out.images) - pixels(plain.images)).max() > 20
  for i in range(len(images)):
    h, w = out.image_size[i]  # the second and third are enlarged
    expected = oracle_colour.jitter(
      pixels(plain.images[i])[:h, :w], *drawn_amounts(augment, epochs[i], indices[i])
    )
    np.testing.assert_allclose(pixels(out.images[i])[:h, :w], expected, atol=2e-3)
    assert not out.images[i, h:].any() and not out.images[i, :, w:].any()


def test_is_torchvisions():
  golden = np.load(GOLDEN)
  image = jnp.float32(golden["image"])
  change = jax.jit(lambda factors: change_colour(image, jnp.ones(image.shape[:2], bool), *factors))
  for factors, expected in zip(golden["factors"], golden["changed"], strict=True):
    np.testing.assert_allclose(change(tuple(jnp.float32(factors))), expected, atol=2e-3)
    loop = oracle_colour.jitter(image, *factors)
    np.testing.assert_allclose(loop, expected, atol=2e-3)  # the reference of the other tests


def test_flips_and_crops_keep_their_random_numbers():
  image = draw((12, 16))
  batch = make_batch([image] * 12, (12, 16), [np.array([[1, 2, 9, 8]], np.float32)] * 12)
  moves = dict(flip_horizontal=0.5, flip_vertical=0.5, transpose=0.5, scale_jitter=(0.5, 1.6))
  before = run(batch, (32, 32), 24, 32, moves)
  after = run(batch, (32, 32), 24, 32, moves | ALL)
  for name in ("boxes", "valid", "cropped", "image_size", "scale"):
    np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)
  # The mean of a cropped image is that of what is left: flips and crops come first.
  for i in range(12):
    h, w = before.image_size[i]
    expected = oracle_colour.jitter(pixels(before.images[i])[:h, :w], *drawn_amounts(ALL, 0, i))
    np.testing.assert_allclose(pixels(after.images[i])[:h, :w], expected, atol=2e-3)


def test_factors_are_uniform_between_their_bounds():
  pixel, inside = jnp.full((1, 1, 3), 100.0), jnp.ones((1, 1), bool)
  keys = jax.random.split(jax.random.key(0), 400)
  for b, low, high in ((0.4, 0.6, 1.4), (1.3, 0.0, 2.3)):
    data = ConfigDict(dict.fromkeys(NAMES, 0.0) | dict(brightness=b))
    brighter = jax.jit(jax.vmap(lambda key, data=data: jitter_colour(pixel, inside, data, key)))(keys)
    factors = np.asarray(brighter)[:, 0, 0, 0] / 100
    assert low - 1e-4 <= factors.min() and factors.max() <= high + 1e-4
    np.testing.assert_allclose(np.histogram(factors, 4, (low - 1e-4, high + 1e-4))[0], 100, atol=35)


def test_grey_stays_grey_and_a_whole_turn_is_none():
  grey = np.repeat(np.random.default_rng(0).uniform(0, 255, (8, 8, 1)), 3, axis=-1)
  inside = jnp.ones((8, 8), bool)
  jitter = jax.jit(lambda key: jitter_colour(jnp.float32(grey), inside, ConfigDict(ALL), key))
  for seed in range(5):
    out = jitter(jax.random.key(seed))
    np.testing.assert_array_equal(out[..., 1:], np.asarray(out[..., :1]).repeat(2, axis=-1))
    assert np.ptp(out) > 50
  image = jnp.float32(draw((12, 16)))
  turn = jax.jit(turn_hue)
  for turns in (0.0, 1.0, -1.0):
    np.testing.assert_allclose(turn(image, jnp.float32(turns)), image, atol=1e-3)
  third = turn(image, jnp.float32(1 / 3))  # red becomes green
  np.testing.assert_allclose(third, np.asarray(image)[..., [2, 0, 1]], atol=1e-3)


def test_evaluation_changes_no_colour():
  batch = make_batch([draw((12, 16))], (12, 16))
  data = ConfigDict(ALL | dict(short=12, long=16, mean=(0.0,) * 3, std=(1.0,) * 3, rounding="round"))
  out = jax.jit(lambda b: preprocess(b, data, (32, 32), "modern"))(batch)
  np.testing.assert_array_equal(out.images[0, :12, :16], draw((12, 16)))
