"""How a process ends before its work is done: from any thread, whatever the others are in, with one line.

Handlers of signals run between two bytecodes of the main thread: not while XLA compiles there, or waits for
another process; and an exception that they raise inside a callback of XLA ends in a segmentation fault. So
commands have a thread that acts on signals, see `listen`.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from iou_det.streams import one_line

EXIT_INTERRUPTED = 128 + signal.SIGINT

Act = Callable[[int], None]  # takes the signal's number

at_exit: list[Callable[[], None]] = []  # what has to be done even then, as releasing a lock
tell_others: list[Callable[[int, str, bool], None]] = []  # code, line, stacks: ends the processes of a group
acts: dict[int, Act] = {}  # of the thread, by signal
resting = 0  # how many `unhurried` are open
_ending = threading.Lock()  # never released
_listening = False


def leave(code: int, line: str, *, stacks: bool = False, tell: bool = True) -> NoReturn:
  """Prints a line and ends the process now; of several calls the first counts.

  Args:
    stacks: of all threads, before the line.
    tell: the other processes, so that they end too, with the same code.
  """
  if not _ending.acquire(blocking=False):
    time.sleep(3600)  # another thread is at it
  if stacks:
    faulthandler.dump_traceback(all_threads=True)
  line = one_line(line)
  bars = getattr(sys.modules.get("tqdm"), "tqdm", None)  # an open one has no end of line yet
  print(("\n" if getattr(bars, "_instances", None) else "") + line, file=sys.stderr, flush=True)
  others = [lambda tell=tell: tell(code, line, stacks) for tell in tell_others] if tell else []
  for act in [*at_exit, *others]:
    # In a thread, so that a network that does not answer holds nothing up.
    thread = threading.Thread(target=_quietly, args=(act,), daemon=True)
    thread.start()
    thread.join(10)
  for stream in (sys.stdout, sys.stderr):
    _quietly(stream.flush)
  os._exit(code)


def _quietly(act: Callable[[], object]) -> None:
  with contextlib.suppress(Exception):
    act()


def listen(command: str) -> None:
  """Has a thread act on signals from now on: Ctrl-C ends the command with one line, but see `on_signal`."""
  global _listening
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

  def run() -> None:
    while True:
      number = os.read(reader, 1)[0]
      if number in acts:
        acts[number](number)

  threading.Thread(target=run, name="signals", daemon=True).start()
  _listening = True
  on_signal(signal.SIGINT, lambda _: leave(EXIT_INTERRUPTED, f"iou-det {command}: interrupted"))


def listening() -> bool:
  """Whether this process is a command's: then a signal may end it at once."""
  return _listening


def on_signal(number: int, act: Act) -> Callable[[], None]:
  """Has `act` called at a signal, by the thread if there is one; returns what undoes it. In the main thread.

  A signal that is ignored, as nohup and shells in the background have it, stays so.
  """
  handler, before = signal.getsignal(number), acts.get(number)
  if handler in (signal.SIG_IGN, None):
    return lambda: None
  acts[number] = act
  # Where the thread acts, the handler is there so that Python notes the signal at all.
  signal.signal(number, (lambda number, frame: None) if _listening else (lambda number, frame: act(number)))

  def undo() -> None:
    acts.pop(number, None)
    if before is not None:
      acts[number] = before
    signal.signal(number, handler)

  return undo


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
  """What takes as long as it takes, for `iou_det.preemption`: the time in here is no sign of a hang."""
  global resting
  resting += 1
  try:
    yield
  finally:
    resting -= 1
