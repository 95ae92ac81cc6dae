"""A detector as one StableHLO program that runs where only jax and flatbuffers are installed.

detect = jax.jit(jax.export.deserialize(bytearray(pathlib.Path(FILE).read_bytes())).call)
boxes, scores, labels, valid = detect(images)
"""

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import PyTree
from ml_collections import ConfigDict

from iou_det.models.retinanet import RetinaNet
from iou_det.network import suppression
from iou_det.ops.detection import suppress
from iou_det.weights.program import find

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(config: ConfigDict, model: RetinaNet, variables: PyTree) -> bytes:
  """A detector, from pixels to boxes, as what `jax.export.deserialize` reads; weights and settings inside.

  The program takes `images`, uint8 [b, h, w, 3], RGB, of any number and any size (one size in a call), and
  returns what `Detector.step` finds in them: boxes float32 [b, max, 4] x1, y1, x2, y2 in the images' pixels,
  scores float32, labels int32 and valid bool [b, max]. It is compiled for each shape of `images` once, for
  the CPU, CUDA or TPU that it is called on, with the precision that convolutions have there by default.

  The network computes in float32 unless the config says bfloat16: "auto" would be about this machine.
  """
  model = model.clone(dtype=jnp.bfloat16 if config.model.dtype == "bfloat16" else jnp.float32)

  def program(images):
    return tuple(suppress(find(config, model, variables, images), **suppression(config.eval, None)))

  images = jax.ShapeDtypeStruct((*export.symbolic_shape("b, h, w"), 3), jnp.uint8)
  return bytes(export.export(jax.jit(program), platforms=PLATFORMS)(images).serialize())
