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
from iou_det.detector import look
from iou_det.models.retinanet import RetinaNet
from iou_det.ops.detection import Candidates


def find(
  config: ConfigDict, model: RetinaNet, variables: PyTree, images: UInt8[Array, "b h w 3"]
) -> list[Candidates]:
  """What enters NMS, for each view; number and size of the images may be unknown when this is traced.

  The network computes in float32 unless the config says bfloat16: "auto" would be about this machine. Images
  that exceed `data.canvas` are shrunk as the pipeline does.
  """
  model = model.clone(dtype=jnp.bfloat16 if config.model.dtype == "bfloat16" else jnp.float32)
  count, height, width, _ = images.shape
  size = jnp.stack([jnp.int32(height), jnp.int32(width)])

  def oriented(portrait, variables, images):
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
  return jax.lax.cond(size[0] > size[1], *branches, jax.tree.map(jnp.asarray, variables), images)


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
  shrunk = jnp.clip(jnp.round(size * numerator / denominator).astype(jnp.int32), 1, room)
  new = jnp.where(numerator < denominator, shrunk, size)
  precision = jax.lax.Precision.HIGHEST
  rows = _shares(canvas[0], images.shape[1], new[0], size[0])
  columns = _shares(canvas[1], images.shape[2], new[1], size[1])
  pixels = jnp.einsum("yh,bhwc->bywc", rows, images.astype(jnp.float32), precision=precision)
  pixels = jnp.einsum("xw,bywc->byxc", columns, pixels, precision=precision)
  return jnp.round(pixels), new


def _shares(room: int, side: Any, new: Int[Array, ""], old: Int[Array, ""]) -> Float[Array, "room side"]:
  """Of which part of each of `side` pixels each of `room` pixels is made, if `old` are shrunk to `new`."""
  at, source = jnp.arange(room)[:, None], jnp.arange(side)
  overlap = jnp.minimum((at + 1) * old / new, source + 1) - jnp.maximum(at * old / new, source)
  return jnp.where(at < new, jnp.maximum(overlap, 0.0) * new / old, 0.0)


def describe(categories: Sequence[Category], **more: Any) -> dict[str, str]:
  """What a user of a program has to know; each value a string, ONNX has no other. `categories` is JSON."""
  return {
    "format": "iou-det program 1",
    "categories": json.dumps([{"label": i, "id": c.id, "name": c.name} for i, c in enumerate(categories)]),
    "images": "uint8 [batch, height, width, 3], RGB, 0 to 255",
    "boxes": "float32 x1, y1, x2, y2 in pixels of the given image; x2, y2 exclusive",
    "scores": "float32 in [0, 1], falling; 0 in rows that are not valid",
    "labels": "int32, the categories' labels; 0 in rows that are not valid",
    "valid": "bool, False in the rows behind the last detection",
    **{name: str(value) for name, value in more.items()},
  }
