"""Paths of this machine and of buckets; files that are written whole or not at all, JSON that is read whole
or refused; shared memory."""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import psutil
from etils import epath

from iou_det import bucket
from iou_det.errors import UserError

os.environ["EPATH_USE_TF"] = "false"  # epath would leave gs:// to TensorFlow where it is installed

AnyPath: TypeAlias = Path | epath.Path  # of this machine, or of either kind

ALLOWED = "give a path of this machine or gs://BUCKET/FOLDER"
MOUNT = (
  "mount the bucket (gcsfuse --implicit-dirs --rename-dir-limit=100000 BUCKET FOLDER; on GKE the Cloud "
  "Storage FUSE CSI driver with these options) or copy it (gcloud storage cp -r), and give that folder"
)


def user_path(text: str | os.PathLike[str], *, write: bool = False) -> epath.Path:
  """A path that a user gave: of this machine, or gs://BUCKET/...; a UserError for another kind.

  Also for a bucket that is not there, or may not be read (`write`: written): at once, not hours later.
  """
  given = os.fspath(text)
  check_not_empty(given)
  if match := re.fullmatch(r"gs://([a-z0-9][a-z0-9._-]+[a-z0-9])/+([^/].*)", given):
    if ".." in given.split("/"):
      raise UserError(f"{given}: an object store knows no '..'; {ALLOWED}")
    bucket.check_readable(match[1])
    if write:
      bucket.check_writable(match[1], match[2].rstrip("/"))
  elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", given):
    raise UserError(f"{given} is no path that can be read and written here; {ALLOWED}")
  elif re.match(r"/+(gs|s3|az|hf)(/|$)", given):
    raise UserError(f"{given}: epath takes /{given.lstrip('/')[:2]} for a bucket; {ALLOWED}, of another name")
  return epath.Path(given)


def local_path(text: str | os.PathLike[str], what: str, remedy: str = MOUNT) -> Path:
  """A path that has to be of this machine; a UserError, that begins with `what` it is, for any other."""
  if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", os.fspath(text)):
    raise UserError(f"{what} {os.fspath(text)} has to be a path of this machine: {remedy}")
  check_not_empty(os.fspath(text), f"{what}: ")
  return Path(text)


def check_not_empty(path: str, what: str = "") -> None:
  """Refuses what `--workdir=$UNSET` gives: it would be the current folder."""
  if not path:
    raise UserError(f"{what}the path is empty; give one (. is the current folder)")


def absolute(path: AnyPath) -> epath.Path:
  """Not by epath's own `absolute`, which puts the current folder before gs://."""
  return epath.Path(path) if in_bucket(path) else epath.Path(path).absolute()


def in_bucket(path: AnyPath) -> bool:
  return os.fspath(path).startswith("gs://")


@contextlib.contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
  """A file for libraries that read no gs://: itself, or a copy while the block lasts."""
  if not in_bucket(path):
    yield Path(path)
    return
  with tempfile.TemporaryDirectory() as folder:
    copy = Path(folder) / path.name
    with path.open("rb") as source, copy.open("wb") as file:
      shutil.copyfileobj(source, file, 2**24)  # type: ignore[misc]
    yield copy


@contextlib.contextmanager
def whole_file(path: AnyPath) -> Iterator[BinaryIO]:
  """A file to write to, which is at `path` if the block ends without an error.

  It is written beside and renamed. In a bucket an object appears when it is whole, but also when a block that
  writes it is left by an error: so it is made here first.
  """
  if in_bucket(path):
    with tempfile.TemporaryFile() as file:
      yield file
      file.seek(0)
      with path.open("wb") as target:
        shutil.copyfileobj(file, target, 2**24)  # type: ignore[misc]
    return
  part = path.with_name(f"{path.name}.part")
  try:
    with part.open("wb") as file:
      yield file  # type: ignore[misc]
    part.replace(path)  # type: ignore[arg-type]
  except BaseException as error:
    with contextlib.suppress(OSError):
      part.unlink()
    if isinstance(error, OSError):
      error.filename = error.filename or str(path)  # a full disk is told when it is written, by number alone
    raise


def write_whole(path: AnyPath, content: str | bytes | Iterable[bytes]) -> int:
  """Writes a file that is whole when it is there; a large one comes in pieces. Returns its CRC-32."""
  if isinstance(content, (str, bytes)):
    # Names that are not UTF-8 have halves of surrogate pairs.
    content = [content.encode(errors="backslashreplace") if isinstance(content, str) else content]
  crc = 0
  with whole_file(path) as file:
    for piece in content:
      file.write(piece)
      crc = zlib.crc32(piece, crc)
  return crc


def write_json(path: AnyPath, value: Any) -> None:
  """Writes JSON, a dict with its seal (see `sealed`)."""
  write_whole(path, json.dumps(sealed(value) if isinstance(value, dict) else value) + "\n")


def read_json(path: AnyPath, remedy: str, **options: Any) -> Any:
  """The content of a JSON file that is there, without its seal; `options` are those of `json.loads`."""
  try:
    return parse_json(path.read_bytes(), path, remedy, **options)
  except FileNotFoundError:  # gcsfs does not say which
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path)) from None


def parse_json(content: bytes, path: AnyPath, remedy: str, **options: Any) -> Any:
  """The content of a JSON file; a UserError if it is not JSON, or not what was sealed."""
  try:
    value = json.loads(content, **options)
    return unsealed(value) if isinstance(value, dict) and not options else value
  except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested without end, or another seal
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


def move(path: epath.Path, target: epath.Path) -> None:
  """A folder to another name; a bucket has none, so that each file of it gets the other name there."""
  if not in_bucket(path):
    path.rename(target)
    return
  name, files = os.fspath(path), bucket.connect().files
  for source in files.find(name):
    files.cp_file(source, os.fspath(target) + source.removeprefix(name.removeprefix("gs://")))
    files.rm_file(source)  # not `mv`: a store that cannot move is asked six times, for half a minute


def modified(path: AnyPath) -> float:
  """When a file was written, in seconds; whole ones in a bucket."""
  return path.stat().mtime if in_bucket(path) else os.stat(path).st_mtime  # type: ignore[union-attr]


def on_object_store(path: AnyPath) -> bool:
  """Whether each change of a file uploads all of it: in a bucket, and where FUSE mounts one (or another)."""
  if in_bucket(path):
    return True
  real = os.path.realpath(path)
  holds = lambda point: os.path.commonpath([real, point]) == point
  mounts = [p for p in psutil.disk_partitions(all=True) if holds(p.mountpoint)]
  kind = max(mounts, key=lambda p: len(p.mountpoint)).fstype if mounts else ""
  return kind == "fuse" or (kind.startswith("fuse.") and kind != "fuse.fuse-overlayfs")  # a container's disk


SHARED = "/dev/shm"  # where Linux keeps shared memory and what processes wait on; in a container, 64 MiB


@contextlib.contextmanager
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
