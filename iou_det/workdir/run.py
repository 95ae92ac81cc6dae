"""Whose folder it is: the config that a run was started with."""

import os
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from iou_det import config as config_lib
from iou_det.errors import UserError
from iou_det.storage import AnyPath, read_json
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


def check_workdir(workdir: AnyPath, config: ConfigDict) -> None:
  """Refuses a workdir that belongs to another config, is not a run's, or where checkpoints cannot be read."""
  check_name(workdir)
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f"--workdir={workdir} is a file; give a new folder")
  if (workdir / "config.json").exists():
    different = config_lib.training_differences(read_config(workdir), config)
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


def is_left_over(path: AnyPath) -> bool:
  """Whether a file of a workdir is of a start that was killed before there was a config.json."""
  return path.name.startswith(("config.json.", "lock.json", PROBE))


def check_same_config(config: ConfigDict, run: dict[str, Any], workdir: AnyPath) -> None:
  """Refuses a config that is not what a checkpoint's run information says: config.json was changed since."""
  then = config_lib.from_dict(run["config"])
  if config.loss.w_loc == "auto":  # fitted there
    then = config_lib.with_loss(then, w_loc="auto")
  if different := config_lib.training_differences(config, then):
    raise UserError(
      f"{workdir}/config.json is not what its checkpoint was trained with (config.json != checkpoint: "
      f"{'; '.join(different)}); restore config.json"
    )
