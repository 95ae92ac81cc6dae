"""Anchors against loops, torchvision's generator and values worked by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iou_det.ops import anchors as ops
from tests import oracles

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "ops.npz")
STRIDES = (8, 16, 32, 64, 128)


def test_level_shapes_round_up_like_strided_convolutions():
  assert ops.level_shapes((800, 1333), STRIDES) == ((100, 167), (50, 84), (25, 42), (13, 21), (7, 11))
  for n in range(1, 300):  # each convolution of stride 2 and padding 1 halves, rounding up
    halved, expected = n, []
    for level in range(1, 8):
      halved = (halved - 1) // 2 + 1
      expected += [halved] if level >= 3 else []
    assert [h for h, _ in ops.level_shapes((n, 1), STRIDES)] == expected


@pytest.mark.parametrize("convention", ops.CONVENTIONS)
@pytest.mark.parametrize("size", [(64, 96), (70, 33)])
def test_equals_the_loops(convention, size):
  settings = {"strides": (8, 32), "scale": 4.0, "octaves": 3, "ratios": (0.5, 1.0, 2.0)}
  got = ops.anchors(size, **settings, convention=convention)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, oracles.anchors(size, **settings, convention=convention), atol=1e-4)


@pytest.mark.parametrize("convention", ops.CONVENTIONS)
def test_other_scales_octaves_and_ratios_equal_the_loops(convention):
  settings = {"strides": (4, 16), "scale": 3.0, "octaves": 2, "ratios": (0.25, 1.0, 3.0, 4.0)}
  got = ops.anchors((40, 24), **settings, convention=convention)
  np.testing.assert_allclose(got, oracles.anchors((40, 24), **settings, convention=convention), atol=1e-4)


def test_defaults_are_retinanet_of_torchvision():
  size = tuple(int(x) for x in GOLDEN["anchors_size"])
  np.testing.assert_array_equal(ops.anchors(size, convention="torchvision"), GOLDEN["anchors"])


def test_modern_cell_worked_by_hand():
  """Width and height of the 3 octaves at ratio 1/2, 1, 2 around the corner of the first cell."""
  cell = ops.anchors((8, 8), strides=(8,))
  cube = 2 ** (1 / 3)
  for ratio, (w, h) in enumerate([(32 * 2**0.5, 16 * 2**0.5), (32, 32), (16 * 2**0.5, 32 * 2**0.5)]):
    for octave in range(3):
      w2, h2 = w * cube**octave / 2, h * cube**octave / 2
      np.testing.assert_allclose(cell[3 * ratio + octave], [-w2, -h2, w2, h2], rtol=1e-6)


def test_legacy_cell_worked_by_hand():
  """The square of stride 8 is 32 pixels about 3.5: inclusive -12..19; at ratio 1/2, 45.25 x 22.63."""
  cell = ops.anchors((8, 8), strides=(8,), convention="legacy")
  np.testing.assert_array_equal(cell[3], [-12, -12, 19 + 1, 19 + 1])
  np.testing.assert_array_equal(cell[0], [-19, -7, 26 + 1, 14 + 1])
  np.testing.assert_array_equal(cell[6], [-7, -19, 14 + 1, 26 + 1])


@pytest.mark.parametrize("convention", ["modern", "legacy"])
def test_cells_are_strides_apart_in_row_major_order(convention):
  grid = ops.anchors((24, 40), strides=(8,), convention=convention).reshape(3, 5, 9, 4)
  right, down = grid[:, 1:] - grid[:, :-1], grid[1:] - grid[:-1]
  np.testing.assert_allclose(right, np.broadcast_to([8, 0, 8, 0], right.shape), atol=1e-4)
  np.testing.assert_allclose(down, np.broadcast_to([0, 8, 0, 8], down.shape), atol=1e-4)


def test_levels_follow_each_other():
  levels = [ops.anchors((64, 96), strides=(stride,)) for stride in STRIDES]
  np.testing.assert_array_equal(ops.anchors((64, 96)), np.concatenate(levels))
  assert [len(level) for level in levels] == [9 * h * w for h, w in ops.level_shapes((64, 96), STRIDES)]


def test_unknown_convention_names_the_known_ones():
  with pytest.raises(ValueError, match=r"'mmdet' is not known; use one of modern, legacy, torchvision"):
    ops.anchors((64, 64), convention="mmdet")


def test_cells_inside_the_padded_image():
  """33 x 65 is padded to 64 x 96; 128 x 160 fills the input."""
  inside = jax.jit(lambda s: ops.inside_padded_image((128, 160), s, strides=STRIDES, anchors_per_cell=2))(
    jnp.array([[33, 65], [128, 160]])
  )
  shapes = ops.level_shapes((128, 160), STRIDES)
  assert shapes == ((16, 20), (8, 10), (4, 5), (2, 3), (1, 2))
  covered = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
  expected = []
  for (rows, columns), (h, w) in zip(shapes, covered, strict=True):
    grid = np.zeros((rows, columns, 2), bool)
    grid[:h, :w] = True
    expected.append(grid.reshape(-1))
  np.testing.assert_array_equal(inside[0], np.concatenate(expected))
  assert np.all(inside[1])


def test_cells_inside_have_the_order_of_the_anchors():
  size, image = (64, 128), jnp.array([32, 64])
  centres = ops.anchors(size, strides=(8, 16), octaves=1, ratios=(1.0,))
  x, y = centres[:, 0] + centres[:, 2], centres[:, 1] + centres[:, 3]
  inside = ops.inside_padded_image(size, image, strides=(8, 16), anchors_per_cell=1)
  np.testing.assert_array_equal(inside, (x / 2 < 64) & (y / 2 < 32))
