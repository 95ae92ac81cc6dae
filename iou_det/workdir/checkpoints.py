"""Checkpoints of a run: all that is Orbax's is here.

A step is there if its commit_success.txt is, which is written last. What is read is compared with what was
saved: the run information by its checksum, every array by its digest.
"""

import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as managers

from iou_det.errors import UserError
from iou_det.processes import by_process_0, of_process_0
from iou_det.storage import absolute, move, on_object_store, parse_json, sealed
from iou_det.workdir.digest import digests
from iou_det.workdir.metrics import read_metrics
from iou_det.workdir.place import is_full, no_room, room

AVERAGE = "average"  # the key of the parameters' average in the optimizer's state
COMMITTED = "commit_success.txt"  # Orbax writes it last, whether it renames the folder then or not
DAMAGED = "checkpoints_damaged"  # folder beside `checkpoints`
NOT_NOW = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "PERMISSION_DENIED")  # TensorStore's words
T = TypeVar("T")


class Damaged(UserError):
  """A checkpoint that is not what was saved."""


@dataclass
class BestScored:
  """A preservation policy: of the checkpoints that were scored, the one with the highest AP stays.

  Orbax takes scores only with a checkpoint; ours are saved before, so that an evaluation may be cut off.
  """

  scores: dict[int, float]  # AP by step, filled as evaluations end

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    best = best_step(self.scores, [c.step for c in checkpoints])
    return [c.step == best for c in checkpoints]


def best_step(scores: dict[int, float], steps: Sequence[int]) -> int | None:
  """The step with the highest AP, the later one of equals; None if none of them was scored."""
  return max((s for s in steps if s in scores), key=lambda s: (scores[s], s), default=None)


def has_checkpoint(workdir: str | PathLike[str]) -> bool:
  """Whether a workdir has a checkpoint, damaged ones included; needs no manager and makes no folder."""
  return bool(Checkpoints(workdir).folders())


def part_of(stored: PyTree, some: PyTree) -> PyTree:
  """What a checkpoint holds of the parts that are read of it: of the optimizer's state the average alone."""
  part = {name: stored.get(name) or {} for name in some}
  if "opt_state" in some:
    average = part["opt_state"].get(AVERAGE, {}) if isinstance(part["opt_state"], dict) else {}
    part["opt_state"] = {AVERAGE: {"params": average.get("params", {})}}
  return part


class Manager(ocp.CheckpointManager):
  """Orbax's manager, but it leaves JAX's preemption service to `iou_det.preemption`: it stops at one
  exact value of one counter, and Orbax would count otherwise."""

  def reached_preemption(self, step: int) -> bool:
    return False


