"""RetinaNets of torchvision, mmdetection and detectron2: which one a file is, and the same detector here.

What each entry of FORMATS says was read in these files of the foreign project, whose published detectors it
describes; a file holds tensors only, so what it was trained with beyond them cannot be checked.

  torchvision     models/detection/retinanet.py: retinanet_resnet50_fpn(_v2); transform.py, anchor_utils.py
  mmdetection     configs/_base_/models/retinanet_r50_fpn.py, dense_heads/retina_head.py, necks/fpn.py (2, 3).
                  Its Caffe-style detectors (BGR, stride in the 1x1) have the same names and are others.
  detectron2      configs/Base-RetinaNet.yaml, config/defaults.py, modeling/meta_arch/retinanet.py,
                  anchor_generator.py, backbone/fpn.py, backbone/resnet.py
"""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from flax import traverse_util
from jaxtyping import PyTree
from ml_collections import ConfigDict

from iou_det.config import base_config, strides
from iou_det.data.source import Category
from iou_det.errors import UserError
from iou_det.models.layers import EPS
from iou_det.models.resnet import BLOCKS, ResNet
from iou_det.network import variable_shapes
from iou_det.ops.anchors import anchors
from iou_det.weights.coco_classes import COCO_80, COCO_91, NONE
from iou_det.weights.files import UNNEEDED, TensorFile, read_tensors
from iou_det.weights.pretrained import from_torch
from iou_det.weights.saved import Saved

CONSTANTS = {  # that the config holds
  "anchors": r"anchor_generator\.cell_anchors\.\d+",
  "pixel mean and std": r"pixel_(mean|std)",
}
ANCHORS = 9  # of a cell, three sizes by three ratios in all four

Rules = tuple[tuple[str, str | Callable[[re.Match], str]], ...]  # for re.sub, one after the other


class Format(NamedTuple):
  """A foreign detector.

  Attributes:
    signs: names of tensors that only it has.
    names: turn the name that our variables have (ResNet.torch_name of the path) into the foreign one.
    older: turn names of older releases into today's.
    settings: "a.b" of the config -> value, where it is not the default.
    differs: what fine-tuning does otherwise there, sentences for the user.
    p6_by_shape: P6 is made from P5 if that fits its kernel, else from C5 (as the config says).
    detectron2: the order of its anchors is octave, ratio, and its images are BGR.
  """

  signs: tuple[str, ...]
  names: Rules
  settings: dict[str, Any]
  differs: str
  older: Rules = ()
  p6_by_shape: bool = False
  detectron2: bool = False


def place(m: re.Match) -> str:
  """Level 3, 4, ... as place 0, 1, ... in a list."""
  return str(int(m[2]) - 3)


