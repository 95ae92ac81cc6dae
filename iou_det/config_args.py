"""Strict reading of config files, their arguments and overrides on the command line."""

import difflib
import runpy
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from iou_det.config import W_LOC, to_choose, validate
from iou_det.errors import UserError


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
  """Parses a config file's argument, `name=value,name=value`; values of the default's type or a UserError."""
  values = dict(defaults)
  for item in filter(None, (arg or "").split(",")):
    name, equals, text = item.partition("=")
    if name not in defaults or not equals:
      known = ", ".join(f"{k}={v}" for k, v in defaults.items())
      raise UserError(f"config argument {item!r} is not known; known, with defaults: {known}")
    try:
      values[name] = type(defaults[name])(text)
    except ValueError:
      kind = {int: "a whole number", float: "a number"}[type(defaults[name])]
      raise UserError(f"config argument {item!r}: {text!r} is not {kind}") from None
  return values


def loss_settings(eta: float, lambd: float, w_loc: str) -> dict[str, Any]:
  """Loss settings of a config's argument; w_loc: "paper" (Table 4's for this `lambd`), "auto" or a number."""
  if w_loc == "paper" and lambd not in W_LOC:
    known = ", ".join(map(str, W_LOC))
    raise UserError(
      f"lambd={lambd}: the paper gives w_loc for {known}; give w_loc=auto or a number for another"
    )
  if w_loc in ("paper", "auto"):
    return {"eta": eta, "lambd": lambd, "w_loc": W_LOC[lambd] if w_loc == "paper" else "auto"}
  try:
    return {"eta": eta, "lambd": lambd, "w_loc": float(w_loc)}
  except ValueError:
    raise UserError(f"w_loc={w_loc}: must be paper, auto or a number") from None


def check_command_line(argv: list[str]) -> list[str]:
  """Checks `--config=FILE:ARG` and the names of `--config.a.b` before absl parses them.

  Returns:
    The arguments with the path of a shipped config in place of its name (`--config=shapes:eta=0`), for absl.
  """
  resolved = list(argv)
  config: Any = None
  for i, argument in enumerate(argv):
    flag = "--config=" if argument.startswith("--config=") else ""
    if not flag and (i == 0 or argv[i - 1] != "--config"):
      continue
    file, colon, arg = argument.removeprefix(flag).partition(":")
    path = find_config(file)
    resolved[i] = f"{flag}{path}{colon}{arg}"
    config = read_config_file(path, arg)
  fields = [a for a in argv if a.startswith(("--config.", "--noconfig."))]
  overrides = [a.removeprefix("--").removeprefix("no") for a in fields]
  if overrides and config is None:
    raise UserError(f"--{overrides[0]} is given without --config=FILE; name the file that it changes")
  for override in overrides:
    node = config
    for part in override.split("=", 1)[0].split(".")[1:]:
      if not isinstance(node, ConfigDict) or part not in node:
        known = sorted(node) if isinstance(node, ConfigDict) else []
        near = difflib.get_close_matches(part, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"--{override}: there is no field {part!r}; {hint}known here: {', '.join(known)}")
      node = node[part]
  return resolved


def shipped_configs() -> Path:
  """The folder configs/: inside an installed package, beside it in a clone."""
  inside = Path(__file__).parent / "configs"
  return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def find_config(name: str) -> Path:
  """The path of a config file, given by its path or, a shipped one, by its name ("shapes")."""
  path = Path(name)
  shipped = {p.stem: p for p in sorted(shipped_configs().glob("*.py"))}
  if path.is_file():
    return path
  if name in shipped:
    return shipped[name]
  beside = sorted(map(str, path.parent.glob("*.py"))) if path.suffix else []
  raise UserError(f"--config={name}: there is no such file; known: {', '.join([*beside, *shipped])}")


def read_config_file(path: Path, arg: str = "") -> ConfigDict:
  """What `get_config(arg)` of a config file returns."""
  get_config = runpy.run_path(str(path)).get("get_config")
  if get_config is None:
    raise UserError(f"--config={path}: the file has no function get_config; see configs/ for examples")
  return get_config(arg) if arg else get_config()


def config_from_flag(flag: flags.FlagHolder) -> ConfigDict:
  """The config of a `--config` flag; valid, but for fields that `iou_det.training.own` is to choose."""
  if flag.value is None:
    raise UserError("--config is missing; for example --config=shapes")
  config = flag.value
  if not to_choose(config):
    validate(config)
  return config
