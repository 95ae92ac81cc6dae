"""Whose folder it is: the config that a run was started with."""

import json
import os
import shlex
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from iou_det import config as config_lib
from iou_det.errors import UserError
from iou_det.storage import AnyPath, read_json, write_whole
from iou_det.workdir.checkpoints import Checkpoints
from iou_det.workdir.place import check_name
from iou_det.workdir.probe import PROBE


def read_config(workdir: str | os.PathLike[str]) -> ConfigDict:
  """The config that a workdir was trained with."""
  path = epath.Path(workdir) / "config.json"
  if not path.is_file():
    why = "is not a training run (it has no config.json)"
    raise UserError(f"--workdir={workdir} {why}; give train's --workdir")
  return config_lib.from_dict(read_json(path, "restore it, or train in a new --workdir"))


def read_checked_config(workdir: AnyPath) -> ConfigDict:
  """The same, compared with the newest checkpoint that is there; for one process that reads no weights."""
  config = read_config(workdir)
  checkpoints = Checkpoints(workdir)
  for step in checkpoints.steps()[-1:]:
    check_same_config(config, checkpoints.own_run_information(step), workdir)
  return config


def check_no_file(workdir: AnyPath) -> None:
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f"--workdir={workdir} is a file; give a folder")


def check_workdir(workdir: AnyPath, config: ConfigDict) -> None:
  """Refuses a workdir that belongs to another config, is not a run's, or where checkpoints cannot be read."""
  check_name(workdir)
  check_no_file(workdir)
  if (workdir / "config.json").exists():
    there = read_config(workdir)
    different = without_epochs(config_lib.training_differences(there, config), there)
    if different and all(name.startswith(("train.", "own.")) for name in different):
      raise UserError(refusal(workdir, different, there))
    if different:
      raise UserError(
        f"--workdir={workdir} belongs to another config (there != here: {'; '.join(different)}); "
        "give another --workdir, or the same config to resume"
      )
  elif workdir.is_dir() and any(not is_left_over(p) for p in workdir.iterdir()):
    raise UserError(
      f"--workdir={workdir} is neither empty nor a training run (no config.json): restore it, or give a new "
      "folder"
    )


def of_other_data(workdir: AnyPath, config: ConfigDict) -> str:
  """What is said after a refusal of data where a run lies that was trained on others."""
  if not (workdir / "config.json").exists():
    return ""
  there = read_config(workdir).data.path
  return f" (--workdir={workdir} was trained on {there})" if there != config.data.path else ""


def without_epochs(different: list[str], there: ConfigDict) -> list[str]:
  """Differences that forbid to go on: with the step schedule the number of epochs changes no step before.

  If the schedules differ, that is a difference of its own.
  """
  epochs = lambda line: line.startswith("train.epochs:") and there.train.schedule == "step"
  return [line for line in different if not epochs(line)]


def refusal(workdir: AnyPath, different: list[str], there: ConfigDict) -> str:
  """Why another schedule cannot go on here, and what can."""
  flag = lambda value: shlex.quote(f"--{value}")
  init = f"config=own:init={workdir}" if there.own.size else f"config.model.init={workdir}"
  new = f"{flag(init)} {flag(f'workdir={workdir}_more')}"
  step = f"--config.train.schedule=step '--config.train.decay_epochs=()' {flag(f'workdir={workdir}_step')}"
  cosine = there.train.schedule == "cosine" and any(line.startswith("train.epochs:") for line in different)
  why = ", on which the rate of every step of its cosine schedule depends" if cosine else ""
  or_anew = (
    f"; or train anew, {step}, with a schedule whose train.epochs can be raised later" if cosine else ""
  )
  return (
    f"--workdir={workdir} was trained otherwise (there != here: {'; '.join(different)}){why}; the same "
    f"command with {new} trains on from its last weights in a new run{or_anew}"
  )


def note_epochs(workdir: AnyPath, epochs: int) -> None:
  """Lets config.json say how long the run is now."""
  config = read_config(workdir)
  if config.train.epochs != epochs:
    config.train.epochs = epochs
    write_whole(workdir / "config.json", json.dumps(config.to_dict()) + "\n")


def is_left_over(path: AnyPath) -> bool:
  """Whether a file of a workdir is of a start that was killed before there was a config.json."""
  return path.name.startswith(("config.json.", "lock.json", PROBE))


def check_same_config(config: ConfigDict, run: dict[str, Any], workdir: AnyPath) -> None:
  """Refuses a config that is not what a checkpoint's run information says: config.json was changed since."""
  then = config_lib.from_dict(run["config"])
  if config.loss.w_loc == "auto":  # fitted there
    then = config_lib.with_loss(then, w_loc="auto")
  if different := without_epochs(config_lib.training_differences(config, then), then):
    raise UserError(
      f"{workdir}/config.json is not what its checkpoint was trained with (config.json != checkpoint: "
      f"{'; '.join(different)}); restore config.json"
    )