TORCHVISION = Format(
  signs=("head.classification_head.cls_logits.weight", "head.classification_head.conv.0.0.weight"),
  names=(
    (r"^backbone\.", "backbone.body."),
    (r"^fpn\.(inner|layer)\.(\d)", lambda m: f"backbone.fpn.{m[1]}_blocks.{place(m)}.0"),
    (r"^fpn\.", "backbone.fpn.extra_blocks."),
    (r"^(\w+_head\.)conv\.(\d)", r"head.\1conv.\2.0"),
    (r"^(\w+_head\.)norm\.(\d)", r"head.\1conv.\2.1"),
    (r"^classification_head\.output", "head.classification_head.cls_logits"),
    (r"^regression_head\.output", "head.regression_head.bbox_reg"),
  ),
  older=(
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),
    (r"^(head\.\w+_head\.conv)\.([0246])\.(weight|bias)$", lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}"),
  ),
  settings={
    "model.p7_relu": True,
    "anchors.convention": "torchvision",
    "match.forced_target": "best",
    "loss.average": "image",
    "loss.localization": "l1",
    "data.rounding": "floor",
    "eval.max_detections": 300,
  },
  p6_by_shape=True,
  differs="torchvision keeps scale and bias of the norms constant in fine-tuning; here they train behind the "
  "frozen stages.",
)
FORMATS = {
  "torchvision": TORCHVISION,
  "torchvision_v2": TORCHVISION._replace(
    signs=("head.classification_head.cls_logits.weight", "head.classification_head.conv.0.1.weight"),
    settings=TORCHVISION.settings | {"model.head_norm": "gn", "loss.localization": "giou"},
    differs="Its batch norm, which torchvision trains live, is frozen here; its GroupNorm heads see the "
    "padding, so scores depend a little on data.short and data.long.",
  ),
  "mmdetection": Format(
    signs=("bbox_head.retina_cls.weight",),
    names=(
      (r"^fpn\.(inner)\.(\d)", lambda m: f"neck.lateral_convs.{place(m)}.conv"),
      (r"^fpn\.(layer\.|p)(\d)", lambda m: f"neck.fpn_convs.{place(m)}.conv"),
      (r"^classification_head\.conv\.(\d)", r"bbox_head.cls_convs.\1.conv"),
      (r"^regression_head\.conv\.(\d)", r"bbox_head.reg_convs.\1.conv"),
      (r"^classification_head\.output", "bbox_head.retina_cls"),
      (r"^regression_head\.output", "bbox_head.retina_reg"),
    ),
    settings={"anchors.convention": "modern", "loss.localization": "l1"},
    differs="A Caffe-style detector (BGR images) has the same names and would be wrong here.",
  ),
  "detectron2": Format(
    signs=("backbone.bottom_up.stem.conv1.weight", "head.cls_score.weight"),
    names=(
      (r"^backbone\.(conv1|bn1)\.", r"backbone.stem.\1."),
      (r"^backbone\.layer(\d)\.", lambda m: f"backbone.res{int(m[1]) + 1}."),
      (r"^backbone\.", "backbone.bottom_up."),
      (r"\.bn(\d)\.", r".conv\1.norm."),
      (r"\.downsample\.0\.", ".shortcut."),
      (r"\.downsample\.1\.", ".shortcut.norm."),
      (r"^fpn\.inner\.", "backbone.fpn_lateral"),
      (r"^fpn\.layer\.", "backbone.fpn_output"),
      (r"^fpn\.", "backbone.top_block."),
      (r"^classification_head\.conv\.(\d)", lambda m: f"head.cls_subnet.{2 * int(m[1])}"),
      (r"^regression_head\.conv\.(\d)", lambda m: f"head.bbox_subnet.{2 * int(m[1])}"),
      (r"^classification_head\.output", "head.cls_score"),
      (r"^regression_head\.output", "head.bbox_pred"),
    ),
    older=((r"^(bottom_up\.|fpn_|top_block\.)", r"backbone.\1"),),
    settings={
      "model.stride_in_1x1": True,
      "model.p7_relu": True,
      "anchors.convention": "modern",
      "match.forced_target": "best",
      "loss.localization": "l1",  # SMOOTH_L1_LOSS_BETA is 0
      "data.std": (1.0, 1.0, 1.0),
    },
    differs="detectron2 keeps scale and bias of the norms constant in fine-tuning (here they train behind "
    "the frozen stages), divides the losses by a running mean of the positives, and shrinks images with "
    "antialiasing.",
    detectron2=True,
  ),
}


def read_foreign(
  source: str | Path,
  key: str | None = None,
  *,
  annotated: tuple[Category, ...] = (),
  norm_eps: float | None = None,
) -> Saved:
  """The detector in a foreign file, see `convert`; `key` None: of the format that it looks like."""
  try:
    file = read_tensors(source)
    key = key or recognise(file.tensors)
    if key is None:
      raise UserError(f"by the names of its tensors it is none of {', '.join(FORMATS)}")
    return convert(file, key, annotated=annotated, norm_eps=norm_eps)
  except UserError as error:
    raise UserError(f"{source}: {error}") from error.__cause__


def recognise(names: Collection[str]) -> str | None:
  """The key of FORMATS that tensors of these names are, or None."""
  for key, form in reversed(FORMATS.items()):  # a V2 of torchvision has the signs of V1 too
    if {renamed(name, form.older) for name in names}.issuperset(form.signs):
      return key
  return None


def renamed(name: str, rules: Rules) -> str:
  for pattern, replacement in rules:
    name = re.sub(pattern, replacement, name)
  return name


