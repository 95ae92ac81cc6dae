"""Strict reading of config files, their arguments and overrides on the command line."""

import difflib
import itertools
import runpy
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from iou_det.config import W_LOC, validate
from iou_det.errors import UserError


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
  """Parses a config file's argument, `name=value,name=value`; values get the default's type.

  Raises:
    UserError: for a name that is not in `defaults` or a value of another type.
  """
  values = dict(defaults)
  for item in filter(None, (arg or "").split(",")):
    name, equals, text = item.partition("=")
    if name not in defaults or not equals:
      known = ", ".join(f"{k}={v}" for k, v in defaults.items())
      raise UserError(f"config argument {item!r} is not known; known, with defaults: {known}")
    try:
      values[name] = type(defaults[name])(text)
    except ValueError:
      kind = type(defaults[name]).__name__
      raise UserError(f"config argument {item!r}: {text!r} is not a value of type {kind}") from None
  return values


def loss_settings(eta: float, lambd: float, w_loc: str) -> dict[str, Any]:
  """Loss settings of a config's argument; w_loc: "paper" (Table 4's for this `lambd`), "auto" or a number.

  Raises:
    UserError: if w_loc is none of these, or Table 4 has none for this `lambd`.
  """
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


def check_command_line(argv: list[str]) -> None:
  """Checks `--config=FILE:ARG` and the names of `--config.a.b` before absl parses them.

  Raises:
    UserError: for a file that is missing, an argument it refuses, or an unknown field; names the known ones.
  """
  given = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
  given += [b for a, b in itertools.pairwise(argv) if a == "--config"]
  overrides = [
    a.removeprefix("--").removeprefix("no") for a in argv if a.startswith(("--config.", "--noconfig."))
  ]
  if not given:
    if overrides:
      raise UserError(f"--{overrides[0]} is given without --config=FILE; name the file that it changes")
    return
  path, _, arg = given[-1].partition(":")
  config = read_config_file(Path(path), arg)
  for override in overrides:
    node: Any = config
    for part in override.split("=", 1)[0].split(".")[1:]:
      if not isinstance(node, ConfigDict) or part not in node:
        fields = sorted(node) if isinstance(node, ConfigDict) else []
        near = difflib.get_close_matches(part, fields, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"--{override}: there is no field {part!r}; {hint}known here: {', '.join(fields)}")
      node = node[part]


def read_config_file(path: Path, arg: str = "") -> ConfigDict:
  """What `get_config(arg)` of a config file returns.

  Raises:
    UserError: for a file that is missing or has no get_config, or an argument that it refuses.
  """
  if not path.is_file():
    known = ", ".join(str(p) for p in sorted(path.parent.glob("*.py"))) or "none in that folder"
    raise UserError(f"--config={path}: there is no such file; known: {known}")
  get_config = runpy.run_path(str(path)).get("get_config")
  if get_config is None:
    raise UserError(f"--config={path}: the file has no function get_config; see configs/ for examples")
  return get_config(arg) if arg else get_config()


def config_from_flag(flag: flags.FlagHolder) -> ConfigDict:
  """The validated config of a `--config` flag."""
  if flag.value is None:
    raise UserError("--config is missing; for example --config=configs/shapes.py")
  config = flag.value
  validate(config)
  return config
