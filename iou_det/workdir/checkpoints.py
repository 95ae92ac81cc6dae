"""Checkpoints of a run: all that is Orbax's is here."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as managers

from iou_det.errors import UserError
from iou_det.storage import absolute
from iou_det.workdir.metrics import read_metrics

AVERAGE = "average"  # the key of the parameters' average in the optimizer's state


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


def has_checkpoint(workdir: str | os.PathLike[str]) -> bool:
  """Whether a workdir has a finished checkpoint; needs no manager and makes no folder."""
  folder = absolute(epath.Path(workdir)) / "checkpoints"
  return folder.is_dir() and bool(ocp.utils.checkpoint_steps(folder))


def part_of(stored: PyTree, some: PyTree) -> PyTree:
  """What a checkpoint holds of the parts that are read of it: of the optimizer's state the average alone."""
  part = {name: stored.get(name) or {} for name in some}
  if "opt_state" in some:
    average = part["opt_state"].get(AVERAGE, {}) if isinstance(part["opt_state"], dict) else {}
    part["opt_state"] = {AVERAGE: {"params": average.get("params", {})}}
  return part


class Manager(ocp.CheckpointManager):
  """Orbax's manager, but it leaves JAX's preemption service to `iou_det.parallel.Preemption`: it stops at one
  exact value of one counter, and Orbax would count otherwise."""

  def reached_preemption(self, step: int) -> bool:
    return False


class Checkpoints:
  """The folder `workdir/checkpoints`: saves in the background, keeps the last few and the best AP."""

  def __init__(self, workdir: str | os.PathLike[str], keep: int = 1, read_only: bool = False):
    self.folder = absolute(epath.Path(workdir)) / "checkpoints"
    rows = read_metrics(epath.Path(workdir) / "metrics.jsonl")
    self.scores = {row["step"]: ap for row in rows for name, ap in row.items() if name.endswith("/AP")}
    if read_only and not self.folder.is_dir():
      command = f"iou-det train --config=... --workdir={workdir}"
      raise UserError(f"{workdir} has no checkpoints; train first: {command}")
    policy = managers.AnyPreservationPolicy([managers.LatestN(keep), BestScored(self.scores)])
    ours = {"create": not read_only, "cleanup_tmp_directories": not read_only, "read_only": read_only}
    options = ocp.CheckpointManagerOptions(preservation_policy=policy, **ours)
    self.manager = Manager(self.folder, options=options, item_names=("state", "run"))

  def take_scores_of_process_0(self) -> None:
    """Lets all processes go on from the same scores: file systems may show the others an older log."""
    steps = self.steps()
    ours = np.array([self.scores.get(step, np.nan) for step in steps])
    known = multihost_utils.broadcast_one_to_all(ours)
    self.scores.clear()
    self.scores |= {step: float(ap) for step, ap in zip(steps, known, strict=True) if not np.isnan(ap)}

  def save(self, step: int, state: PyTree, run: dict[str, Any]) -> None:
    """Starts saving; `run` is JSON (config, categories, data position)."""
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
    self.manager.save(step, args=items)

  def steps(self) -> list[int]:
    return sorted(self.manager.all_steps())

  def step_number(self, step: str) -> int:
    """Turns "last", "best" or a number into a step that is there."""
    steps = self.steps()
    known = f"there are {', '.join(map(str, steps)) or 'none'} in {self.folder}"
    if not steps:
      raise UserError(f"no finished checkpoint to read: {known}")
    if step == "last":
      return steps[-1]
    if step == "best":
      best = best_step(self.scores, steps)
      if best is None:
        raise UserError(f"--step=best: no checkpoint was evaluated; {known}; use --step=last")
      return best
    if not step.isdigit() or int(step) not in steps:
      raise UserError(f"--step={step}: must be last, best or a saved step; {known}")
    return int(step)

  def restore(self, step: int, abstract_state: PyTree) -> PyTree:
    """The state of a step; `abstract_state` gives shapes, types and where it should lie."""
    return self._read(step, state=ocp.args.StandardRestore(abstract_state))["state"]

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
    read = self._read(step, some, state=arguments)["state"]
    if averaged:
      read["params"] = read.pop("opt_state")[AVERAGE]["params"]
    return read

  def run_information(self, step: int) -> dict[str, Any]:
    """The JSON saved beside the state: data position, config, category table."""
    return self._read(step, run=ocp.args.JsonRestore())["run"]

  def _read(self, step: int, some: PyTree = None, **items: ocp.args.CheckpointArgs) -> Any:
    try:
      if some:  # a partial restore tells neither what is missing nor what is left over
        stored = ocp.PyTreeCheckpointHandler().metadata(self.folder / str(step) / "state").tree
        names = lambda tree: {jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_leaves_with_path(tree)}
        if different := names(part_of(stored, some)) ^ names(some):
          raise ValueError(
            f"of another network than config.json's, in {', '.join(sorted(different)[:3])}, ..."
          )
      return self.manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax and TensorStore raise many types for a damaged folder
      others = ", ".join(str(s) for s in self.steps() if s != step) or "none"
      raise UserError(
        f"the checkpoint {self.folder / str(step)} cannot be read "
        f"({type(error).__name__}: {str(error)[:200]}); other steps there: {others}; "
        "remove the damaged folder to go on from another, or train in a new --workdir"
      ) from error

  def close(self) -> None:
    """Waits for saves in the background."""
    self.manager.wait_until_finished()
    self.manager.close()
