"""A detector as one StableHLO program that runs where only jax and flatbuffers are installed.

detect = jax.jit(jax.export.deserialize(pathlib.Path(FILE).read_bytes()).call)
boxes, scores, labels, valid = detect(images)
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, Int, PyTree, UInt8
from ml_collections import ConfigDict

from iou_det.detector import look, suppression
from iou_det.models.retinanet import RetinaNet
from iou_det.ops.detection import suppress
from iou_det.weights.program import as_batch, portable

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(config: ConfigDict, model: RetinaNet, variables: PyTree) -> bytes:
  """A detector, from pixels to boxes, as what `jax.export.deserialize` reads; weights and settings inside.

  The program takes `images`, uint8 [b, h, w, 3], RGB, of any number and any size (one size in a call), and
  returns what `Detector.step` finds in them: boxes float32 [b, max, 4] x1, y1, x2, y2 in pixels of the images,
  scores float32, labels int32 and valid bool [b, max]. It is compiled once for each shape of `images`, for the
  CPU, CUDA or TPU that it is called on. Images that exceed `data.canvas` are shrunk as the pipeline does.
  """
  model = portable(config, model)

  def program(images):
    count, height, width, _ = images.shape
    size = jnp.stack([jnp.int32(height), jnp.int32(width)])

    def detect(variables, images, portrait):
      pixels, image_size = fit(images, size, config.data.canvas[::-1] if portrait else config.data.canvas)
      sizes = (jnp.broadcast_to(s, (count, 2)) for s in (image_size, size))
      outputs, find = look(config, model, None, variables, as_batch(pixels, *sizes), portrait)
      return tuple(suppress(find(outputs), **suppression(config.eval)))

    # The variables are operands, so that both branches share the file's one copy.
    branches = (lambda *x: detect(*x, True)), (lambda *x: detect(*x, False))
    return jax.lax.cond(size[0] > size[1], *branches, variables, images)

  images = jax.ShapeDtypeStruct((*export.symbolic_shape("b, h, w"), 3), jnp.uint8)
  return bytes(export.export(jax.jit(program), platforms=PLATFORMS)(images).serialize())


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
