"""Backbone weights from files in a foreign layout, which the backbone knows (see `iou_det.models`).

Convolution kernels are transposed from OIHW to HWIO.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import PyTree

from iou_det.errors import UserError
from iou_det.models import backbone_class

EXPECTED_EXTRA = re.compile(r"fc\..*|.*\.num_batches_tracked")  # the classifier, and a counter of training


def load_pretrained(settings: Any, variables: PyTree) -> PyTree:
  """Puts an ImageNet backbone into a RetinaNet's variables, as float32 numpy; FPN and heads stay as they are.

  Args:
    settings: config.model. `pretrained` is a .safetensors or .pth file, or a Hugging Face hub id such as
      "timm/resnet50.tv_in1k" (its model.safetensors is downloaded, or taken from the hub's cache).

  Raises:
    UserError: the source cannot be read, or its tensors are not exactly this backbone's.
  """
  source = settings.pretrained
  if settings.norm == "gn":
    raise UserError(
      f"model.pretrained={source!r} holds batch-norm weights, which norm='gn' has no place for; "
      "set model.norm to 'frozen_bn' or model.pretrained to an empty string"
    )
  tensors = read_tensors(source)
  extra = [name for name in tensors if EXPECTED_EXTRA.fullmatch(name)]
  for name in extra:
    del tensors[name]
  backbone = {collection: tree["backbone"] for collection, tree in variables.items()}
  try:
    backbone = from_torch(tensors, backbone, backbone_class(settings.backbone).torch_name)
  except UserError as error:
    raise UserError(
      f"model.pretrained={source!r} is not this backbone: {error}; "
      "check model.depth, model.width and that the file has torchvision's names"
    ) from None
  skipped = "classifier and batch counters"
  logging.info("backbone from %s: %d tensors, %d not used (%s)", source, len(tensors), len(extra), skipped)
  return {collection: {**tree, "backbone": backbone[collection]} for collection, tree in variables.items()}


def from_torch(
  tensors: Mapping[str, np.ndarray], variables: PyTree, name_of: Callable[[Iterable[str]], str]
) -> PyTree:
  """Replaces every value of `variables` by its tensor; a UserError lists what is missing, extra or misshapen.

  Args:
    tensors: by name; kernels OIHW.
    variables: {collection: {module: ...}}; values or shapes.
    name_of: the tensor's name by the path of module names.
  """
  missing, misshapen, used = [], [], set()

  def convert(path, value):
    name = name_of(key.key for key in path[1:])
    used.add(name)
    if name not in tensors:
      missing.append(name)
      return value
    needed = tuple(value.shape[axis] for axis in (3, 2, 0, 1)) if value.ndim == 4 else value.shape
    if tensors[name].shape != needed:
      misshapen.append(f"{name} is {tensors[name].shape}, not {needed}")
      return value
    tensor = np.asarray(tensors[name], np.float32)
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor

  result = jax.tree_util.tree_map_with_path(convert, variables)
  extra = [name for name in tensors if name not in used]
  problems = {"missing": missing, "of another shape": misshapen, "extra": extra}
  if any(problems.values()):
    raise UserError("; ".join(listed(what, names) for what, names in problems.items() if names))
  return result


def listed(what: str, names: list[str]) -> str:
  """Count and names in one line; where they are too many for a line, the log gets them all."""
  names = sorted(names)
  if len(names) <= 10:
    return f"{len(names)} {what} ({', '.join(names)})"
  logging.error("%d %s: %s", len(names), what, ", ".join(names))
  return f"{len(names)} {what} ({', '.join(names[:10])} and {len(names) - 10} more, all listed above)"


def read_tensors(source: str) -> dict[str, np.ndarray]:
  """All tensors of a .safetensors or .pth file, or of a hub id's model.safetensors, by name."""
  path = Path(source).expanduser()
  if path.suffix not in (".safetensors", ".pth") and not path.exists():
    path = download(source)
  if not path.is_file() or path.suffix not in (".safetensors", ".pth"):
    raise UserError(
      f"model.pretrained={source!r} is not there or not a .safetensors or .pth file; give such a file or "
      "a Hugging Face id such as 'timm/resnet50.tv_in1k'"
    )
  return read_safetensors(path) if path.suffix == ".safetensors" else read_pth(path)


def download(source: str) -> Path:
  """Path in the hub's cache of model.safetensors, downloaded if it is not there."""
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
    raise UserError(
      f"model.pretrained={source!r} is not a file and not a Hugging Face id; give a .safetensors or .pth "
      "file or an id such as 'timm/resnet50.tv_in1k'"
    )
  try:
    from huggingface_hub import hf_hub_download
  except ImportError:
    raise UserError(f"model.pretrained={source!r} needs: pip install -e '.[pretrained]'") from None
  try:
    return Path(hf_hub_download(source, "model.safetensors"))
  except (OSError, ValueError) as error:  # what the hub's errors (network, no such model) derive from
    reason = str(error).strip().split("\n")[0]
    raise UserError(
      f"model.pretrained={source!r} could not be had from the Hugging Face hub ({reason}); check the name "
      "and the network, or give a .safetensors file"
    ) from error


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
  try:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file
  except ImportError:
    raise UserError(f"{path} needs: pip install -e '.[pretrained]'") from None
  try:
    return load_file(path)
  except SafetensorError as error:
    raise UserError(f"{path} is not a whole safetensors file ({error}); get it again") from error


def read_pth(path: Path) -> dict[str, np.ndarray]:
  """Reads a PyTorch state dict; torch's weights-only loader runs no code that a file may carry."""
  try:
    import torch
  except ImportError:
    raise UserError(f"{path} needs PyTorch: pip install torch, or give a .safetensors file") from None
  try:
    state = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # the unpickler raises whatever a damaged file leads it to
    raise UserError(
      f"{path} is damaged or holds objects other than tensors, which are never loaded; "
      "save it with torch.save(model.state_dict(), path)"
    ) from error
  what = "" if isinstance(state, dict) else f"a {type(state).__name__}, not a state dict"
  others = [] if what else [str(name) for name, x in state.items() if not isinstance(x, torch.Tensor)]
  if what or others:
    what = what or f"more than tensors: {listed('other', others)}"
    raise UserError(f"{path} holds {what}; save model.state_dict()")
  return {name: value.detach().float().numpy() for name, value in state.items()}
