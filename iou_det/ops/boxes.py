"""Boxes x1, y1, x2, y2 in pixels, x2 and y2 exclusive: area, IoU, box offsets and clipping."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Real


def area(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch"]:
  """Areas in square pixels; 0 for a box whose x2 < x1 or y2 < y1.

  Args:
    boxes: x1, y1, x2, y2 in pixels.
  """
  size = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
  return size[..., 0] * size[..., 1]


def iou(a: Float[Array, "*#batch 4"], b: Float[Array, "*#batch 4"]) -> Float[Array, "..."]:
  """Intersection over union of boxes, elementwise over the leading axes, which broadcast.

  Args:
    a: x1, y1, x2, y2 in pixels.
    b: the same.

  Returns:
    IoU in [0, 1]; 0 where the union is 0, with a finite gradient there too.
  """
  # One coordinate at a time, so that `pairwise_iou` never holds anything of shape n x m x 4.
  width = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0])
  height = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1])
  overlap = jnp.maximum(width, 0.0) * jnp.maximum(height, 0.0)
  union = area(a) + area(b) - overlap
  # The inner `where` keeps 0/0 out of the gradient, the outer one out of the value.
  return jnp.where(union > 0, overlap / jnp.where(union > 0, union, 1.0), 0.0)


def pairwise_iou(a: Float[Array, "*batch n 4"], b: Float[Array, "*batch m 4"]) -> Float[Array, "*batch n m"]:
  """IoU of every box of `a` with every box of `b`.

  Args:
    a: x1, y1, x2, y2 in pixels.
    b: the same.

  Returns:
    IoU in [0, 1]; 0 where the union is 0.
  """
  return iou(a[..., :, None, :], b[..., None, :, :])


def encode(boxes: Float[Array, "*#batch 4"], anchors: Float[Array, "*#batch 4"]) -> Float[Array, "... 4"]:
  """Offsets that turn anchors into boxes, arXiv:1506.01497 Eq. (2); leading axes broadcast.

  Args:
    boxes: x1, y1, x2, y2 in pixels, with positive width and height: an empty one has an infinite dw or dh.
    anchors: the same.

  Returns:
    dx, dy: shift of the centre in anchor widths and heights; dw, dh: log of the ratio of the sizes.
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
  """Boxes that lie at these offsets from the anchors: the inverse of `encode`; leading axes broadcast.

  Args:
    deltas: dx, dy, dw, dh as `encode` returns them.
    anchors: x1, y1, x2, y2 in pixels.
    max_log_ratio: dw and dh are clamped to [-max_log_ratio, max_log_ratio], so that an untrained
      network cannot overflow the exponential.

  Returns:
    x1, y1, x2, y2 in pixels, not clipped to the image.
  """
  anchor_size = anchors[..., 2:] - anchors[..., :2]
  centre = anchors[..., :2] + 0.5 * anchor_size + deltas[..., :2] * anchor_size
  half = 0.5 * anchor_size * jnp.exp(jnp.clip(deltas[..., 2:], -max_log_ratio, max_log_ratio))
  return jnp.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes: Float[Array, "*batch n 4"], size: Real[Array, "*batch 2"]) -> Float[Array, "*batch n 4"]:
  """Boxes cut at the image border.

  Args:
    boxes: x1, y1, x2, y2 in pixels.
    size: height, width of each image in pixels.

  Returns:
    Boxes with x in [0, width] and y in [0, height]; one that lies outside becomes empty.
  """
  limit = jnp.concatenate([size[..., ::-1], size[..., ::-1]], axis=-1).astype(boxes.dtype)
  return jnp.clip(boxes, 0.0, limit[..., None, :])
