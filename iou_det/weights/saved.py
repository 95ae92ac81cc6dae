"""A detector in one file: weights as safetensors; config and category table as JSON in the metadata."""

import dataclasses
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree
from ml_collections import ConfigDict

from iou_det import config as config_lib
from iou_det.data.source import Category
from iou_det.errors import UserError
from iou_det.storage import AnyPath, write_whole

FILE = "detector.safetensors"  # its name in a folder
VERSION = "iou-det detector 1"  # the metadata's "format"


class Saved(NamedTuple):
  """A detector on the host."""

  config: ConfigDict
  categories: tuple[Category, ...]  # in the order of the labels
  variables: PyTree  # {"params": ..., "batch_stats": ...}, float32 numpy arrays
  step: int = 0  # that it was trained for
  facts: Mapping[str, Any] = MappingProxyType({})  # for its model card, JSON


def portable(config: ConfigDict) -> ConfigDict:
  """A copy without the paths of this machine's data."""
  config = ConfigDict(config.to_dict())
  config.data.update(path="", val_annotations="")
  config.model.update(pretrained="", init="")
  return config


def write_saved(path: AnyPath, saved: Saved, card: str = "") -> None:
  """Writes one file that any machine can read, with its model card if there is one."""
  metadata = {
    "format": VERSION,
    "config": json.dumps(portable(saved.config).to_dict()),
    "categories": json.dumps([dataclasses.asdict(c) for c in saved.categories]),
    "step": str(saved.step),
    "facts": json.dumps(dict(saved.facts)),
    "model_card": card,
  }
  arrays = flax.traverse_util.flatten_dict(jax.device_get(saved.variables), sep="/")
  # safetensors writes memory as it lies, whatever the strides of a transposed array say.
  tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
  metadata["crc32"] = str(checksum(metadata, tensors))
  path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, safetensors.numpy.save(tensors, metadata))


def checksum(metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> int:
  """Of all that a file holds but itself: a changed byte is a number, or a setting, like any other."""
  total = zlib.crc32(json.dumps({k: v for k, v in metadata.items() if k != "crc32"}, sort_keys=True).encode())
  for name in sorted(tensors):
    total = zlib.crc32(tensors[name].tobytes(), zlib.crc32(f"{name} {tensors[name].shape}".encode(), total))
  return total


def is_saved(path: Path) -> bool:
  """Whether a file is one of `write_saved`, as far as it can be read."""
  return path.suffix == ".safetensors" and read_metadata(path).get("format") == VERSION


def read_metadata(path: Path) -> dict[str, str]:
  """The metadata of a safetensors file, which has to be whole."""
  try:
    with safetensors.safe_open(path, "numpy") as file:
      return file.metadata() or {}
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(f"{path} is not a whole safetensors file ({error}); get it again") from None


def read_saved(path: Path) -> Saved:
  """Reads what `write_saved` wrote, see `is_saved`."""
  metadata = read_metadata(path)
  tensors = safetensors.numpy.load_file(path)
  variables: dict[str, Any] = flax.traverse_util.unflatten_dict(tensors, sep="/")
  try:
    categories = tuple(Category(**c) for c in json.loads(metadata["categories"]))
    config = config_lib.from_dict(json.loads(metadata["config"]))
    step = int(metadata["step"])
    facts = dict(json.loads(metadata.get("facts", "{}")))  # older files have none
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f"{path}: its metadata are damaged ({error}); export it again") from None
  if metadata.get("crc32", there := str(checksum(metadata, tensors))) != there:  # older files have none
    raise UserError(f"{path} is damaged: its checksum is another than when it was written; export it again")
  return Saved(config, categories, {"batch_stats": {}, **variables}, step, facts)