def convert(
  file: TensorFile,
  key: str,
  *,
  annotated: tuple[Category, ...] = (),
  norm_eps: float | None = None,
) -> Saved:
  """The detector of this project that computes what the foreign one of format `key` does.

  Depth, widths and number of classes are the tensors'; everything else is that of the published detectors.

  Args:
    annotated: categories of the data that it was trained on; () for COCO's.
    norm_eps: that the foreign batch norm adds to variances, 1e-5 if None; but 0 for "torchvision" (its
      builder sets it for the published file), unless the file has the counters of a live batch norm. Another
      one than ours is absorbed exactly: scale * sqrt((var + 1e-5) / (var + norm_eps)).

  Raises:
    UserError: the tensors are not exactly that detector's, or its categories are not known.
  """
  form, seen = FORMATS[key], recognise(file.tensors)
  if seen != key:
    looks = f"looks like {seen}" if seen else f"is a RetinaNet of none of {', '.join(FORMATS)}"
    raise UserError(f"by the names of its tensors it {looks}; --from={key} was given")
  meta = file.others.get("meta")
  texts = [meta.get(name) for name in ("config", "cfg")] if isinstance(meta, dict) else []
  if any("caffe" in text for text in texts if isinstance(text, str)):
    raise UserError("its config says that it is Caffe-style (BGR images), which cannot be imported")
  tensors, dropped = split(file.tensors)
  tensors = {renamed(name, form.older): tensor for name, tensor in tensors.items()}
  config, classes = make_config(form, tensors)
  if form.detectron2:
    check_constants(file.tensors, config)
  if config.model.head_norm == "gn":  # convolutions without bias there
    kernels = (name for name in tensors if re.search(r"_head\.conv\.\d\.0\.weight", name))
    zeros = {name.replace("weight", "bias"): np.zeros(tensors[name].shape[:1]) for name in kernels}
    tensors = zeros | tensors
  if norm_eps is None:
    norm_eps = 0.0 if key == "torchvision" and not dropped["batch counters"] else EPS

  shapes = variable_shapes(config, classes)
  name = lambda path: renamed(ResNet.torch_name(path), form.names)
  variables = from_torch(tensors, shapes, name, f"this is not the RetinaNet of {key}")
  if form.detectron2:
    reorder(variables["params"])
  absorb_eps(variables, norm_eps)
  unused = ", ".join(f"{n} {what}" for what, n in dropped.items() if n) or "nothing"
  counts = f"{len(file.tensors)} tensors, not needed: {unused}"
  logging.info("%s, ResNet-%d, %d classes: %s", key, config.model.depth, classes, counts)
  logging.info("batch norm is frozen; the file's eps of %g%s", norm_eps, " is absorbed" * (norm_eps != EPS))
  return Saved(config, categories(key, classes, annotated), variables)


