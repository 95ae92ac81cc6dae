"""Several processes as one program: how they find each other, and leave together when one is told to."""

import json
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from iou_det.errors import UserError


def start_distributed() -> None:
  """Joins the other processes; to be called before JAX looks for devices.

  JAX finds its peers by itself on TPU pods, under SLURM, Open MPI and on GKE; elsewhere the environment names
  them: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID. Or a UserError.
  """
  try:
    number = lambda name: int(os.environ[name]) if name in os.environ else None
    jax.distributed.initialize(num_processes=number("JAX_NUM_PROCESSES"), process_id=number("JAX_PROCESS_ID"))
  except (ValueError, RuntimeError) as error:
    raise UserError(
      f"--distributed: the processes cannot be joined ({error}); start it under SLURM, Open MPI or on a TPU "
      "pod, or set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID in each process"
    ) from error
  devices = f"{jax.local_device_count()} of {jax.device_count()} devices"
  logging.info(f"process {jax.process_index()} of {jax.process_count()}, {devices}")


def of_process_0(value: Any) -> Any:
  """Process 0's value, in all processes; made of what JSON has. All have to call it."""
  if jax.process_count() == 1:
    return value
  ours = np.frombuffer(json.dumps(value).encode(), np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int64(len(ours))))
  text = multihost_utils.broadcast_one_to_all(np.resize(ours, length))
  return json.loads(np.asarray(text).astype(np.uint8).tobytes())


def by_process_0(work: Callable[[], Any]) -> Any:
  """What process 0 alone does, and finds; the others wait for it. All have to call it."""
  if not jax.distributed.is_initialized():  # asking JAX for processes would take hold of the devices
    return work()
  return of_process_0(work() if jax.process_index() == 0 else None)


class Preemption:
  """Notices SIGTERM, which SLURM, spot machines and Kubernetes send before they stop a job.

  Several processes agree on the moment: what one is told, all act on at the same call of `requested`, so all
  have to call it equally often.
  """

  def __init__(self) -> None:
    self._calls = 0
    self._noticed = False
    self._previous: Any = None

  def __enter__(self) -> "Preemption":
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(signal.SIGTERM, self._notice)
    return self

  def __exit__(self, *exception: object) -> None:
    """Gives SIGTERM back to whom it belonged; not on the way out, which another one must not cut off."""
    if self._previous is not None and not self._noticed:
      signal.signal(signal.SIGTERM, self._previous)

  def _notice(self, number: int, frame: FrameType | None) -> None:
    self._noticed = True

  def requested(self) -> bool:
    """Whether to save and stop now; once for every step and every batch of an evaluation."""
    self._calls += 1
    if jax.process_count() > 1:  # JAX's own service catches the signal there
      return multihost_utils.reached_preemption_sync_point(self._calls)
    return self._noticed
