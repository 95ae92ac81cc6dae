"""Backbone weights from files in torchvision's layout, which timm's ResNets share.

The backbone says what its variables are called there; convolution kernels are transposed from OIHW to HWIO.
"""

import re
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from absl import logging
from jaxtyping import PyTree
from ml_collections import ConfigDict

from iou_det.errors import UserError
from iou_det.models import backbone_class
from iou_det.storage import AnyPath
from iou_det.weights.files import UNNEEDED, find, listed, read_tensors

EXPECTED_EXTRA = re.compile("|".join(UNNEEDED.values()))


def find_pretrained(config: ConfigDict) -> AnyPath | None:
  """The path that section `model` names, None for a hub id; a UserError if unusable. Reads nothing."""
  try:
    if config.norm == "gn":
      raise UserError(
        "it holds batch-norm weights, which norm='gn' has no place for; set model.norm to 'frozen_bn' or "
        "model.pretrained to an empty string"
      )
    return find(config.pretrained)
  except UserError as error:
    raise UserError(f"model.pretrained={config.pretrained!r}: {error}") from error.__cause__


def load_pretrained(config: ConfigDict, variables: PyTree) -> PyTree:
  """Puts an ImageNet backbone into a RetinaNet's variables, as float32 numpy arrays; all else stays as it is.

  Args:
    config: section `model`. Its `pretrained` is the path of a .safetensors, .pth or .pkl file, or a hub id
      such as "timm/resnet50.tv_in1k" (model.safetensors is downloaded, or taken from the hub's cache).
    variables: {"params": ..., "batch_stats": ...} of its RetinaNet; values or shapes.

  Raises:
    UserError: the source cannot be read, or its tensors are not exactly this backbone's.
  """
  source = config.pretrained
  find_pretrained(config)
  try:
    tensors = read_tensors(source).tensors
    used = {name: tensor for name, tensor in tensors.items() if not EXPECTED_EXTRA.fullmatch(name)}
    backbone = {collection: tree["backbone"] for collection, tree in variables.items()}
    hint = "check model.depth, model.width and that its names are torchvision's"
    backbone = from_torch(used, backbone, backbone_class(config.backbone).torch_name, hint)
  except UserError as error:
    raise UserError(f"model.pretrained={source!r}: {error}") from error.__cause__
  number, skipped = len(tensors) - len(used), "classifier and batch counters"
  logging.info("backbone from %s: %d tensors, %d not used (%s)", source, len(used), number, skipped)
  return {collection: {**tree, "backbone": backbone[collection]} for collection, tree in variables.items()}


def from_torch(
  tensors: Mapping[str, np.ndarray],
  variables: PyTree,
  torch_name: Callable[[Iterable[str]], str],
  hint: str = "",
) -> PyTree:
  """Replaces every value of `variables` ({collection: {module: ...}}) by the tensor of its `torch_name`.

  Raises:
    UserError: listing the tensors that are missing, extra or of another shape, then `hint`.
  """
  missing, misshapen, used = [], [], set()

  def convert(path, value):
    name = torch_name(key.key for key in path[1:])
    used.add(name)
    # A kernel is HWIO here and OIHW there, a dense layer's IO and OI; all else lies the same way.
    turned = {4: (3, 2, 0, 1), 2: (1, 0)} if path[-1].key == "kernel" else {}
    axes = turned.get(value.ndim, tuple(range(value.ndim)))
    needed = tuple(value.shape[axis] for axis in axes)
    if name not in tensors:
      missing.append(name)
    elif tensors[name].shape != needed:
      misshapen.append(f"{name} is {tensors[name].shape}, not {needed}")
    else:
      return np.asarray(tensors[name], np.float32).transpose(np.argsort(axes))

  result = jax.tree_util.tree_map_with_path(convert, variables)
  extra = [name for name in tensors if name not in used]
  problems = {"missing": missing, "of another shape": misshapen, "extra": extra}
  if any(problems.values()):
    text = "; ".join(listed(what, names) for what, names in problems.items() if names)
    raise UserError(f"its tensors are not this network's: {text}; {hint}")
  return result