def split(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
  """The tensors without the unneeded, and how many of those there are by kind."""
  unneeded = UNNEEDED | CONSTANTS
  kind_of = lambda name: next((kind for kind, form in unneeded.items() if re.fullmatch(form, name)), None)
  kinds = {name: kind_of(name) for name in tensors}
  counts = {kind: sum(k == kind for k in kinds.values()) for kind in unneeded}
  return {name: tensor for name, tensor in tensors.items() if not kinds[name]}, counts


def make_config(form: Format, tensors: Mapping[str, np.ndarray]) -> tuple[ConfigDict, int]:
  """The config of a detector (its format's settings, its tensors' depth and widths) and its classes."""

  def shape(ours: str, axes: int) -> tuple[int, ...]:
    name = renamed(ours, form.names)
    if name not in tensors:
      raise UserError(f"it has no tensor {name}; give the whole detector")
    if tensors[name].ndim != axes:
      raise UserError(f"its {name} has the shape {tensors[name].shape}, not {axes} axes; get the file again")
    return tensors[name].shape

  def count(ours: str, first: int) -> int:
    """How many of the numbers from `first` on have a tensor."""
    return next(i for i in range(len(tensors) + 1) if renamed(ours % (first + i), form.names) not in tensors)

  config = base_config()
  for setting, value in form.settings.items():
    section, field = setting.split(".")
    config[section][field] = value
  blocks, bottleneck = (
    count("backbone.layer3.%d.conv1.weight", 0),
    count("backbone.layer1.0.conv%d.weight", 1) == 3,
  )
  depths = [d for d, numbers in BLOCKS.items() if numbers[2] == blocks and (d >= 50) == bottleneck]
  if not depths:
    known = ", ".join(map(str, BLOCKS))
    raise UserError(
      f"its backbone has {blocks} blocks in the third stage; known are ResNets of depth {known}"
    )
  (outputs,), (offsets,) = (shape(f"{head}_head.output.bias", 1) for head in ("classification", "regression"))
  if offsets != 4 * ANCHORS:
    raise UserError(f"it has {offsets / 4:g} anchors in a cell, not {ANCHORS} (three sizes by three ratios)")
  if outputs % ANCHORS:
    raise UserError(
      f"its class output has {outputs} channels, which are no number of classes for {ANCHORS} anchors"
    )
  channels, below_p6 = shape("fpn.p6.weight", 4)[:2]
  if config.model.head_norm == "gn" and channels % 64:
    raise UserError(f"GroupNorm of 32 groups on {channels} channels; give a multiple of 64")
  config.model.update(
    depth=depths[0],
    width=shape("backbone.conv1.weight", 4)[0],
    fpn_channels=channels,
    head_convs=count("classification_head.conv.%d.weight", 0),
  )
  if form.p6_by_shape and below_p6 == channels:
    config.model.p6_from = "p5"
  return config, outputs // ANCHORS


def check_constants(tensors: Mapping[str, np.ndarray], config: ConfigDict) -> None:
  """A detectron2 file may say how images were normalised, and its anchors: they have to be what we assume."""
  data = config.data
  for name, expected in (("pixel_mean", tuple(data.mean)[::-1]), ("pixel_std", tuple(data.std))):
    if name not in tensors:
      logging.info("the file has no %s; taken to be %s (BGR)", name, expected)
    elif not is_close(tensors[name].reshape(-1), np.array(expected)):
      raise UserError(
        f"its {name} is {tensors[name].reshape(-1).tolist()}, not {list(expected)}: it sees other images "
        "than the model zoo's RetinaNets (BGR, not scaled), which cannot be imported"
      )
  for level, stride in enumerate(strides(config)):
    name = f"anchor_generator.cell_anchors.{level}"
    ours = anchors((stride, stride), strides=(stride,), **config.anchors).reshape(3, 3, 4).swapaxes(0, 1)
    if name in tensors and not is_close(tensors[name], ours.reshape(ANCHORS, 4)):
      raise UserError(f"its {name} are not the anchors of the model zoo's RetinaNets, the only ones imported")


def is_close(a: np.ndarray, b: np.ndarray) -> bool:
  return a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-3)


def reorder(params: PyTree) -> None:
  """Turns detectron2's order into ours: RGB, and a cell's anchors by ratio, then octave."""
  stem = params["backbone"]["conv1"]
  stem["kernel"] = stem["kernel"][:, :, ::-1]
  for head in ("classification_head", "regression_head"):
    for name, value in params[head]["output"].items():
      by_octave = value.reshape(*value.shape[:-1], 3, 3, -1)
      params[head]["output"][name] = by_octave.swapaxes(-3, -2).reshape(value.shape)


def absorb_eps(variables: PyTree, eps: float) -> None:
  """Changes scales so that our batch norm, of eps 1e-5, computes what one of `eps` did."""
  if eps == EPS:
    return
  params, statistics = (traverse_util.flatten_dict(variables[c]) for c in ("params", "batch_stats"))
  for path, value in statistics.items():
    if path[-1] == "var":
      var, norm = value.astype(np.float64), (*path[:-1], "scale")
      if (var + eps <= 0).any():
        raise UserError(f"{'/'.join(path)} has variances of 0, which need a --norm_eps above 0")
      params[norm] = (params[norm] * np.sqrt((var + EPS) / (var + eps))).astype(np.float32)
  variables["params"] = traverse_util.unflatten_dict(params)


def categories(key: str, classes: int, annotated: tuple[Category, ...]) -> tuple[Category, ...]:
  """The category table: COCO's by default. torchvision's labels are the ids themselves, with gaps."""
  by_id = key in ("torchvision", "torchvision_v2")
  if not annotated:
    table = COCO_91 if by_id else COCO_80
    if len(table) != classes:
      raise UserError(
        f"it has {classes} classes, COCO's are {len(table)}; give the --annotations that it was trained on"
      )
    return table
  if by_id:
    names = {c.id: c.name for c in annotated}
    if not 0 <= min(names) <= max(names) < classes:
      raise UserError(
        f"the annotations have ids {min(names)} to {max(names)}, it has the labels 0 to {classes - 1}"
      )
    return tuple(Category(i, names.get(i, NONE)) for i in range(classes))
  if len(annotated) != classes:
    raise UserError(f"it has {classes} classes, the annotations have {len(annotated)} categories")
  return annotated
