"""One run at a time in a workdir, and one workdir for all processes of a run: lock.json.

A run that was killed leaves its lock behind. On its own machine the process tells whether it lives; on
others, or in another container, only the lock does: a living run touches it every RENEW seconds.
"""

import json
import os
import socket
import threading
import time
import uuid
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import psutil
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from iou_det import leaving
from iou_det.errors import UserError
from iou_det.processes import of_process_0
from iou_det.storage import in_bucket, on_object_store, read_json, sealed, write_json

FILE = "lock.json"
RENEW = 15.0  # seconds between touches
STALE = 60.0  # seconds without one, after which a run is taken for dead
STALE_MOUNTED, SEEN_MOUNTED = 180.0, 90.0  # the same where a bucket is mounted: it is looked up once a minute
SETTLE = 0.3  # seconds in which a second one that takes the lock at the same time has written it too
SEEN = 10.0  # seconds within which what process 0 wrote is seen by all; NFS keeps what it knows of a folder
CHANGED = "is used by another run by now"


class Lock:
  """Holds `workdir/lock.json` from `with` to its end; all processes of the run have to.

  Raises:
    UserError: another run has it, or a process sees another folder under this name than process 0; in all.
  """

  def __init__(self, workdir: str | os.PathLike[str]):
    self.path = epath.Path(workdir) / FILE
    me = psutil.Process()
    self.owner = {
      "host": socket.gethostname(), "pid": me.pid, "started": me.create_time(), "machine": machine(),
      "time": time.time(), "nonce": uuid.uuid4().hex}  # fmt: skip
    mounted = on_object_store(self.path) and not in_bucket(self.path)
    self.stale, self.seen = (STALE_MOUNTED, SEEN_MOUNTED) if mounted else (STALE, SEEN)
    self._ended = threading.Event()
    self._renewing = threading.Thread(target=self._renew, name="lock", daemon=True)
    self._lead = jax.process_index() == 0

  def __enter__(self) -> "Lock":
    refusal = ""
    if self._lead:
      try:
        self._take()
        leaving.at_exit.append(self._leave)
        self._renewing.start()
      except UserError as error:
        refusal = str(error)
      except OSError as error:
        refusal = (
          f"--workdir={self.path.parent} cannot be written ({error.strerror or error}); make room or give "
        )
        refusal += "another path"
    refusal, self.owner["nonce"] = of_process_0([refusal, self.owner["nonce"]])
    if refusal:
      raise UserError(refusal)
    try:
      self._check_all_see_it()
    except UserError:
      self._leave()
      raise
    return self

  def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
    self._leave()

  def check(self) -> None:
    """A UserError if another run has taken the lock since, as this one was suspended for so long."""
    if of_process_0(self._lead and not self._is_ours()):
      now = describe(self._read())
      raise UserError(
        f"--workdir={self.path.parent} {CHANGED} ({now}), as this one was suspended or {FILE} was removed; "
        "nothing more is written here; let one of them go on, or give another --workdir"
      )

  def _leave(self) -> None:
    self._ended.set()
    if self._renewing.is_alive():  # in a bucket, its write would bring the file back
      self._renewing.join(5)
    if self._leave in leaving.at_exit:
      leaving.at_exit.remove(self._leave)
    if self._lead and self._read().get("nonce") == self.owner["nonce"]:
      self.path.unlink(missing_ok=True)

  def _read(self) -> dict[str, Any]:
    """The lock that is there; {} for none, or one that cannot be read."""
    try:
      return self._content()
    except OSError:
      return {}

  def _content(self) -> dict[str, Any]:
    try:
      lock = read_json(self.path, "")
    except (FileNotFoundError, UserError):
      return {}
    return lock if isinstance(lock, dict) else {}

  def _is_ours(self) -> bool:
    """Asked a few times where nothing is read, as it is between two versions of a file in a bucket.

    Also if the storage does not answer: that says nothing about whose it is.
    """
    silent = False
    for _ in range(3):
      try:
        if there := self._content():
          return there.get("nonce") == self.owner["nonce"]
        silent = False
      except Exception:  # of the system or of gcsfs
        silent = True
      time.sleep(SETTLE)
    return silent

  def _write(self) -> None:
    write_json(self.path, self.owner)

  def _renew(self) -> None:
    while not self._ended.wait(RENEW):
      try:
        if not self._is_ours():
          return  # see `check`
        if not in_bucket(self.path):
          os.utime(self.path)  # also where no room is left
        else:
          self._write()
      except Exception as error:  # of the system or of gcsfs; tried again, others wait for STALE seconds
        logging.warning(f"{self.path} cannot be renewed ({error})")

  def _take(self) -> None:
    self.path.parent.mkdir(parents=True, exist_ok=True)
    if not in_bucket(self.path):
      try:
        with open(self.path, "x", encoding="utf-8") as file:
          file.write(json.dumps(sealed(self.owner)) + "\n")
        return
      except FileExistsError:
        pass
      except OSError:  # no room
        self.path.unlink(missing_ok=True)
        raise
    if self.path.exists():
      self._refuse_if_alive()
    self._write()
    time.sleep(SETTLE)
    if self._read().get("nonce") != self.owner["nonce"]:
      raise self._refusal(self._read())

  def _refuse_if_alive(self) -> None:
    """Comes back if the run whose lock is there is dead."""
    there = self._read()
    if there.get("machine") == self.owner["machine"]:
      if is_running(there):
        raise self._refusal(there)
      logging.warning(f"{self.path.parent} was locked by {describe(there)}, which is not running any more")
      return
    age = self._age()
    if age < self.stale:
      logging.info(
        f"{self.path} is of {describe(there)}: watching for {self.stale:.0f} s whether that run goes on"
      )
      before, until = (self._mtime(), there), time.monotonic() + self.stale
      while time.monotonic() < until:
        time.sleep(min(1.0, self.stale / 10))
        if not self.path.exists():
          return
        if (self._mtime(), now := self._read()) != before:
          raise self._refusal(now)
    logging.warning(f"{self.path.parent} was locked by {describe(there)}, which gave no sign of life since")

  def _mtime(self) -> float:
    try:
      return float(self.path.stat().mtime)
    except OSError:
      return 0.0

  def _age(self) -> float:
    """Seconds since the lock was touched, by the clock of where it lies."""
    now = self.path.with_name(f"{FILE}.{self.owner['nonce']}")
    now.write_text("")
    try:
      return float(now.stat().mtime) - self._mtime()
    finally:
      now.unlink()

  def _refusal(self, there: dict[str, Any]) -> UserError:
    return UserError(
      f"--workdir={self.path.parent} is in use by {describe(there)}; wait for that run, end it, or give "
      f"another --workdir (its lock is {self.path})"
    )

  def _check_all_see_it(self) -> None:
    """Raises a UserError in all processes if one does not find process 0's lock where it looks."""
    if jax.process_count() == 1:
      return
    until = time.monotonic() + self.seen
    while not (seen := self._read().get("nonce") == self.owner["nonce"]) and time.monotonic() < until:
      time.sleep(0.5)
    name = np.frombuffer(socket.gethostname().encode()[:64].ljust(64), np.uint8)
    all_seen = np.asarray(multihost_utils.process_allgather(np.append(name, np.uint8(seen))))
    blind = {
      i: bytes(row[:64]).decode(errors="replace").strip() for i, row in enumerate(all_seen) if not row[64]
    }
    if blind:
      who = ", ".join(f"process {i} on {host}" for i, host in blind.items())
      raise UserError(
        f"{who} does not see in --workdir={self.path.parent} what process 0 wrote there; give a folder that "
        "all processes share under the same name (NFS, gs://...)"
      )


def machine() -> str:
  """Where a process id means the same process: the host since it was started, and the container."""
  boot = Path("/proc/sys/kernel/random/boot_id")
  identity = [socket.gethostname(), boot.read_text(encoding="utf-8").strip() if boot.exists() else ""]
  return "/".join([*identity, os.readlink("/proc/self/ns/pid") if boot.exists() else ""])


def is_running(lock: dict[str, Any]) -> bool:
  """Whether the process that wrote a lock on this machine is there, and not another with its number."""
  try:
    process = psutil.Process(lock["pid"])
    return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - lock["started"]) < 2
  except (psutil.Error, KeyError, TypeError, ValueError):
    return False


def describe(lock: dict[str, Any]) -> str:
  try:
    since = datetime.fromtimestamp(lock["time"]).strftime("%Y-%m-%d %H:%M:%S")
    return f"process {lock['pid']} on {lock['host']} since {since}"
  except (KeyError, TypeError, ValueError, OverflowError, OSError):
    return "a run of unknown origin"
