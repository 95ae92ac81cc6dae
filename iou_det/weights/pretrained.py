"""Backbone weights from files in torchvision's layout, which timm's ResNets share.

The backbone says what its variables are called there; convolution kernels are transposed from OIHW to HWIO.
"""

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import PyTree
from ml_collections import ConfigDict

from iou_det.errors import UserError
from iou_det.models import backbone_class

EXPECTED_EXTRA = re.compile(r"fc\..*|.*\.num_batches_tracked")  # the classifier, and a counter of training
SAVE = "only tensors are loaded; save them with torch.save(model.state_dict(), path)"
EXPECTED = "a .safetensors or .pth file or a Hugging Face id such as 'timm/resnet50.tv_in1k'"


def load_pretrained(config: ConfigDict, variables: PyTree) -> PyTree:
  """Puts an ImageNet backbone into a RetinaNet's variables, as float32 numpy arrays; all else stays as it is.

  Args:
    config: section `model`. Its `pretrained` is the path of a .safetensors or .pth file, or a Hugging Face
      id such as "timm/resnet50.tv_in1k" (model.safetensors is downloaded, or taken from the hub's cache).
    variables: {"params": ..., "batch_stats": ...} of its RetinaNet; values or shapes.

  Raises:
    UserError: the source cannot be read, or its tensors are not exactly this backbone's.
  """
  source = config.pretrained
  try:
    if config.norm == "gn":
      raise UserError(
        "it holds batch-norm weights, which norm='gn' has no place for; set model.norm to 'frozen_bn' or "
        "model.pretrained to an empty string"
      )
    tensors = read_tensors(source)
    used = {name: tensor for name, tensor in tensors.items() if not EXPECTED_EXTRA.fullmatch(name)}
    backbone = {collection: tree["backbone"] for collection, tree in variables.items()}
    backbone = from_torch(used, backbone, backbone_class(config.backbone).torch_name)
  except UserError as error:
    raise UserError(f"model.pretrained={source!r}: {error}") from error.__cause__
  number, skipped = len(tensors) - len(used), "classifier and batch counters"
  logging.info("backbone from %s: %d tensors, %d not used (%s)", source, len(used), number, skipped)
  return {collection: {**tree, "backbone": backbone[collection]} for collection, tree in variables.items()}


def from_torch(
  tensors: Mapping[str, np.ndarray], variables: PyTree, torch_name: Callable[[Iterable[str]], str]
) -> PyTree:
  """Replaces every value of `variables` ({collection: {module: ...}}) by the tensor of its `torch_name`.

  Raises:
    UserError: listing the tensors that are missing, extra or of another shape.
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
    raise UserError(
      f"it is not this backbone: {text}; check model.depth, model.width and that its names are torchvision's"
    )
  return result


def listed(what: str, names: list[str]) -> str:
  """Count and names in one line; where they are too many for a line, the log gets them all."""
  names = sorted(names)
  if len(names) <= 10:
    return f"{len(names)} {what} ({', '.join(names)})"
  logging.error("%d %s: %s", len(names), what, ", ".join(names))
  return f"{len(names)} {what} ({', '.join(names[:10])} and {len(names) - 10} more, all listed above)"


def library(name: str, install: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError:
    raise UserError(f"it needs {name}: pip install {install}") from None


def read_tensors(source: str) -> dict[str, np.ndarray]:
  """All tensors of a .safetensors or .pth file, or of a hub id's model.safetensors, by name."""
  path = Path(source).expanduser()
  if path.suffix not in (".safetensors", ".pth") and not path.exists():
    path = download(source)
  if path.is_file() and path.suffix == ".safetensors":
    load_file = library("safetensors.numpy", "-e '.[pretrained]'").load_file
    try:
      return load_file(path)
    except library("safetensors", "safetensors").SafetensorError as error:
      raise UserError(f"{path} is not a whole safetensors file ({error}); get it again") from error
  if path.is_file() and path.suffix == ".pth":
    return read_pth(path)
  raise UserError(f"it is not there or of another kind; give {EXPECTED}")


def download(source: str) -> Path:
  """Path in the hub's cache of model.safetensors, downloaded if it is not there."""
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
    raise UserError(f"it is not a file and not a Hugging Face id; give {EXPECTED}")
  hub = library("huggingface_hub", "-e '.[pretrained]'")
  try:
    return Path(hub.hf_hub_download(source, "model.safetensors"))
  except (OSError, ValueError) as error:  # what the hub's errors (network, no such model) derive from
    reason = str(error).strip().split("\n")[0]
    raise UserError(
      f"the Hugging Face hub did not give it ({reason}); check the name and the network, or give a file"
    ) from error


def read_pth(path: Path) -> dict[str, np.ndarray]:
  """Reads a PyTorch state dict; torch's weights-only loader runs no code that a file may carry."""
  torch = library("torch", "torch, or give a .safetensors file")
  try:
    state = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # the unpickler raises whatever a damaged file leads it to
    raise UserError(f"{path} is damaged or holds objects other than tensors; {SAVE}") from error
  if not isinstance(state, dict):
    raise UserError(f"{path} holds a {type(state).__name__}, not a state dict; {SAVE}")
  others = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
  if others:
    raise UserError(f"{path} holds more than tensors: {listed('other', others)}; {SAVE}")
  return {name: value.detach().float().numpy() for name, value in state.items()}
