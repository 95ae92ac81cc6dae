"""Being told to stop: by a signal, or because a step hangs."""

import os
import signal
import threading
from collections.abc import Callable, Sequence

import jax
from absl import logging
from jax.experimental import multihost_utils

from iou_det import leaving, processes
from iou_det.errors import EXIT_PREEMPTED
from iou_det.leaving import leave

TICKS = 20  # the parts in which a time without progress is counted
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
unheeded: list[signal.Signals] = []  # came so late that the run was finished: for a command's next one


class Preemption:
  """Notices SIGTERM, which SLURM, spot machines and Kubernetes send before they stop a job, Ctrl-C, and
  SIGHUP, which comes when a terminal is closed.

  Several processes agree on the moment: what one is told, all act on at the same call of `requested`, so all
  have to call it equally often. While there is nothing to save, a command ends at once; a second Ctrl-C ends
  it in any case.
  """

  def __init__(self, signals: Sequence[signal.Signals] = SIGNALS) -> None:
    self.signals = signals
    self._begun = False
    self._calls = 0
    self._told: list[signal.Signals] = []
    self._undo: list[Callable[[], None]] = []
    self._ended = threading.Event()

  def __enter__(self) -> "Preemption":
    group = jax.process_count() > 1  # there JAX's own service catches SIGTERM
    if group:
      processes.on_notice(self._told_in_group)
    if threading.current_thread() is threading.main_thread():
      for number in self.signals:
        if not (group and number == signal.SIGTERM):
          self._undo.append(leaving.on_signal(number, self._tell))
    if unheeded:
      self._tell(unheeded.pop())
    return self

  def __exit__(self, kind: object, *exception: object) -> None:
    """Gives signals back to whom they belonged; not on a command's way out, which none may cut off."""
    self._ended.set()
    processes.on_notice(None)
    processes.expect_beats(False)
    if self._told and kind is not None and leaving.listening():
      return
    for undo in self._undo:
      undo()
    if self._told and leaving.listening():
      unheeded.append(self._told[0])

  def watch(self, hang_minutes: float) -> None:
    """Ends the process if `requested` is not called for so long, outside `leaving.unhurried`."""
    threading.Thread(target=self._watch, args=(hang_minutes,), name="hang", daemon=True).start()

  def begin(self) -> None:
    """The first step is done: from now on there is something to save."""
    self._begun = True
    processes.expect_beats(True)

  def requested(self) -> bool:
    """Whether to save and stop now; once for every step and every batch of an evaluation."""
    self._calls += 1
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(self._calls)
    return bool(self._told)

  @property
  def reason(self) -> str:
    return self._told[0].name if self._told else "SIGTERM"

  def _tell(self, number: int) -> None:
    sent = signal.Signals(number)
    if sent == signal.SIGINT and sent in self._told:
      if not leaving.listening():
        raise KeyboardInterrupt
      leave(leaving.EXIT_INTERRUPTED, "SIGINT again: what came after the last checkpoint is lost")
    self._told.append(sent)
    if leaving.listening() and not self._begun:
      self._nothing_to_save()
    if sent == signal.SIGINT:
      logging.warning("SIGINT: saving at the end of this step; a second one ends at once")
    if sent != signal.SIGTERM and jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)

  def _told_in_group(self) -> None:
    if leaving.listening() and not self._begun:
      self._nothing_to_save()

  def _nothing_to_save(self) -> None:
    leave(EXIT_PREEMPTED, f"{self.reason}: there is nothing new to save; the same command goes on from here")

  def _watch(self, minutes: float) -> None:
    calls, idle = self._calls, 0
    # Counted in ticks: a process that was stopped for a while (Ctrl-Z) does not hang.
    while not self._ended.wait(minutes * 60 / TICKS):
      idle = 0 if self._calls > calls or leaving.resting else idle + 1
      calls = self._calls
      if idle == TICKS:
        line = f"no step for {minutes:g} minutes (config.train.hang_minutes): stacks of all threads are above"
        leave(EXIT_PREEMPTED, f"{line}; the same command goes on from the last checkpoint", stacks=True)
