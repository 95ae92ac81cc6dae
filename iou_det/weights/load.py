"""One door to every detector: a run's folder, an exported file, a foreign checkpoint."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from iou_det.data.source import Category
from iou_det.detector import Detector
from iou_det.errors import UserError
from iou_det.network import make_model, variable_shapes
from iou_det.parallel import abstract, device_mesh, state_formats
from iou_det.processes import of_process_0
from iou_det.storage import AnyPath, local_copy, user_path
from iou_det.weights.card import facts_of_run
from iou_det.weights.foreign import read_foreign
from iou_det.weights.saved import FILE, Saved, is_saved, read_saved
from iou_det.workdir.checkpoints import Checkpoints, Damaged
from iou_det.workdir.run import check_same_config, read_config

WHAT = "a training run's folder, a file of `iou-det export` or what `iou-det import-weights` takes or wrote"
T = TypeVar("T")


class Stored(NamedTuple):
  """A detector that was found; its weights are not read yet."""

  config: ConfigDict
  categories: tuple[Category, ...]
  # Lays {"params": ..., "batch_stats": ...} on a mesh; with the step that they were trained for.
  read: Callable[[Mesh], tuple[PyTree, int]]
  facts: Callable[[int], Mapping[str, Any]]  # for the model card, at that step


def detector_config(source: str | os.PathLike[str]) -> ConfigDict:
  """The config of a detector, without a look at its weights or at the devices."""
  path = one_file(source)
  return read_config(path) if path.is_dir() else read_file(path).config


def read_file(path: AnyPath) -> Saved:
  with local_copy(path) as file:
    return read_saved(file) if is_saved(file) else read_foreign(file)


def one_file(source: str | os.PathLike[str]) -> AnyPath:
  """The path of a source, of its one file if it is a folder with one."""
  path = user_path(source)
  path = path / FILE if (path / FILE).is_file() else path
  if not path.exists():
    raise UserError(f"{source}: there is no such file or folder; give {WHAT}")
  return path


def find_detector(source: str | os.PathLike[str], step: str | int = "last") -> Stored:
  """A detector by its path, see `load_detector`."""
  path = one_file(source)
  if path.is_dir():
    return find_run(path, str(step))
  if step != "last":
    raise UserError(f"--step={step}: {source} holds one detector, not the checkpoints of a run; leave it out")
  saved = read_file(path)

  def read(mesh: Mesh) -> tuple[PyTree, int]:
    shapes = variable_shapes(saved.config, len(saved.categories))
    if jax.tree.map(jnp.shape, saved.variables) != jax.tree.map(jnp.shape, shapes):
      raise UserError(
        f"{path} holds other arrays than its config describes; write it anew by `iou-det export`"
      )
    return jax.device_put(saved.variables, state_formats(mesh, shapes)), saved.step

  return Stored(saved.config, saved.categories, read, lambda step: saved.facts)


def find_run(workdir: AnyPath, step: str) -> Stored:
  """A detector in the checkpoints of a training run; in place of a damaged last one, that before it."""
  config = read_config(workdir)
  checkpoints = Checkpoints(workdir, read_only=True)

  def of_step(read: Callable[[int], T]) -> tuple[int, T]:
    if step == "last":
      number, value, damaged = checkpoints.last(read)
      for cause in damaged.values():
        logging.error(f"{cause}; step {number} is taken in its place")
      return number, value
    number = of_process_0(checkpoints.step_number(step))
    try:
      return number, read(number)
    except Damaged as error:
      others = ", ".join(str(s) for s in checkpoints.steps() if s != number) or "none"
      raise UserError(f"{error}; other steps there: {others}; give one as --step") from None

  _, run = of_step(checkpoints.run_information)
  check_same_config(config, run, workdir)
  categories = tuple(Category(**c) for c in run["categories"])

  def read(mesh: Mesh) -> tuple[PyTree, int]:
    shapes = abstract(mesh, variable_shapes(config, len(categories)))
    averaged = config.train.ema > 0
    number, variables = of_step(lambda s: checkpoints.restore_variables(s, shapes, averaged=averaged))
    return variables, number

  return Stored(config, categories, read, lambda number: facts_of_run(workdir, number, run))


def load_detector(
  source: str | os.PathLike[str], step: str | int = "last", *, batch_size: int | None = None
) -> Detector:
  """A detector to call on images, on all devices.

  Args:
    source: here or on gs://: the folder of a training run, a file of `iou-det export`, a folder of
      `iou-det import-weights`, or a file that import-weights takes.
    step: of a run: "last", "best" (the highest AP) or a number.
    batch_size: images in a batch, a multiple of the number of devices; default: the config's
      `eval.batch_size`, rounded up to one, or fewer if the first call has fewer.

  Raises:
    UserError: there is no such detector, or it is damaged.
  """
  if batch_size is not None and batch_size < 1:
    raise UserError(f"batch_size={batch_size}: must be 1 or more")
  stored = find_detector(source, step)
  config = stored.config
  devices = jax.device_count()
  config.eval.batch_size = batch_size or -(-config.eval.batch_size // devices) * devices
  mesh = device_mesh(config.eval.batch_size, setting="eval.batch_size (--batch_size)")
  model = make_model(config, len(stored.categories))
  variables, trained = stored.read(mesh)
  return Detector(config, model, mesh, stored.categories, variables, trained, batch_size)


def read_detector(source: str | os.PathLike[str], step: str = "last") -> Saved:
  """A detector on the host, for a file or to start from."""
  stored = find_detector(source, step)
  mesh = device_mesh(1, jax.local_devices()[:1])
  variables, trained = stored.read(mesh)
  facts = stored.facts(trained)
  return Saved(stored.config, stored.categories, jax.device_get(variables), trained, facts)
