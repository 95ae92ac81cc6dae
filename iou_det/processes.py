"""Several processes as one program: how they find each other, decide as one, and end together."""

import atexit
import contextlib
import itertools
import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from jax._src import distributed  # for its key-value store
from jax.experimental import multihost_utils

from iou_det import leaving
from iou_det.errors import EXIT_PREEMPTED, UserError

# Seconds until JAX takes a process for dead and aborts the others, in C++; 100 by default. Ours is sooner and
# has a line and a code, but needs Python to run in each: so it counts while there are steps, not where Python
# may be busy for long (it reads annotations of gigabytes in one go).
JAX_HEARTBEAT = 50
BEATS, SECONDS = 6, 5  # so many that process 0 misses in a row, so many seconds apart
FAILURE, SEEN, DONE, BEAT = (f"iou_det/{name}" for name in ("failure", "seen/", "done", "beat/"))
NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # set by JAX's preemption service where SIGTERM was caught
LOST = ("Gloo", "UNAVAILABLE", "ABORTED", "CANCELLED", "Connection reset", "Connection closed")

_notice: Callable[[], None] | None = None  # what to do when one of the processes is told to stop
_stepping = False
_ended = threading.Event()


def start_distributed() -> None:
  """Joins the other processes; to be called before JAX looks for devices.

  JAX finds its peers by itself on TPU pods, under SLURM, Open MPI and on GKE; elsewhere the environment names
  them: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID. Or a UserError.

  From then on the end of one by `leaving.leave` ends all.
  """
  try:
    number = lambda name: int(os.environ[name]) if name in os.environ else None
    jax.distributed.initialize(
      num_processes=number("JAX_NUM_PROCESSES"),
      process_id=number("JAX_PROCESS_ID"),
      heartbeat_timeout_seconds=JAX_HEARTBEAT,
    )
  except (ValueError, RuntimeError) as error:
    raise UserError(
      f"--distributed: the processes cannot be joined ({error}); start it under SLURM, Open MPI or on a TPU "
      "pod, or set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID in each process"
    ) from error
  devices = f"{jax.local_device_count()} of {jax.device_count()} devices"
  logging.info(f"process {jax.process_index()} of {jax.process_count()}, {devices}")
  if jax.process_count() > 1:
    leaving.tell_others.append(tell)
    threading.Thread(target=_listen, name="processes", daemon=True).start()
    atexit.register(_ended.set)  # before JAX leaves the group


def of_process_0(value: Any) -> Any:
  """Process 0's value, in all processes; made of what JSON has. All have to call it, and may have to wait."""
  if jax.process_count() == 1:
    return value
  ours = np.frombuffer(json.dumps(value).encode(), np.uint8)
  with leaving.unhurried():
    length = int(multihost_utils.broadcast_one_to_all(np.int64(len(ours))))
    text = multihost_utils.broadcast_one_to_all(np.resize(ours, length))
  return json.loads(np.asarray(text).astype(np.uint8).tobytes())


def by_process_0(work: Callable[[], Any]) -> Any:
  """What process 0 alone does, and finds; the others wait for it. All have to call it."""
  if not jax.distributed.is_initialized():  # asking JAX for processes would take hold of the devices
    return work()
  return of_process_0(work() if jax.process_index() == 0 else None)


def on_notice(act: Callable[[], None] | None) -> None:
  """What a thread does when one of the processes of a group is told to stop."""
  global _notice
  _notice = act


def expect_beats(steps: bool) -> None:
  """Whether the processes are at their steps, so that one that says nothing for long is lost."""
  global _stepping
  _stepping = steps


def finish() -> None:
  """At a good end: waits for the others, so that who fails after this one is done can still tell it."""
  if leaving.tell_others:
    _store().wait_at_barrier(DONE, 7 * 24 * 3600 * 1000)
    _ended.set()


def lost_another(error: BaseException | None) -> bool:
  """Whether an exception comes of the end of another process; if that one said why, this one ends so here."""
  while error is not None:
    if not isinstance(error, (UserError, OSError)) and any(word in str(error) for word in LOST):
      time.sleep(5)  # until `_listen` has heard of it
      return True
    error = error.__cause__ or error.__context__
  return False


def tell(code: int, line: str, stacks: bool) -> None:
  """Ends the other processes with this one's code and line."""
  client = _store()
  failure = {"process": jax.process_index(), "host": socket.gethostname(), "code": code, "line": line}
  with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was first
    client.key_value_set(FAILURE, json.dumps(failure | {"stacks": stacks}))
  if jax.process_index():
    _say_seen()
  else:  # the store ends with it
    deadline = time.monotonic() + 5
    while len(client.key_value_dir_get(SEEN)) < jax.process_count() - 1 and time.monotonic() < deadline:
      time.sleep(0.1)


def _listen() -> None:
  """Once a second: whether another process failed, was told to stop, or is lost."""
  host, beats = socket.gethostname(), Beats()
  for second in itertools.count():
    if _ended.wait(1):
      return
    if (text := _value(FAILURE)) is not None:
      failure = json.loads(text)
      if failure["process"] != jax.process_index():
        _say_seen()
        line = f"process {failure['process']} ({failure['host']}): {failure['line']}"
        leaving.leave(failure["code"], line, stacks=failure["stacks"], tell=False)
    if (act := _notice) and _value(NOTICE) is not None:
      act()
    if second % SECONDS == 0:
      try:
        _store().key_value_set(f"{BEAT}{jax.process_index()}", f"{second} {host}", allow_overwrite=True)
        if jax.process_index() == 0:
          beats.look()
      except jax.errors.JaxRuntimeError as error:
        _store_is_lost(error)


class Beats:
  """What process 0 hears of the others. In its own beats, not by a clock: it may have been stopped itself."""

  def __init__(self) -> None:
    self.last: dict[str, str] = {}
    self.missed: Counter[str] = Counter()

  def look(self) -> None:
    now = dict(_store().key_value_dir_get(BEAT))
    for key, value in now.items():
      self.missed[key] = self.missed[key] + 1 if _stepping and self.last.get(key) == value else 0
      if self.missed[key] == BEATS:
        who = f"process {key.removeprefix(BEAT)} ({value.split()[1]})"
        line = f"{who} is lost: nothing of it for {BEATS * SECONDS} s; the same command goes on from the last"
        leaving.leave(EXIT_PREEMPTED, f"{line} checkpoint")
    self.last = now


def _store() -> Any:
  """JAX's key-value store, which all processes see."""
  return distributed.global_state.client


def _say_seen() -> None:
  key = f"{SEEN}{jax.process_index()}"
  _store().key_value_set(key, "", allow_overwrite=True)


def _value(key: str) -> str | None:
  """What the store has, if it has."""
  try:
    return _store().key_value_try_get(key)
  except jax.errors.JaxRuntimeError as error:
    if "NOT_FOUND" not in str(error):
      _store_is_lost(error)
    return None


def _store_is_lost(error: Exception) -> None:
  if not _ended.is_set():
    leaving.leave(EXIT_PREEMPTED, f"process 0 is lost ({str(error).splitlines()[0]})", tell=False)
