"""A step on the parts of a batch, one after another, that is a step on the whole, whatever its loss.

Our losses are no sums over images: their normalisers, the sums of Eq. (2) and (5) and the ranks of the
compared losses run over the batch. (optax.MultiSteps averages the gradients of parts whose normalisers
are their own: that is another loss.) So the network is run on all parts first, the loss is taken of all their
outputs at once, and its gradient with respect to these is pulled back through each part. That costs one
more forward, a third more FLOPs; held at once are one part's images and activations, and the outputs of
the whole.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from iou_det.data.preprocess import Inputs
from iou_det.errors import UserError
from iou_det.models.retinanet import RetinaNet
from iou_det.network import forward, network_inputs
from iou_det.parallel import BATCH, split_batch

# Of a batch, by level: what a `RetinaNet` returns.
Outputs = tuple[list[Float[Array, "batch _ _ _"]], ...]


def split_parts(batch: PyTree, parts: int, mesh: Mesh) -> PyTree:
  """Arrays whose rows are split over the mesh -> [parts, rows of a part, ...]; each device keeps its rows."""
  shares = mesh.size

  def split(x):
    if x.shape[0] % (parts * shares):
      raise UserError(
        f"a step of {x.shape[0]} images cannot be cut into config.train.accumulate={parts} parts that are "
        f"split evenly over {shares} devices; allowed are multiples of {parts * shares}"
      )
    x = x.reshape(shares, parts, -1, *x.shape[1:]).swapaxes(0, 1)
    x = x.reshape(parts, -1, *x.shape[3:])
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, BATCH)))

  return jax.tree.map(split, batch)


def join_parts(parts: PyTree, mesh: Mesh) -> PyTree:
  """The inverse of `split_parts`: the rows of the whole, in the order that they had."""
  shares = mesh.size

  def join(x):
    number, rows, *rest = x.shape
    x = x.reshape(number, shares, rows // shares, *rest).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(x.reshape(number * rows, *rest), split_batch(mesh))

  return jax.tree.map(join, parts)


def unrolled(mesh: Mesh) -> bool:
  """Whether the parts stand one behind the other in the program, instead of in a loop.

  Only on a CPU: there XLA has no fast gradient of a convolution inside a loop (8 times the time of a step was
  measured), nor of one whose loop it takes away itself. A program without the loop holds the activations of
  several parts, though.
  """
  return mesh.devices.flat[0].platform == "cpu"


def over_parts(step: Callable[..., Any], start: PyTree, parts: PyTree, mesh: Mesh) -> tuple[PyTree, PyTree]:
  """`jax.lax.scan`, which would make a loop of a single part too, unrolled or not."""
  if jax.tree.leaves(parts)[0].shape[0] == 1:
    total, out = step(start, jax.tree.map(lambda x: x[0], parts))
    return total, jax.tree.map(lambda x: x[None], out)
  return jax.lax.scan(step, start, parts, unroll=unrolled(mesh))


def network_outputs(
  config: ConfigDict,
  model: RetinaNet,
  variables: PyTree,
  batch: dict[str, Array],
  portrait: bool,
  mesh: Mesh,
) -> tuple[Inputs, Outputs]:
  """What a whole batch is compared with and what the network puts out, by config.train.accumulate parts.

  The float images are left out (of height and width 0): only one part's are there at a time.
  """

  def run(_, part):
    inputs = network_inputs(config, part, portrait, mesh, train=True)[0]
    outputs = forward(model, variables, inputs.images, mesh)
    return None, (inputs._replace(images=inputs.images[:, :0, :0]), outputs)

  parts = split_parts(batch, config.train.accumulate, mesh)
  inputs, outputs = join_parts(over_parts(run, None, parts, mesh)[1], mesh)
  return inputs, outputs


def pull_back(
  config: ConfigDict,
  model: RetinaNet,
  variables: PyTree,
  whole: tuple[dict[str, Array], Outputs],
  portrait: bool,
  mesh: Mesh,
) -> PyTree:
  """The gradient of the parameters from that of the whole batch's outputs, summed up part by part.

  On several devices each part's is exchanged as that of a step of its own would be.

  Args:
    whole: the batch, and the loss's gradient with respect to its outputs.
  """

  def add(total, part):
    rows, cotangents = part
    images = network_inputs(config, rows, portrait, mesh, train=True)[0].images
    apply = lambda params: forward(model, variables | {"params": params}, images, mesh)
    (gradient,) = jax.vjp(apply, variables["params"])[1](cotangents)
    return jax.tree.map(jnp.add, total, gradient), None

  start = jax.tree.map(jnp.zeros_like, variables["params"])
  parts = split_parts(whole, config.train.accumulate, mesh)
  return over_parts(add, start, parts, mesh)[0]
