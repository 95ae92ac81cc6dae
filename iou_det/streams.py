"""What a command says: on any terminal or none, and nothing about saying it ends the command.

Python's own streams raise where a letter cannot be shown, the reader of a pipe has left, the terminal is gone
or the disk is full; and where one is closed, the next file that is opened gets its descriptor and all output.
"""

import errno
import io
import os
import re
import select
import stat
import sys
import unicodedata
from typing import Any, TextIO

# What a terminal acts on, or what changes how the text around it is read: control characters, other ends of
# lines, forced directions. Halves of surrogate pairs stand for bytes of file names that are not UTF-8.
UNSHOWN = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def escaped(text: str, keep: str = "") -> str:
  """With what has no look, and is not to be kept, as Python writes it: backslashes and numbers."""
  as_written = lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode()
  return UNSHOWN.sub(as_written, text)


def one_line(text: str) -> str:
  return escaped(" ".join(text.split()))


def columns_of(text: str) -> int:
  """That it takes on a terminal: two for letters as wide as Chinese ones, none for marks on others."""
  marks = sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)
  return len(text) - marks + sum(unicodedata.east_asian_width(c) in "WF" for c in text)


class Steady(io.FileIO):
  """A descriptor that takes everything; `failure` is why a file, or a full disk, did not.

  Of pipes and terminals nothing is to be said: nobody is there to read, or has seen enough, as `head`.
  """

  def __init__(self, number: int) -> None:
    super().__init__(number, "wb", closefd=False)
    self.file = stat.S_ISREG(os.fstat(number).st_mode)
    self.failure: OSError | None = None

  def write(self, data: Any) -> int:
    rest = memoryview(data).cast("B")
    size = len(rest)
    while rest:
      try:
        rest = rest[os.write(self.fileno(), rest) :]
      except BlockingIOError:  # another program that has it open made it so
        select.select([], [self.fileno()], [])
      except OSError as error:
        if self.file or error.errno == errno.ENOSPC:
          self.failure = self.failure or error
        break
    return size


class Shown(io.TextIOWrapper):
  """Text in which names cannot move the cursor."""

  def write(self, text: str) -> int:
    super().write(escaped(text, keep="\n\t"))
    return len(text)


def set_up() -> None:
  """Replaces stdout and stderr, unless somebody did before, as tests and notebooks do.

  Names cannot act on a terminal in what is printed to stdout; stderr is also for bars, which move the cursor.
  """
  while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest that is free
    os.set_inheritable(number, True)
  os.close(number)
  if sys.stdout is sys.__stdout__:
    sys.stdout = _steady(sys.stdout, 1, Shown)
  if sys.stderr is sys.__stderr__:
    sys.stderr = _steady(sys.stderr, 2, io.TextIOWrapper)


def _steady(old: TextIO | None, number: int, kind: type[io.TextIOWrapper]) -> io.TextIOWrapper:
  if not isinstance(
    old, io.TextIOWrapper
  ):  # closed when Python started: another file may have the number now
    nowhere = Steady(os.open(os.devnull, os.O_WRONLY))
    return kind(io.BufferedWriter(nowhere), encoding="utf-8", errors="backslashreplace")
  old.flush()
  raw = Steady(number)
  below: Any = raw if old.write_through else io.BufferedWriter(raw)  # python -u
  how: dict[str, Any] = {"line_buffering": old.line_buffering, "write_through": old.write_through}
  return kind(below, encoding=old.encoding, errors="backslashreplace", **how)


def failure() -> OSError | None:
  """Why not all of what was printed to stdout is there, if it should be."""
  sys.stdout.flush()
  below = getattr(sys.stdout, "buffer", None)
  raw = getattr(below, "raw", below)
  return raw.failure if isinstance(raw, Steady) else None
