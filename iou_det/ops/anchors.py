"""Anchor boxes of a feature pyramid in the conventions of three code bases.

With base size b = scale * stride * 2^(octave / octaves), ratio r = height / width, width b / sqrt(r) and
height b * sqrt(r), the conventions differ in rounding and in where cell (row, column)'s anchors lie:

  modern       detectron2, mmdetection 2 and later: not rounded, centred at (column, row) * stride.
  legacy       mmdetection 0.6, the paper's: inclusive boxes (width x2 - x1 + 1), rounded to whole pixels,
               centred at (column, row) * stride + (stride - 1) / 2. Given here as exclusive boxes.
  torchvision  b cut to an integer, half width and height rounded, centred at (column, row) * step, where
               step is image size // cells: less than a stride that does not divide the image size.

Anchors are ordered by level, row, column, ratio, octave in all three, as in mmdetection and torchvision.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

CONVENTIONS = ("modern", "legacy", "torchvision")


def level_shapes(size: tuple[int, int], strides: Sequence[int]) -> tuple[tuple[int, int], ...]:
  """Height and width in cells of each pyramid level of an input of `size` (height, width) pixels."""
  return tuple((math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for stride in strides)


def anchors(
  size: tuple[int, int],
  *,
  strides: Sequence[int] = (8, 16, 32, 64, 128),
  scale: float = 4.0,
  octaves: int = 3,
  ratios: Sequence[float] = (0.5, 1.0, 2.0),
  convention: str = "modern",
) -> Float[np.ndarray, "anchors 4"]:
  """Anchors of all levels, float32, computed on the host: constants of the program.

  Args:
    size: height, width of the network's input in pixels.
    strides: pixels per cell of each level.
    scale: side of a level's smallest square anchor in strides.
    octaves: anchor sizes per level, each 2^(1/octaves) times the one before.
    ratios: height / width of the anchors.
    convention: see the module's head.
  """
  if convention not in CONVENTIONS:
    raise ValueError(f"anchor convention {convention!r} is not known; use one of {', '.join(CONVENTIONS)}")
  levels = []
  for stride, (rows, columns) in zip(strides, level_shapes(size, strides), strict=True):
    step_y, step_x = stride, stride
    if convention == "torchvision":
      step_y, step_x = size[0] // rows, size[1] // columns
    x, y = np.meshgrid(np.arange(columns) * step_x, np.arange(rows) * step_y)
    shifts = np.stack([x, y, x, y], axis=-1)[:, :, None, :]
    base = _cell_anchors(stride, scale, octaves, ratios, convention)
    levels.append((shifts + base).reshape(-1, 4))
  return np.concatenate(levels).astype(np.float32)


def by_anchor(levels: Sequence[Float[Array, "b _ _ _"]], values: int) -> Float[Array, "b anchors values"]:
  """A network's outputs, [b, rows, columns, cell's anchors * values] for each level, in the anchors' order.

  In float32, as all that is computed of boxes.
  """
  rows = [level.reshape(level.shape[0], -1, values) for level in levels]
  return jnp.concatenate(rows, axis=1).astype(jnp.float32)


def _cell_anchors(
  stride: int, scale: float, octaves: int, ratios: Sequence[float], convention: str
) -> Float[np.ndarray, "cell_anchors 4"]:
  """Anchors of the cell at row 0, column 0, ordered by ratio, octave."""
  sides = scale * stride * 2.0 ** (np.arange(octaves) / octaves)
  if convention == "torchvision":
    sides = np.floor(sides)
  roots = np.sqrt(np.asarray(ratios, np.float64))[:, None]
  wh = np.stack([sides / roots, sides * roots], axis=-1).reshape(-1, 2)
  if convention == "modern":
    return np.concatenate([-wh / 2, wh / 2], axis=-1)
  if convention == "torchvision":
    return np.round(np.concatenate([-wh / 2, wh / 2], axis=-1))
  centre = (stride - 1) / 2
  inclusive = np.round(np.concatenate([centre - (wh - 1) / 2, centre + (wh - 1) / 2], axis=-1))
  return inclusive + [0, 0, 1, 1]


def inside_padded_image(
  size: tuple[int, int],
  image_size: Int[Array, "*batch 2"],
  *,
  strides: Sequence[int],
  anchors_per_cell: int,
) -> Bool[Array, "*batch anchors"]:
  """Anchors in cells that cover the image padded to a multiple of 32, in the order of `anchors`.

  mmdetection pads each image to a multiple of 32, then the batch to its largest image, and leaves the
  anchors in the second padding out of the loss.

  Args:
    size, image_size: height, width of the network's input, and of each image's content, in pixels.
    strides: pixels per cell of each level.
  """
  padded = -(-image_size // 32) * 32
  levels = []
  for stride, (rows, columns) in zip(strides, level_shapes(size, strides), strict=True):
    cells = -(-padded // stride)
    row = jnp.arange(rows) < cells[..., 0, None]
    column = jnp.arange(columns) < cells[..., 1, None]
    inside = row[..., :, None] & column[..., None, :]
    levels.append(inside.reshape(*image_size.shape[:-1], rows * columns))
  return jnp.repeat(jnp.concatenate(levels, axis=-1), anchors_per_cell, axis=-1)
