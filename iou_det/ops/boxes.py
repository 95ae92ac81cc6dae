"""Boxes: area, IoU, offsets from anchors, clipping and mirroring."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Real


def area(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch"]:
  """Areas in square pixels; 0 for a box whose x2 < x1 or y2 < y1."""
  size = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
  return size[..., 0] * size[..., 1]


def iou(a: Float[Array, "*#batch 4"], b: Float[Array, "*#batch 4"]) -> Float[Array, "..."]:
  """Intersection over union of boxes, elementwise over the leading axes, which broadcast.

  It is 0 where the union is 0, with a finite gradient there too. Where coordinates are equal the slope is
  the mean of those on the two sides: 0 where the boxes are the same.
  """
  # One coordinate at a time, so that `pairwise_iou` never holds anything of shape n x m x 4.
  width = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0])
  height = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1])
  overlap = jnp.maximum(width, 0.0) * jnp.maximum(height, 0.0)
  union = area(a) + area(b) - overlap
  # The inner `where` keeps 0/0 out of the gradient, the outer one out of the value.
  return jnp.where(union > 0, overlap / jnp.where(union > 0, union, 1.0), 0.0)


def pairwise_iou(a: Float[Array, "*batch n 4"], b: Float[Array, "*batch m 4"]) -> Float[Array, "*batch n m"]:
  """IoU of every box of `a` with every box of `b`."""
  return iou(a[..., :, None, :], b[..., None, :, :])


def encode(boxes: Float[Array, "*#batch 4"], anchors: Float[Array, "*#batch 4"]) -> Float[Array, "... 4"]:
  """Offsets that turn anchors into boxes, arXiv:1506.01497 Eq. (2); leading axes broadcast.

  dx, dy: shift of the centre in anchor widths and heights; dw, dh: log of the ratio of the sizes, infinite
  for an empty box.
  """
  size, anchor_size = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
  shift = 0.5 * ((boxes[..., :2] - anchors[..., :2]) + (boxes[..., 2:] - anchors[..., 2:]))
  return jnp.concatenate([shift / anchor_size, jnp.log(size / anchor_size)], axis=-1)


def decode(
  deltas: Float[Array, "*#batch 4"],
  anchors: Float[Array, "*#batch 4"],
  *,
  max_log_ratio: float = math.log(1000 / 16),
) -> Float[Array, "... 4"]:
  """Boxes at these offsets from the anchors, not clipped to the image: the inverse of `encode`.

  dw and dh are clamped to [-max_log_ratio, max_log_ratio], so that an untrained network cannot overflow the
  exponential. Leading axes broadcast.
  """
  anchor_size = anchors[..., 2:] - anchors[..., :2]
  centre = anchors[..., :2] + 0.5 * anchor_size + deltas[..., :2] * anchor_size
  half = 0.5 * anchor_size * jnp.exp(jnp.clip(deltas[..., 2:], -max_log_ratio, max_log_ratio))
  return jnp.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes: Float[Array, "*batch n 4"], size: Real[Array, "*batch 2"]) -> Float[Array, "*batch n 4"]:
  """Boxes cut to x in [0, width] and y in [0, height]; one that lies outside becomes empty.

  Args:
    size: height, width of each image in pixels.
  """
  limit = jnp.concatenate([size[..., ::-1], size[..., ::-1]], axis=-1).astype(boxes.dtype)
  return jnp.clip(boxes, 0.0, limit[..., None, :])


def mirrored(boxes: Float[Array, "*batch n 4"], width: Real[Array, "*batch"]) -> Float[Array, "*batch n 4"]:
  """Boxes of an image of `width` pixels that is flipped from left to right."""
  x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
  width = width[..., None]
  return jnp.stack([width - x2, y1, width - x1, y2], axis=-1)
