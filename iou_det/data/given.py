"""What a user names, or has in a folder: pictures and videos, by content."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from iou_det.data.headers import HEAD, SUFFIXES, VIDEO, VIDEO_SUFFIXES, kind_of, other_kind
from iou_det.data.images import printable
from iou_det.errors import UserError
from iou_det.storage import local_path


class Given(NamedTuple):
  """Files in the order named, those of a folder by name."""

  pictures: list[Path]
  videos: list[Path]
  passed: int  # names in folders that are neither


def given_files(arguments: Sequence[str]) -> Given:
  """Files, and for folders what is a picture or video in them by content or suffix.

  Passed over in a folder: other files, folders, names that begin with a dot.
  """
  pictures: list[Path] = []
  videos: list[Path] = []
  passed = 0
  for path in [local_path(argument, "image") for argument in arguments]:
    if path.is_dir():
      every = sorted(path.iterdir())
      inside = [p for p in every if not p.name.startswith(".") and p.is_file() and may_be_seen(p)]
      if not inside:
        raise UserError(
          f"{printable(path)}: the folder has no pictures or videos in it (names in it: {len(every)})"
        )
      passed += len(every) - len(inside)
    elif not path.is_file():
      raise UserError(f"{printable(path)}: there is no such file or folder")
    else:
      inside = [path]
    for file in inside:
      (videos if is_video(file) else pictures).append(file)
  return Given(pictures, videos, passed)


def begin(path: Path) -> bytes:
  try:
    with path.open("rb") as file:
      return file.read(512)
  except OSError:  # said when it is read
    return b""


def may_be_seen(path: Path) -> bool:
  return (
    path.suffix.lower() in SUFFIXES | VIDEO_SUFFIXES or bool(kind_of(begin(path)[:HEAD])) or is_video(path)
  )


def is_video(path: Path) -> bool:
  """By content; a file that is nothing else either, by its name: then it is damaged."""
  data = begin(path)
  if kind_of(data[:HEAD]):
    return False
  return other_kind(data) == VIDEO or path.suffix.lower() in VIDEO_SUFFIXES
