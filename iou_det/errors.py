"""What ends a command other than success or a bug, and JSON files, which are read whole or end it."""

import json
from pathlib import Path
from typing import Any

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: run the same command again


class UserError(ValueError):
  """Bad input. The message is one line: what was got, what is allowed, what to do.

  The command line prints it without a traceback and exits with code 2.
  """


class Preempted(Exception):
  """The machine is about to be taken away; the state is saved. The command line exits with EXIT_PREEMPTED."""


def read_json(path: Path, remedy: str, **options: Any) -> Any:
  """The content of a JSON file that is there; `options` are those of `json.loads`."""
  try:
    return json.loads(path.read_bytes(), **options)
  except ValueError as error:  # not UTF-8, or not JSON
    raise UserError(f"{path} is not JSON, or not whole ({error}); {remedy}") from None
