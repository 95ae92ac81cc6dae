"""Files that are written whole or not at all, and JSON that is read whole or refused."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from etils import epath

from iou_det.errors import UserError


def user_path(text: str | os.PathLike[str]) -> epath.Path:
  """A path that a user gave: of this machine, or gs://BUCKET/... ; a UserError for another kind."""
  return epath.Path(text)


def write_whole(path: Path, content: str | bytes | Iterable[bytes]) -> None:
  """Writes beside and renames, so that a file that is there is whole; a large one comes in pieces."""
  if isinstance(content, (str, bytes)):
    content = [content.encode() if isinstance(content, str) else content]
  part = path.with_name(f"{path.name}.part")
  with part.open("wb") as file:
    file.writelines(content)
  part.replace(path)


def write_json(path: Path, value: Any) -> None:
  write_whole(path, json.dumps(value) + "\n")


def read_json(path: Path, remedy: str, **options: Any) -> Any:
  """The content of a JSON file that is there; `options` are those of `json.loads`."""
  try:
    return json.loads(path.read_bytes(), **options)
  except ValueError as error:  # not UTF-8, or not JSON
    raise UserError(f"{path} is not JSON, or not whole ({error}); {remedy}") from None
