"""Whose folder it is: the config that a run was started with."""

import os

from etils import epath
from ml_collections import ConfigDict

from iou_det import config as config_lib
from iou_det.errors import UserError
from iou_det.storage import AnyPath, read_json


def read_config(workdir: str | os.PathLike[str]) -> ConfigDict:
  """The config that a workdir was trained with."""
  path = epath.Path(workdir) / "config.json"
  if not path.is_file():
    why = "is not a training run (it has no config.json)"
    raise UserError(f"--workdir={workdir} {why}; give train's --workdir")
  return config_lib.from_dict(read_json(path, "restore it, or train in a new --workdir"))


def check_workdir(workdir: AnyPath, config: ConfigDict) -> None:
  """Refuses a workdir that belongs to another config, or is not a run's."""
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f"--workdir={workdir} is a file; give a new folder")
  if (workdir / "config.json").exists():
    different = config_lib.training_differences(read_config(workdir), config)
    if different:
      raise UserError(
        f"--workdir={workdir} belongs to another config (there != here: {'; '.join(different)}); "
        "give another --workdir, or the same config to resume"
      )
  elif workdir.is_dir() and any(p.name != "config.json.part" for p in workdir.iterdir()):
    raise UserError(
      f"--workdir={workdir} is neither empty nor a training run (no config.json); give a new folder"
    )
