"""A detector as one ONNX program, by jax2onnx, which runs where only onnxruntime and numpy are installed.

session = onnxruntime.InferenceSession(FILE)
boxes, scores, labels, valid = session.run(None, {"images": images})
about = session.get_modelmeta().custom_metadata_map  # categories, what the arrays mean
"""

import logging
from collections.abc import Sequence
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from iou_det.data.source import Category
from iou_det.errors import UserError
from iou_det.models import resnet
from iou_det.models.retinanet import RetinaNet
from iou_det.weights.files import library
from iou_det.weights.program import describe, find

# From boxes of n candidates and scores of n x k pairs to detections. What NMS keeps goes back to its place in
# them, so that equal scores come out in the order of `iou_det.ops.nms`: by box, then by class.
SUPPRESSION = """
<ir_version: {version}, opset_import: ["" : {opset}]>
suppression (float[1, n, 4] found, float[1, n, k] pairs, int32[1, n] best)
  => (float[1, {rows}, 4] boxes, float[1, {rows}] scores, int32[1, {rows}] labels, bool[1, {rows}] valid)
  <int64[1] most = {{{most}}}, float[1] iou = {{{iou}}}, float[1] threshold = {{{threshold}}},
   float zero = {{0}}, int32 none = {{0}}, int64[1] first = {{0}}, int64[1] last = {{2}},
   int64[2] line = {{1, -1}}, int64[1] rows = {{{rows}}}, int64 k = {{{classes}}}>
{{
  by_class = Transpose <perm = [0, 2, 1]> (pairs)
  shape = Shape (by_class)
  nothing = ConstantOfShape (shape)
  {kept}
  by_box = Transpose <perm = [0, 2, 1]> (kept)
  in_line = Reshape (by_box, line)
  scores, place = TopK <axis = 1> (in_line, rows)
  valid = Greater (scores, zero)
  box = Div (place, k)
  box_of_image = Squeeze (box, first)
  box_of_row = Gather <axis = 1> (found, box_of_image)
  valid_of_row = Unsqueeze (valid, last)
  boxes = Where (valid_of_row, box_of_row, zero)
  {label}
  labels = Where (valid, label, none)
}}
"""
KEPT = {
  "hard": """picked = NonMaxSuppression (found, by_class, most, iou, threshold)
  picked_scores = GatherND (by_class, picked)
  kept = ScatterND (nothing, picked, picked_scores)""",
  "none": """above = Greater (by_class, threshold)
  kept = Where (above, by_class, nothing)""",
}
LABEL = {
  False: "remainder = Mod (place, k)\n  label = Cast <to = 6> (remainder)",  # 6: int32
  True: "label = GatherElements <axis = 1> (best, box)",
}


def to_onnx(
  config: ConfigDict, model: RetinaNet, variables: PyTree, categories: Sequence[Category], card: str = ""
) -> bytes:
  """A detector, from pixels to boxes, as an ONNX file; weights and settings inside, computed in float32.

  The program takes `images`, uint8 [1, h, w, 3], one RGB image of any size, and returns what `Detector.step`
  finds in it: boxes float32 [1, max, 4] x1, y1, x2, y2 in its pixels, scores float32, labels int32 and valid
  bool [1, max]. Its metadata say so, and what the labels are, and hold a model card.

  Raises:
    UserError: jax2onnx is not installed, or the config wants soft-NMS, which ONNX has no operator for.
  """
  e = config.eval
  if e.nms not in KEPT:
    raise UserError(
      f"config.eval.nms={e.nms!r} cannot be written as ONNX, only 'hard' and 'none'; give --nms=hard, or "
      "export StableHLO"
    )
  install = "'iou-det[onnx]', see docs/python.md"
  onnx, jax2onnx = library("onnx", install), library("jax2onnx", install)
  for name in ("jax2onnx", "onnx_ir"):  # hundreds of lines on libraries that it could also convert from
    logging.getLogger(name).setLevel(logging.ERROR)
  model = model.clone(dtype=jnp.float32)

  def candidates(images):
    def max_pool(x):  # jax2onnx drops the padding of JAX's in silence; behind a ReLU 0 is none
      x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
      return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="VALID")

    with mock.patch.object(resnet, "max_pool", max_pool):
      views = find(config, model, variables, images)
    boxes, scores = (jnp.concatenate(parts, axis=1) for parts in zip(*views, strict=True))
    if not e.class_agnostic:
      return boxes, scores
    return boxes, jnp.max(scores, axis=2, keepdims=True), jnp.argmax(scores, axis=2).astype(jnp.int32)

  names = ["found", "pairs", "best"][: 3 if e.class_agnostic else 2]
  images = jax.ShapeDtypeStruct((1, *jax.export.symbolic_shape("h, w"), 3), jnp.uint8)
  jax.clear_caches()  # it replaces functions of JAX while it traces: no trace outlives that, on either side
  try:
    first = jax2onnx.to_onnx(candidates, [images], input_names=["images"], output_names=names)
  finally:
    jax.clear_caches()
  share_weights(first.graph)
  pairs: Any = next(output for output in first.graph.output if output.name == "pairs")
  _, count, classes = (dim.dim_value for dim in pairs.type.tensor_type.shape.dim)
  second = onnx.parser.parse_model(
    SUPPRESSION.format(
      version=first.ir_version,
      opset=first.opset_import[0].version,
      rows=min(e.max_detections, count * classes),
      most=e.max_detections,
      iou=e.nms_iou,
      threshold=e.score_threshold,
      classes=classes,
      kept=KEPT[e.nms],
      label=LABEL[e.class_agnostic],
    )
  )
  if not e.class_agnostic:
    del second.graph.input[2]
  whole = onnx.compose.merge_models(first, second, [(name, name) for name in names])
  onnx.helper.set_model_props(whole, describe(categories) | {"model_card": card})
  onnx.checker.check_model(whole)
  return whole.SerializeToString()


def share_weights(graph: Any) -> None:
  """Branches read the weights of `graph` themselves, not through copies: onnxruntime loses some of these."""
  weights = {tensor.name for tensor in graph.initializer}
  is_copy = lambda node: node.op_type == "Identity" and node.input[0] in weights
  for branch in (a.g for node in graph.node if node.op_type == "If" for a in node.attribute):
    copies = {node.output[0]: node.input[0] for node in branch.node if is_copy(node)}
    others = [node for node in branch.node if not is_copy(node)]
    for node in others:
      node.input[:] = [copies.get(name, name) for name in node.input]
    del branch.node[:]
    branch.node.extend(others)
