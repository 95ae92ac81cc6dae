"""What was found odd in data, a machine or a config, and what to do about it."""

from collections.abc import Iterable
from typing import NamedTuple

LEVELS = ("error", "warning", "note")


class Finding(NamedTuple):
  """One oddity; an error is what stops a training or makes it worthless."""

  level: str  # one of LEVELS
  what: str
  todo: str = ""

  def __str__(self) -> str:
    return f"{self.level}: {self.what}" + (f"; {self.todo}" if self.todo else "")


def by_level(findings: Iterable[Finding]) -> list[Finding]:
  """The worst first."""
  return sorted(findings, key=lambda f: LEVELS.index(f.level))


def some(names: Iterable[str], shown: int = 3) -> str:
  """The first of some names."""
  every = list(names)
  return ", ".join(every[:shown]) + (", ..." if len(every) > shown else "")
