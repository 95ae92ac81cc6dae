"""What the exported programs share: from pixels of any size to candidates, and a description."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, UInt8
from ml_collections import ConfigDict

from iou_det.data.source import Category
from iou_det.models.retinanet import RetinaNet
from iou_det.network import look
from iou_det.ops.detection import Candidates


def find(
  config: ConfigDict, model: RetinaNet, variables: PyTree, images: UInt8[Array, "b h w 3"]
) -> list[Candidates]:
  """What enters NMS, for each view; number and size of the images may be unknown when this is traced.

  Images that exceed `data.canvas` are shrunk as the pipeline does.
  """

  def oriented(portrait, variables, images):
    count, size = images.shape[0], height_and_width(images)
    canvas, fitted = fit(images, size, config.data.canvas[::-1] if portrait else config.data.canvas)
    batch = {
      "image": canvas,
      "image_size": jnp.broadcast_to(fitted, (count, 2)),
      "original_size": jnp.broadcast_to(size, (count, 2)),
      "boxes": jnp.zeros((count, 1, 4)),
      "labels": jnp.zeros((count, 1), jnp.int32),
      "valid": jnp.zeros((count, 1), bool),
    }
    outputs, candidates = look(config, model, None, variables, batch, portrait)
    return candidates(outputs)

  # The variables are operands, so that both branches share the file's one copy.
  branches = partial(oriented, True), partial(oriented, False)
  height, width = height_and_width(images)
  return jax.lax.cond(height > width, *branches, jax.tree.map(jnp.asarray, variables), images)


def height_and_width(images: UInt8[Array, "b h w 3"]) -> Int[Array, "2"]:
  return jnp.stack([jnp.int32(images.shape[1]), jnp.int32(images.shape[2])])


def fit(
  images: UInt8[Array, "b h w 3"], size: Int[Array, "2"], canvas: tuple[int, int]
) -> tuple[Float[Array, "b h2 w2 3"], Int[Array, "2"]]:
  """`pipeline.fit` and `Stack` for sizes that are known at run time: images on canvases, and their new size.

  Each pixel is the mean of the area that it covers, rounded, by one matrix for rows and one for columns; for
  images that are not shrunk they are unit matrices.
  """
  room = jnp.array(canvas)
  by_width = room[0] * size[1] > room[1] * size[0]
  numerator, denominator = jnp.where(by_width, room[1], room[0]), jnp.where(by_width, size[1], size[0])
  whole, rest = size * numerator // denominator, size * numerator % denominator
  up = (2 * rest > denominator) | ((2 * rest == denominator) & (whole % 2 == 1))  # as Python's round
  shrunk = jnp.clip(whole + up, 1, room)
  new = jnp.where(numerator < denominator, shrunk, size)
  rows = _shares(canvas[0], images.shape[1], new[0], size[0])
  columns = _shares(canvas[1], images.shape[2], new[1], size[1])
  contract = partial(jax.lax.dot_general, precision=jax.lax.Precision.HIGHEST)
  pixels = contract(rows, images.astype(jnp.float32), (((1,), (1,)), ((), ())))  # [h2, b, w, 3]
  pixels = contract(columns, pixels, (((1,), (2,)), ((), ()))).transpose(2, 1, 0, 3)
  return jnp.round(pixels), new


def _shares(room: int, side: Any, new: Int[Array, ""], old: Int[Array, ""]) -> Float[Array, "room side"]:
  """Of which part of each of `side` pixels each of `room` pixels is made, if `old` are shrunk to `new`."""
  at, source = (jax.lax.broadcasted_iota(jnp.float32, (room, side), axis) for axis in (0, 1))
  overlap = jnp.minimum((at + 1) * old / new, source + 1) - jnp.maximum(at * old / new, source)
  return jnp.where(at < new, jnp.maximum(overlap, 0.0) * new / old, 0.0)


def describe(categories: Sequence[Category]) -> dict[str, str]:
  """What a user of a program has to know, as strings; `categories` is JSON."""
  return {
    "format": "iou-det program 1",
    "categories": json.dumps([{"label": i, "id": c.id, "name": c.name} for i, c in enumerate(categories)]),
    "images": "uint8 [batch, height, width, 3], RGB",
    "boxes": "float32 [batch, max, 4], x1, y1, x2, y2 in pixels of the given image; x2, y2 exclusive",
    "scores": "float32 [batch, max] in [0, 1], falling",
    "labels": "int32 [batch, max], see categories",
    "valid": "bool [batch, max], false in the rows behind the last detection, where all else is 0",
  }
