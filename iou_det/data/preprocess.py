"""Device side of the input, inside the step's jit: resize, flip, jitter, normalise, pad.

Per image this is one affine map per axis from network pixels to canvas pixels, sampled bilinearly with
half-pixel centres and clamped edges, as OpenCV's INTER_LINEAR does it: equal to it to 1e-3 of 255 in
float32; OpenCV's own uint8 path rounds and differs by up to one level.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


class Augment(NamedTuple):
  """Random changes of training images.

  Attributes:
    flip_horizontal, flip_vertical, transpose: probabilities; transposing needs a square input.
    scale_jitter: the size after resizing is multiplied by a factor drawn uniformly between these two; what
      then exceeds the input is cropped at a random place.
  """

  flip_horizontal: float = 0.0
  flip_vertical: float = 0.0
  transpose: float = 0.0
  scale_jitter: tuple[float, float] = (1.0, 1.0)


class Inputs(NamedTuple):
  """What the network and the losses see; boxes are x1, y1, x2, y2 in network pixels, exclusive ends."""

  images: Float[Array, "batch height width 3"]  # normalised; 0 in the padding
  boxes: Float[Array, "batch boxes 4"]
  labels: Int[Array, "batch boxes"]
  valid: Bool[Array, "batch boxes"]
  cropped: Int[Array, "batch"]  # boxes of which less than a pixel is left after cropping; no longer valid
  image_size: Int[Array, "batch 2"]  # height and width of the content, pixels
  scale: Float[Array, "batch 2"]  # network pixels per original pixel, y and x


def preprocess(
  batch: dict[str, Array],
  *,
  size: tuple[int, int],
  short: int,
  long: int,
  mean: tuple[float, float, float],
  std: tuple[float, float, float],
  convention: str,
  augment: Augment | None,
  key: Key[Array, ""] | None,
) -> Inputs:
  """Turns a batch of canvases into the network's input.

  Images are scaled by min(short / shorter side, long / longer side), sides rounded to whole pixels as
  mmdetection does.

  Args:
    batch: see `pipeline.train_batches`.
    size: height and width of the input, pixels.
    short, long: limits of the content's sides, pixels.
    mean, std: of the RGB channels, 0..255.
    convention: "legacy" scales inclusive corners (x2 - 1), as mmdetection 0.6; the others every edge.
    augment: None for evaluation.
    key: with each image's epoch and record index it gives that image's random numbers, wherever in
      whichever batch it is.
  """
  if augment is not None and key is None:
    raise ValueError("augmentation needs a key")
  inclusive = jnp.array([0.0, 0.0, 1.0, 1.0]) * (convention == "legacy")
  limit = jnp.array(size, jnp.float32)

  def one(image, image_size, original_size, boxes, valid, epoch, index):
    content = image_size.astype(jnp.float32)
    factor = jnp.minimum(short / content.min(), long / content.max())
    if augment is not None and key is not None:
      random = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, epoch), index), (6,))
      low, high = augment.scale_jitter
      factor *= low + (high - low) * random[3]
    resized = jnp.maximum(jnp.floor(content * factor + 0.5), 1.0)
    ratio = resized / content
    offset = jnp.zeros(2)
    if augment is not None:
      offset = jnp.floor(jnp.maximum(resized - limit, 0.0) * random[4:6])
    seen = jnp.minimum(resized, limit)

    boxes = (boxes - inclusive) * jnp.tile(ratio[::-1], 2) + inclusive - jnp.tile(offset[::-1], 2)
    y, x = jnp.arange(size[0], dtype=jnp.float32), jnp.arange(size[1], dtype=jnp.float32)
    if augment is not None:
      flip_x, flip_y = random[0] < augment.flip_horizontal, random[1] < augment.flip_vertical
      y = jnp.where(flip_y, seen[0] - 1 - y, y)
      x = jnp.where(flip_x, seen[1] - 1 - x, x)
      x1, y1, x2, y2 = boxes.T
      x1, x2 = jnp.where(flip_x, seen[1] - x2, x1), jnp.where(flip_x, seen[1] - x1, x2)
      y1, y2 = jnp.where(flip_y, seen[0] - y2, y1), jnp.where(flip_y, seen[0] - y1, y2)
      boxes = jnp.stack([x1, y1, x2, y2], axis=-1)

    pixels = _sample(image, (y + offset[0] + 0.5) / ratio[0] - 0.5, image_size[0])
    pixels = _sample(pixels.swapaxes(0, 1), (x + offset[1] + 0.5) / ratio[1] - 0.5, image_size[1])
    pixels = (pixels.swapaxes(0, 1) - jnp.array(mean)) / jnp.array(std)
    inside = (jnp.arange(size[0]) < seen[0])[:, None] & (jnp.arange(size[1]) < seen[1])
    pixels = jnp.where(inside[..., None], pixels, 0.0)

    cropped = jnp.zeros((), jnp.int32)
    if augment is not None:
      boxes = jnp.clip(boxes, 0.0, jnp.tile(seen[::-1], 2))
      if high > 1.0:
        left = valid & (boxes[:, 2:] - boxes[:, :2] >= 1.0).all(axis=-1)
        cropped, valid = (valid & ~left).sum(), left
      if augment.transpose:
        turn = random[2] < augment.transpose
        pixels = jnp.where(turn, pixels.swapaxes(0, 1), pixels)
        boxes = jnp.where(turn, boxes[:, jnp.array([1, 0, 3, 2])], boxes)
        seen = jnp.where(turn, seen[::-1], seen)
    scale = resized / original_size.astype(jnp.float32)
    boxes = jnp.where(valid[:, None], boxes, 0.0)
    return pixels, boxes, valid, cropped, seen.astype(jnp.int32), scale

  images, boxes, valid, cropped, image_size, scale = jax.vmap(one)(
    batch["image"], batch["image_size"], batch["original_size"], batch["boxes"], batch["valid"],
    batch["epoch"], batch["index"],
  )  # fmt: skip
  return Inputs(images, boxes, batch["labels"], valid, cropped, image_size, scale)


def _sample(rows: Array, position: Float[Array, "n"], length: Int[Array, ""]) -> Float[Array, "n ..."]:
  """Linear interpolation along the first axis at these positions, clamped to the first `length` rows."""
  position = jnp.clip(position, 0.0, length.astype(jnp.float32) - 1.0)
  first = jnp.floor(position)
  share = (position - first)[:, None, None]
  first = first.astype(jnp.int32)
  second = jnp.minimum(first + 1, length - 1)
  return rows[first].astype(jnp.float32) * (1.0 - share) + rows[second].astype(jnp.float32) * share
