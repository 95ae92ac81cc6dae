"""Tensors by name from files that others made; nothing that a file may carry is executed.

Read are .safetensors, PyTorch's .pth, and .pkl as in detectron2's model zoo: a pickle of plain numpy arrays.
"""

import importlib
import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from safetensors import SafetensorError
from safetensors.numpy import load_file

from iou_det.errors import UserError
from iou_det.storage import AnyPath, local_copy, user_path

SUFFIXES = (".safetensors", ".pth", ".pkl")
WRAPPERS = ("model", "state_dict")  # where training checkpoints keep the tensors
TORCH = "torch, or give a .safetensors file"
HUB = "-e '.[pretrained]'"
SAVE = "only tensors are loaded; save them with torch.save(model.state_dict(), path)"
EXPECTED = (
  f"a file ending in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, or a Hugging Face id such as "
  "'timm/resnet50.tv_in1k'"
)


# What no detector needs: counters of training, a classifier.
UNNEEDED = {"batch counters": r".*\.num_batches_tracked", "classifier": r"(.*\.)?fc\.(weight|bias)"}


class TensorFile(NamedTuple):
  """What a file holds."""

  tensors: dict[str, np.ndarray]
  others: dict[str, Any]  # what a training checkpoint has beside them


def read_tensors(source: str | Path) -> TensorFile:
  """Reads a .safetensors, .pth or .pkl file, or a hub id's model.safetensors.

  Raises:
    UserError: it is not there, not whole, of another kind, or holds what is no plain tensor.
  """
  given = find(source) or user_path(download(str(source)))
  if not given.is_file():
    raise UserError(f"it is not there or of another kind; give {EXPECTED}")
  with local_copy(given) as path:
    return read_file(path)


def read_file(path: Path) -> TensorFile:
  if path.suffix == ".pth":
    return read_pth(path)
  if path.suffix == ".pkl":
    return read_pkl(path)
  try:
    return TensorFile(load_file(path), {})
  except SafetensorError as error:
    raise UserError(f"{path} is not a whole safetensors file ({error}); get it again") from error


def find(source: str | Path) -> AnyPath | None:
  """The path of a file by its name, or None for a hub id; a UserError for another, or without the hub's
  client. Reads nothing."""
  path = user_path(source).expanduser()
  if path.suffix in SUFFIXES:
    return path
  if path.exists():
    raise UserError(f"it is not there or of another kind; give {EXPECTED}")
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
    raise UserError(f"it is not a file and not a Hugging Face id; give {EXPECTED}")
  library("huggingface_hub", HUB)
  return None


def library(name: str, install: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError:
    raise UserError(f"it needs {name}: pip install {install}") from None


def download(source: str) -> Path:
  """Path in the hub's cache of model.safetensors, downloaded if it is not there."""
  hub = library("huggingface_hub", HUB)
  try:
    return Path(hub.hf_hub_download(source, "model.safetensors"))
  except (OSError, ValueError) as error:  # what the hub's errors (network, no such model) derive from
    reason = str(error).strip().split("\n")[0]
    raise UserError(
      f"the Hugging Face hub did not give it ({reason}); check the name and the network, or give a file"
    ) from error


def read_pth(path: Path) -> TensorFile:
  """Reads a PyTorch state dict or training checkpoint; torch's weights-only loader runs no code."""
  torch = library("torch", TORCH)
  try:
    content = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # the unpickler raises whatever a damaged file leads it to
    raise UserError(f"{path} is damaged or holds objects other than tensors; {SAVE}") from error
  state, others = unwrap(path, content, torch.Tensor)
  return TensorFile({name: value.detach().float().numpy() for name, value in state.items()}, others)


def read_pkl(path: Path) -> TensorFile:
  """Reads a pickle of numpy arrays, bare or as detectron2's model zoo wraps them."""
  try:
    with path.open("rb") as file:
      content = PlainUnpickler(file, encoding="latin1").load()
  except UserError as error:
    raise UserError(f"{path} {error}") from None
  except Exception as error:  # the unpickler raises whatever a damaged file leads it to
    raise UserError(f"{path} is not a whole pickle of arrays ({error}); get it again") from error
  state, others = unwrap(path, content, PlainArray)
  return TensorFile({name: value.array for name, value in state.items()}, others)


def unwrap(path: Path, content: Any, kind: type) -> tuple[dict[str, Any], dict[str, Any]]:
  """The tensors (of type `kind`) of a file's content, and what it holds beside them."""
  others: dict[str, Any] = {}
  if isinstance(content, dict):
    key = next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None)
    if key:
      others = {str(name): value for name, value in content.items() if name != key}
      beside = ", ".join(sorted(others)) or "nothing"
      logging.info("%s: the tensors are in %r; beside it, not used: %s", path, key, beside)
      content = content[key]
  if not isinstance(content, dict):
    raise UserError(f"{path} holds a {type(content).__name__}, not a state dict; {SAVE}")
  strange = [str(name) for name, value in content.items() if not isinstance(value, kind)]
  if strange:
    raise UserError(f"{path} holds more than tensors: {listed('other', strange)}; {SAVE}")
  return {str(name): value for name, value in content.items()}, others


