"""What the place of a workdir can do: its room, and names that are taken for patterns."""

import errno
import os
import sys

from etils import epath

from iou_det.errors import UserError
from iou_det.storage import absolute, in_bucket

PATTERN = "[]*?"


def check_name(workdir: str | os.PathLike[str]) -> None:
  """Refuses a path in which Orbax sees a pattern: it would find none of the files that it wrote."""
  path = str(absolute(epath.Path(workdir)))
  if taken := sorted({c for c in path if c in PATTERN}):
    raise UserError(
      f"--workdir={workdir}: checkpoints under {path} could not be read again, as {' '.join(taken)} stand "
      f"for a pattern there; give a path without {' '.join(PATTERN)}"
    )


def room(folder: epath.Path) -> int:
  """Bytes that may still be written there, as far as can be told."""
  there = None if in_bucket(folder) else os.statvfs(folder)
  return there.f_bavail * there.f_frsize if there and there.f_blocks else sys.maxsize


def is_full(error: BaseException | None) -> bool:
  """Whether an error, or what it came of, is that of a full disk or quota."""
  if error is None:
    return False
  full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
  said = any(text in str(error) for text in ("No space left", "quota exceeded"))
  return full or said or is_full(error.__cause__ or error.__context__)


def no_room(folder: str | os.PathLike[str], also: str = "") -> UserError:
  return UserError(
    f"no space left in {folder}{also}; earlier checkpoints are kept; make room and give the same command "
    "again"
  )
