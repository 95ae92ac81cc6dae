"""Paths of this machine and of buckets, files that are written whole or not at all, JSON that is read whole
or refused."""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import psutil
from etils import epath

from iou_det import bucket
from iou_det.errors import UserError

os.environ["EPATH_USE_TF"] = "false"  # epath would leave gs:// to TensorFlow where the extra `prepare` is

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
  return Path(text)


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
  with part.open("wb") as file:
    yield file  # type: ignore[misc]
  part.replace(path)  # type: ignore[arg-type]


def write_whole(path: AnyPath, content: str | bytes) -> None:
  with whole_file(path) as file:
    file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: AnyPath, value: Any) -> None:
  write_whole(path, json.dumps(value) + "\n")


def read_json(path: AnyPath, remedy: str, **options: Any) -> Any:
  """The content of a JSON file that is there; `options` are those of `json.loads`."""
  try:
    return json.loads(path.read_bytes(), **options)
  except FileNotFoundError:  # gcsfs does not say which
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path)) from None
  except ValueError as error:  # not UTF-8, or not JSON
    raise UserError(f"{path} is not JSON, or not whole ({error}); {remedy}") from None


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