def listed(what: str, names: list[str]) -> str:
  """Count and names in one line; where they are too many for a line, the log gets them all."""
  names = sorted(names)
  if len(names) <= 10:
    return f"{len(names)} {what} ({', '.join(names)})"
  logging.error("%d %s: %s", len(names), what, ", ".join(names))
  return f"{len(names)} {what} ({', '.join(names[:10])} and {len(names) - 10} more, all listed above)"


class PlainArray:
  """An array as a pickle describes it: numpy is given shape, type and bytes alone."""

  array = np.zeros(0, np.float32)  # until its state comes

  def __setstate__(self, state: tuple) -> None:
    _, shape, dtype, fortran, content = state
    content = content.encode("latin1") if isinstance(content, str) else content  # Python 2 wrote text
    order: Any = "F" if fortran else "C"
    self.array = np.frombuffer(content, dtype.numpy()).reshape(shape, order=order).copy()


class PlainType:
  """The type of an array: floats, integers or truth values of a fixed size."""

  def __init__(self, spec: str):
    if not re.fullmatch(r"[fiub][1248]", spec):
      raise UserError(f"holds an array of type {spec!r}, not of plain numbers; nothing was executed")
    self.spec, self.byte_order = spec, "="

  def __setstate__(self, state: tuple) -> None:
    self.byte_order = state[1] if state[1] in ("<", ">") else "="

  def numpy(self) -> np.dtype:
    return np.dtype(self.byte_order + self.spec)


class _Maker:
  """What a pickle gets for a function; no class of them has a __dict__, so that it cannot be changed."""

  __slots__ = ()


class _Name(_Maker):
  """For a class that is only handed on."""

  __slots__ = ()


class _Dict(_Maker):
  __slots__ = ()

  def __call__(self) -> dict:
    return {}


class _Encoded(_Maker):
  """How pickles of protocol 2 write the bytes of an array; the encoding is always latin1."""

  __slots__ = ()

  def __call__(self, text: str, encoding: str) -> bytes:
    return text.encode("latin1")


class _Type(_Maker):
  __slots__ = ()

  def __call__(self, spec: str, align: Any = False, copy: Any = False) -> PlainType:
    return PlainType(spec)


class _Array(_Maker):
  __slots__ = ()

  def __call__(self, kind: Any, shape: Any, type_code: Any) -> PlainArray:
    return PlainArray()  # its state follows


class _ArrayOfBytes(_Maker):
  """Of protocol 5."""

  __slots__ = ()

  def __call__(self, content: Any, dtype: PlainType, shape: tuple, order: str) -> PlainArray:
    array = PlainArray()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


class _Scalar(_Maker):
  __slots__ = ()

  def __call__(self, dtype: PlainType, content: Any) -> float:
    content = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(content, dtype.numpy())[0].item()


KNOWN: dict[tuple[str, str], _Maker] = {  # what a pickle may name: module, name -> what it gets for it
  ("collections", "OrderedDict"): _Dict(),
  ("_codecs", "encode"): _Encoded(),
  ("numpy", "ndarray"): _Name(),
  ("numpy", "dtype"): _Type(),
  **{  # numpy 1 and 2 call the place differently
    (f"numpy.{core}.{name}", made): maker
    for core in ("core", "_core")
    for name, made, maker in (
      ("multiarray", "_reconstruct", _Array()),
      ("multiarray", "scalar", _Scalar()),
      ("numeric", "_frombuffer", _ArrayOfBytes()),
    )
  },
}


class PlainUnpickler(pickle.Unpickler):
  """Knows what numpy arrays, dicts, lists, strings and numbers are made of; all else is a UserError.

  A pickle is a program: it names functions and calls them. Here no name is imported: what it gets for the
  names of that table only notes what an array is said to be, and everything else is refused.
  """

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) in KNOWN:
      return KNOWN[module, name]
    raise UserError(
      f"holds {module}.{name}, which is no plain array; nothing was executed: get a file of arrays alone, or "
      "save the tensors as .safetensors"
    )
