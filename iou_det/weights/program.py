"""What the exported programs (StableHLO, ONNX) share: their network, their input as a batch, their description."""

import json
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped
from ml_collections import ConfigDict

from iou_det.data.source import Category
from iou_det.models.retinanet import RetinaNet


def portable(config: ConfigDict, model: RetinaNet) -> RetinaNet:
  """The network in float32 unless the config insists on bfloat16: "auto" would be about this machine."""
  return model.clone(dtype=jnp.bfloat16 if config.model.dtype == "bfloat16" else jnp.float32)


def as_batch(
  images: Shaped[Array, "b h w 3"], image_size: Int[Array, "b 2"], original_size: Int[Array, "b 2"]
) -> dict[str, Array]:
  """A batch as the pipeline makes it, of images (0 to 255) top left in their canvases, without boxes."""
  count = images.shape[0]
  return {
    "image": images,
    "image_size": image_size,
    "original_size": original_size,
    "boxes": jnp.zeros((count, 1, 4)),
    "labels": jnp.zeros((count, 1), jnp.int32),
    "valid": jnp.zeros((count, 1), bool),
  }


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
