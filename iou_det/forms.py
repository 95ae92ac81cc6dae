"""Which form of a computation suits a platform, where they are equal but for rounding.

Chosen here alone, but for two: a ReLU's gradient (`iou_det.models.layers`) asks the compiler, for no module
knows the mesh; whether parts of a batch stand in a loop, `training.accumulate.unrolled`.
"""

from typing import NamedTuple

from jax.sharding import Mesh

from iou_det.ops.nms import BLOCK


class Forms(NamedTuple):
  """As they are: for a CPU, and for a program that must suit any platform."""

  nms_block: int | None = None  # pairs that NMS judges at once; None: one after another
  # Whether matrix products pick, spread and resize. A TPU gathers row by row, and every other shape of the
  # class logits is a copy through padded tiles of 128 lanes; a GPU's gathers are fused into what uses them.
  products: bool = False
  stem_block: int = 2  # pixels a side of the stem's blocks, see `models.resnet.stem_convolution`
  # Axes of a convolution's kernel (window, inputs, outputs) from the outermost in memory; None: as they are.
  # cuDNN takes kernels and gives their gradients with outputs first: else each step turns each.
  kernel_order: tuple[int, ...] | None = None


ANY = Forms()
BY_PLATFORM = {
  "gpu": Forms(nms_block=BLOCK, kernel_order=(3, 0, 1, 2)),
  "tpu": Forms(products=True, stem_block=4),
}


def forms(mesh: Mesh | None) -> Forms:
  """Those that suit a mesh's devices; None: any."""
  return ANY if mesh is None else BY_PLATFORM.get(mesh.devices.flat[0].platform, ANY)