class Checkpoints:
  """The folder `workdir/checkpoints`: saves in the background, keeps the last few and the best AP.

  All processes have to call its methods, but for those that only list.
  """

  def __init__(self, workdir: str | PathLike[str], keep: int = 1, read_only: bool = False):
    self.workdir = absolute(epath.Path(workdir))
    self.folder = self.workdir / "checkpoints"
    self.keep = keep
    self.saved = time.monotonic()  # when a save began, or nothing was there to save
    rows = read_metrics(self.workdir / "metrics.jsonl")
    self.scores = {row["step"]: ap for row in rows for name, ap in row.items() if name.endswith("/AP")}
    if read_only and not self.folder.is_dir():
      command = f"iou-det train --config=... --workdir={workdir}"
      raise UserError(f"{workdir} has no checkpoints; train first: {command}")

  @cached_property
  def manager(self) -> Manager:
    """For saving alone: it deletes what it takes for unfinished."""
    mode = ocp.options.AtomicityMode
    options = ocp.CheckpointManagerOptions(
      preservation_policy=managers.AnyPreservationPolicy(
        [managers.LatestN(self.keep), BestScored(self.scores)]
      ),
      atomicity_options=ocp.options.AtomicityOptions(
        mode.COMMIT_FILE if on_object_store(self.folder) else mode.ATOMIC_RENAME  # there it is not atomic
      ),
      cleanup_tmp_directories=True,
    )
    return Manager(self.folder, options=options, item_names=("state", "run"))

  def take_scores_of_process_0(self) -> None:
    """Lets all processes go on from the same scores: file systems may show the others an older log."""
    known = of_process_0([[step, ap] for step, ap in self.scores.items()])
    self.scores.clear()
    self.scores |= {step: ap for step, ap in known}

  # Saving

  def save(self, step: int, state: PyTree, run: dict[str, Any]) -> None:
    """Starts saving; `run` is JSON (config, categories, data position)."""
    with self._saving():
      manager = self.manager
      manager.wait_until_finished()  # and the ones before are deleted
    needed = 1.1 * sum(x.nbytes for x in jax.tree.leaves(state)) + 2**18  # and what is written about them
    there = by_process_0(lambda: room(self.folder))
    if there < needed:
      raise no_room(self.folder, f" ({there / 1e6:.1f} MB; a checkpoint takes {needed / 1e6:.1f})")
    run = sealed(run | {"digests": digests(state)})
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
    self.saved = time.monotonic()
    with self._saving():
      manager.save(step, args=items)

  def overdue(self, minutes: float, interval: float, to_log: bool) -> bool:
    """Whether the last save is so long ago.

    One process may ask at every step. Of several, the first decides, at rows of the log (`to_log`), for all
    of the next interval (seconds, as long as the one that ends): to agree at every step would slow it.
    """
    age = time.monotonic() - self.saved
    if jax.process_count() == 1:
      return age > 60 * minutes
    return to_log and of_process_0(age + interval > 60 * minutes)

  def check(self) -> None:
    """A UserError if what is being saved in the background has failed; to be called now and then."""
    with self._saving():
      if "manager" in self.__dict__:
        self.manager.check_for_errors()

  def wait(self) -> None:
    """Until what is being saved in the background is there."""
    with self._saving():
      if "manager" in self.__dict__:
        self.manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves in the background."""
    self.wait()
    if "manager" in self.__dict__:
      self.manager.close()

  @contextmanager
  def _saving(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # of TensorStore, Orbax or the system
      if is_full(error):
        time.sleep(1.0)  # the rest of the save ends too, and what it says is held back; later it would not be
        gc.collect()
        raise no_room(self.folder) from None
      raise

  # Which steps are there

  def folders(self) -> list[int]:
    """Steps with a folder, ascending; those are left out that a kill cut off as they were written."""
    numbers = sorted(int(p.name) for p in list_folder(self.folder) if p.name.isdigit())
    return [step for step in numbers if not self._unfinished(step)]

  def steps(self) -> list[int]:
    """Finished steps, ascending."""
    return [step for step in self.folders() if (self.folder / str(step) / COMMITTED).exists()]

  def _unfinished(self, step: int) -> bool:
    path = self.folder / str(step)
    if (path / COMMITTED).exists():
      return False
    try:  # Orbax notes the time there before it writes the commit file
      return json.loads((path / "_CHECKPOINT_METADATA").read_bytes())["commit_timestamp_nsecs"] is None
    except (OSError, ValueError, KeyError, TypeError):
      return False

  def step_number(self, step: str) -> int:
    """Turns "last", "best" or a number into a step that is there."""
    steps = self.steps()
    known = f"there are {', '.join(map(str, steps)) or 'none'} in {self.folder}"
    if not steps:
      raise UserError(f"no finished checkpoint to read: {known}")
    if step == "last":
      return steps[-1]
    if step == "best":
      best = best_step(self.scores, self.folders())
      if best is None:
        raise UserError(f"--step=best: no checkpoint was evaluated; {known}; use --step=last")
      if best not in steps:
        raise UserError(f"--step=best: the checkpoint {self.folder / str(best)} has no {COMMITTED}; {known}")
      return best
    if not step.isdigit() or int(step) not in steps:
      raise UserError(f"--step={step}: must be last, best or a saved step; {known}")
    return int(step)

  # Reading

  def last(self, read: Callable[[int], T]) -> tuple[int, T, dict[int, str]]:
    """The newest step, or the one before it if that is damaged: the step, what `read` makes of it, and what
    is wrong with the newer one. Two damaged in a row are a UserError; nothing is changed."""
    causes: dict[int, str] = {}
    for step in reversed(of_process_0(self.folders()[-2:])):
      try:
        return step, read(step), causes
      except Damaged as error:
        causes[step] = str(error)
    if not causes:
      raise UserError(f"no finished checkpoint to read: there is none in {self.folder}")
    older = ", ".join(map(str, of_process_0(self.folders()[:-2]))) or "none"
    raise UserError(
      f"{'; '.join(causes.values())}; older steps there: {older}; nothing was changed: restore a damaged one "
      f"from a copy, move them out of {self.folder} to go on from an older one, or train in a new --workdir"
    )

  def resume(self, abstract_state: PyTree, check: Callable[[dict[str, Any]], None]) -> PyTree:
    """The newest state that is whole, see `last`; a damaged newer one is set aside.

    Args:
      check: gets the run information; raises a UserError if the run may not go on from it.
    """

    def read(step: int) -> PyTree:
      run = self.run_information(step)
      check(run)
      if "digests" in run and (odd := leaf_names(abstract_state) ^ run["digests"].keys()):
        raise UserError(
          f"{self.folder / str(step)} holds other arrays than this version trains ({len(odd)}: "
          f"{', '.join(sorted(odd)[:3])}, ...); go on with the version that made it, or train in a new "
          "--workdir"
        )
      return self.restore(step, abstract_state)

    step, state, damaged = self.last(read)
    for other, cause in damaged.items():
      if jax.process_index() == 0:
        where = self._set_aside(other)
        logging.error(f"{cause}; it was set aside as {where}, and the run goes on from step {step}")
    multihost_utils.sync_global_devices("damaged checkpoints are set aside")
    for later in [s for s in self.scores if s > step]:
      del self.scores[later]
    return state

  def _set_aside(self, step: int) -> epath.Path:
    """Moves a step's folder, and what lies beside it if it was half renamed; deletes nothing."""
    target, copies = self.workdir / DAMAGED / str(step), 1
    while target.exists():
      copies += 1
      target = target.with_name(f"{step}.{copies}")
    target.parent.mkdir(exist_ok=True)
    for path in list_folder(self.folder):
      if path.name == str(step) or path.name.startswith(f"{step}."):
        move(path, target.with_name(target.name + path.name.removeprefix(str(step))))
    return target

  def restore(self, step: int, abstract_state: PyTree) -> PyTree:
    """The state of a step; `abstract_state` gives shapes, types and where it should lie."""
    arguments = ocp.args.StandardRestore(abstract_state)
    with self._reading(step):
      state = ocp.StandardCheckpointHandler().restore(self.folder / str(step) / "state", args=arguments)
    return self._as_saved(step, state, abstract_state)

  def restore_variables(self, step: int, abstract_variables: PyTree, *, averaged: bool = False) -> PyTree:
    """Parameters and norm statistics of a step; the optimizer's state is not read.

    Args:
      averaged: the parameters' average (see config.train.ema), which is in that state, in their place.
    """
    some = dict(abstract_variables)
    if averaged:
      some["opt_state"] = {AVERAGE: {"params": some.pop("params")}}
    where = ocp.checkpoint_utils.construct_restore_args(some)
    arguments = ocp.args.PyTreeRestore(some, restore_args=where, partial_restore=True)
    folder = self.folder / str(step) / "state"
    with self._reading(step):  # a partial restore tells neither what is missing nor what is left over
      stored = ocp.PyTreeCheckpointHandler().metadata(folder).tree
      if odd := leaf_names(part_of(stored, some)) ^ leaf_names(some):
        raise ValueError(f"of another network than config.json's, in {', '.join(sorted(odd)[:3])}, ...")
      read = ocp.PyTreeCheckpointHandler().restore(folder, args=arguments)
    read = self._as_saved(step, read, some)
    if averaged:
      read["params"] = read.pop("opt_state")[AVERAGE]["params"]
    return read

  def run_information(self, step: int) -> dict[str, Any]:
    """The JSON saved beside the state: data position, config, category table, digests of the arrays."""
    with self._reading(step):
      run = self.own_run_information(step)
    return run

  def own_run_information(self, step: int) -> dict[str, Any]:
    """The same for one process alone."""
    path = self.folder / str(step) / "run" / "metadata"
    return parse_json(path.read_bytes(), path, "it is damaged")

  def _as_saved(self, step: int, tree: PyTree, wanted: PyTree) -> PyTree:
    """The arrays that were read, lying as is wanted; or Damaged if their digests are not the saved ones."""
    saved = self.run_information(step).get("digests", {})  # older checkpoints have none
    now = digests(tree) if saved else {}
    with self._reading(step):
      if other := [name for name, number in now.items() if number != saved.get(name)]:
        raise ValueError(f"{len(other)} arrays are not what was saved: {', '.join(other[:3])}, ...")
    # Orbax leaves the axes in their own order.
    return jax.device_put(tree, jax.tree.map(lambda x: x.format, wanted))

  @contextmanager
  def _reading(self, step: int) -> Iterator[None]:
    """Makes any failure of any process a Damaged in all of them; nothing in here may wait for the others."""
    cause = ""
    try:
      if not (self.folder / str(step) / COMMITTED).exists():
        raise FileNotFoundError(f"it has no {COMMITTED}")
      yield
    except (MemoryError, jax.errors.JaxRuntimeError):
      raise
    except Exception as error:  # Orbax and TensorStore raise many types for a damaged folder
      cause = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
      if not_now(error) or any(word in cause for word in NOT_NOW):
        raise
    if jax.process_count() > 1:
      failed = np.flatnonzero(multihost_utils.process_allgather(np.array(bool(cause))))
      if failed.size and not cause:
        cause = f"process {failed[0]} finds it damaged"
    if cause:
      raise Damaged(f"the checkpoint {self.folder / str(step)} cannot be read ({cause})")


def not_now(error: Exception) -> bool:
  """Whether an error is of the way to the storage, not of what lies there."""
  of_network = type(error).__module__.split(".")[0] in ("gcsfs", "aiohttp", "google", "requests")
  lacking = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
  return of_network or (isinstance(error, OSError) and not isinstance(error, lacking))


def leaf_names(tree: PyTree) -> set[str]:
  """As in `digests`."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves}


def list_folder(folder: epath.Path) -> list[epath.Path]:
  return list(folder.iterdir()) if folder.is_dir() else []
