"""Files that are written whole or not at all, JSON that is read whole or refused, shared memory."""

import errno
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import psutil
from etils import epath

from iou_det.errors import UserError

AnyPath: TypeAlias = Path | epath.Path  # of this machine, or of either kind


def user_path(text: str | os.PathLike[str]) -> epath.Path:
  """A path that a user gave: of this machine, or gs://BUCKET/... ; a UserError for another kind."""
  return epath.Path(text)


def absolute(path: AnyPath) -> epath.Path:
  """Not by epath's own `absolute`, which puts the current folder before gs://."""
  return epath.Path(path) if in_bucket(path) else epath.Path(path).absolute()


def in_bucket(path: AnyPath) -> bool:
  return os.fspath(path).startswith("gs://")


def on_object_store(path: AnyPath) -> bool:
  """Whether each change of a file uploads all of it: in a bucket, and where FUSE mounts one (or another)."""
  if in_bucket(path):
    return True
  real = os.path.realpath(path)
  holds = lambda point: os.path.commonpath([real, point]) == point
  mounts = [p for p in psutil.disk_partitions(all=True) if holds(p.mountpoint)]
  kind = max(mounts, key=lambda p: len(p.mountpoint)).fstype if mounts else ""
  return kind == "fuse" or (kind.startswith("fuse.") and kind != "fuse.fuse-overlayfs")  # a container's disk


def write_whole(path: AnyPath, content: str | bytes | Iterable[bytes]) -> int:
  """Writes beside and renames, so that a file that is there is whole; a large one comes in pieces.

  Returns:
    The CRC-32 of what was written.
  """
  if isinstance(content, (str, bytes)):
    content = [content.encode() if isinstance(content, str) else content]
  part, crc = path.with_name(f"{path.name}.part"), 0
  try:
    with part.open("wb") as file:
      for piece in content:
        file.write(piece)
        crc = zlib.crc32(piece, crc)
    part.replace(path)
  except OSError as error:
    error.filename = error.filename or str(path)  # a full disk is told when it is written, by number alone
    raise
  return crc


def write_json(path: AnyPath, value: Any) -> None:
  """Writes JSON, a dict with its seal (see `sealed`)."""
  write_whole(path, json.dumps(sealed(value) if isinstance(value, dict) else value) + "\n")


def read_json(path: AnyPath, remedy: str, **options: Any) -> Any:
  """The content of a JSON file that is there, without its seal; `options` are those of `json.loads`."""
  return parse_json(path.read_bytes(), path, remedy, **options)


def parse_json(content: bytes, path: AnyPath, remedy: str, **options: Any) -> Any:
  """The content of a JSON file; a UserError if it is not JSON, or not what was sealed."""
  try:
    value = json.loads(content, **options)
    return unsealed(value) if isinstance(value, dict) and not options else value
  except ValueError as error:  # not UTF-8, not JSON, or another seal
    raise UserError(f"{path} is not JSON, or not whole ({error}); {remedy}") from None


SEAL = "crc32"  # the last key of a sealed dict


def checksum(value: Any) -> int:
  """The same for the same JSON, however it is spaced and its keys are ordered."""
  as_read = json.loads(json.dumps(value))  # keys are text then
  return zlib.crc32(json.dumps(as_read, sort_keys=True).encode())


def sealed(value: dict[str, Any]) -> dict[str, Any]:
  """With its checksum: a changed byte is seen when it is read."""
  return value | {SEAL: checksum(value)}


def unsealed(value: dict[str, Any]) -> dict[str, Any]:
  """Without its checksum, or a ValueError if it has another one. Files of older versions have none."""
  rest = {k: v for k, v in value.items() if k != SEAL}
  if SEAL in value and value[SEAL] != checksum(rest):
    raise ValueError("its checksum is another")
  return rest


SHARED = "/dev/shm"  # where Linux keeps shared memory and what processes wait on; in a container, 64 MiB


@contextmanager
def shared_memory(user: str, also: str = "") -> Iterator[None]:
  """Says that it is shared memory that is missing, as the system's error names no file."""
  try:
    yield
  except OSError as error:
    if error.filename or error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT):
      raise
    there = psutil.disk_usage(SHARED) if os.path.isdir(SHARED) else None
    size = f"{there.free / 2**20:.1f} of {there.total / 2**20:.1f} MiB are free" if there else "there is none"
    raise UserError(
      f"{user}: needs shared memory, {SHARED}, that can be written ({error.strerror}; {size}); give the "
      f"container more (docker run --shm-size=8g, in Kubernetes an emptyDir of medium Memory){also}"
    ) from None
