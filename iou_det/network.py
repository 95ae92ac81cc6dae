"""What a config stands for: its network, what that sees of a batch, and the candidates that it finds there.

Training, evaluation, prediction and export share what is here.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree
from ml_collections import ConfigDict, FrozenConfigDict

from iou_det.config import evaluation_views, input_size, strides
from iou_det.data.preprocess import Inputs, mirrored, preprocess
from iou_det.forms import forms
from iou_det.models.retinanet import RetinaNet
from iou_det.ops import anchors as anchor_ops
from iou_det.ops.detection import Candidates, find_candidates
from iou_det.parallel import BATCH


def make_model(config: ConfigDict, num_classes: int) -> RetinaNet:
  """The network that a config describes; bfloat16 compute on accelerators if dtype is "auto"."""
  auto = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
  dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}.get(config.model.dtype, auto)
  anchors_per_cell = config.anchors.octaves * len(config.anchors.ratios)
  return RetinaNet(FrozenConfigDict(config.model), num_classes, anchors_per_cell, dtype)


def variable_shapes(config: ConfigDict, num_classes: int) -> PyTree:
  """Shapes and types of a network's variables, {"params": ..., "batch_stats": ...}."""
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)  # they do not depend on its size
  model = make_model(config, num_classes)
  return {"batch_stats": {}, **jax.eval_shape(model.init, jax.random.key(0), images)}


def forward(
  model: RetinaNet, variables: PyTree, images: Float[Array, "b h w 3"], mesh: Mesh | None
) -> tuple[list[Float[Array, "b _ _ _"]], ...]:
  """What a `RetinaNet` returns, see there."""
  model = model.clone(forms=forms(mesh))
  if mesh is None or mesh.size == 1:
    outputs: Any = model.apply(variables, images)
    return outputs

  def on_device(variables, images):
    # Made different on each device once, for all uses: so gradients are summed over the levels that share the
    # heads before they are exchanged.
    variables = jax.lax.pcast(variables, BATCH, to="varying")
    return model.apply(variables, images)

  batch = PartitionSpec(BATCH)
  split = jax.shard_map(on_device, mesh=mesh, in_specs=(PartitionSpec(), batch), out_specs=batch)
  return split(variables, images)


def make_anchors(
  config: ConfigDict, size: tuple[int, int]
) -> tuple[Float[Array, "anchors 4"], tuple[int, ...]]:
  """Anchors (x1, y1, x2, y2 pixels) of an input of `size` (height, width) and their number per level."""
  anchors = anchor_ops.anchors(size, strides=strides(config), **config.anchors)
  per_cell = config.anchors.octaves * len(config.anchors.ratios)
  shapes = anchor_ops.level_shapes(size, strides(config))
  return jnp.asarray(anchors), tuple(h * w * per_cell for h, w in shapes)


def anchors_inside(
  config: ConfigDict, image_size: Int[Array, "b 2"], portrait: bool
) -> Bool[Array, "b anchors"] | None:
  """Anchors that take part; None: all. mmdetection 0.6 ("legacy") leaves out those that lie beyond the image
  padded to a multiple of 32: its losses mask them, and alone in its batch, as it is tested, no image has any.

  Args:
    image_size: height and width of the images' content, network pixels.
  """
  if config.anchors.convention != "legacy":
    return None
  return anchor_ops.inside_padded_image(
    input_size(config, portrait),
    image_size,
    strides=strides(config),
    anchors_per_cell=config.anchors.octaves * len(config.anchors.ratios),
  )


def network_inputs(
  config: ConfigDict, batch: dict[str, Array], portrait: bool, mesh: Mesh | None, *, train: bool
) -> tuple[Inputs, Float[Array, "anchors 4"], tuple[int, ...]]:
  """What the network sees of a batch of the pipeline, its anchors and their number per level.

  Args:
    train: with the config's augmentation, by the batch's seed.
  """
  size = input_size(config, portrait)
  inputs = preprocess(batch, config.data, size, config.anchors.convention, train, forms(mesh))
  return inputs, *make_anchors(config, size)


def look(
  config: ConfigDict,
  model: RetinaNet,
  mesh: Mesh | None,
  variables: PyTree,
  batch: dict[str, Array],
  portrait: bool,
) -> tuple[list[tuple[Any, ...]], Callable[[list[tuple[Any, ...]]], list[Candidates]]]:
  """The network's outputs for every view of a batch of the pipeline, and what makes candidates of them.

  In two, because the second runs for each device by itself. Inside jit; `suppress` ends it.

  Args:
    mesh: None for one device that need not be of this process: an exported program's.
  """
  find: list[Callable[..., Candidates]] = []
  outputs: list[tuple[Any, ...]] = []
  for view, mirror in evaluation_views(config):
    inputs, anchors, _ = network_inputs(view, batch, portrait, mesh, train=False)
    inputs = mirrored(inputs) if mirror else inputs
    logits, deltas, *ious = forward(model, variables, inputs.images, mesh)
    outputs.append((logits, deltas, anchors, inputs.image_size, inputs.scale, *ious))

    def find_in(*outputs, view=view, mirror=mirror) -> Candidates:
      return find_candidates(
        *outputs,
        inside=anchors_inside(view, outputs[3], portrait),
        convention=config.anchors.convention,
        candidates_per_level=config.eval.candidates_per_level,
        mirror=mirror,
      )

    find.append(find_in)
  return outputs, lambda outputs: [f(*view) for f, view in zip(find, outputs, strict=True)]


def suppression(e: ConfigDict, mesh: Mesh | None) -> dict[str, Any]:
  """The arguments of `suppress`: those in the section `eval`, and the NMS that suits the mesh's devices.

  Args:
    mesh: None for a program that must suit any platform.
  """
  names = ("score_threshold", "nms_iou", "max_detections", "nms", "class_agnostic")
  return {name: e[name] for name in names} | {"nms_block": forms(mesh).nms_block}
