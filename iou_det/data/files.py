"""The image files of a data set: found by the names that annotations give them, read by their place."""

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

START = 1 << 16  # bytes that nearly always hold a picture's header


@dataclass(frozen=True)
class Files:
  """A folder and names below it (or whole paths), one for each image."""

  folder: Path
  names: Sequence[str]

  def path(self, i: int) -> Path:
    return self.folder / self.names[i]

  def read(self, i: int) -> bytes:
    return self.path(i).read_bytes()

  def select(self, which: np.ndarray) -> "Files":
    return Files(self.folder, [self.names[i] for i in which.tolist()])


def read_start(files: Files, i: int) -> bytes:
  """The first bytes of a file."""
  with files.path(i).open("rb") as file:
    return file.read(START)


@dataclass
class Found:
  """Where the files of some names are."""

  files: Files
  missing: dict[int, str]  # place of a name: why there is no file for it
  elsewhere: list[int]  # places of names that were found by their last part in another folder


def find_files(names: Sequence[str], folders: Sequence[Path], avoid: Sequence[Path] = ()) -> Found:
  """Files by their names in the first of the folders that has them.

  A name that none has is looked for by its last part below the folders (upper or lower case, backslashes and
  Unicode's two ways to write an accent do not count): one file of that name is it, of several the one with
  the most folders of the name.
  """
  folders = [f for i, f in enumerate(folders) if f.is_dir() and f not in folders[:i]]
  inside, every_file = cache(listing), cache(lambda: below(folders, avoid))
  found: dict[int, str] = {}
  missing: dict[int, str] = {}
  elsewhere: list[int] = []
  for i, name in enumerate(names):
    for k, folder in enumerate(folders):
      parent, base = os.path.split(name)
      if base in inside(folder / parent if parent else folder):
        if k:
          found[i] = str(folder / name)
        break
    else:
      paths = every_file().get(key(name), [])
      parts = [key(part) for part in re.split(r"[\\/]", name)]
      best = [p for p in paths if alike(p, parts) == max(alike(q, parts) for q in paths)]
      if len(best) == 1:
        found[i] = best[0]
        elsewhere.append(i)
      else:
        several = f"there are {len(best)} files of its name: {', '.join(best[:3])}"
        missing[i] = several if best else "the file does not exist"
  every = names if not found else [found.get(i, name) for i, name in enumerate(names)]
  return Found(Files(folders[0] if folders else Path(), every), missing, elsewhere)


def listing(folder: Path) -> set[str]:
  """Names of the files in a folder; none if there is no such folder."""
  try:
    with os.scandir(folder) as entries:
      return {e.name for e in entries if e.is_file()}
  except (OSError, ValueError):  # a name with a zero in it
    return set()


def below(folders: Sequence[Path], avoid: Sequence[Path]) -> dict[str, list[str]]:
  """Paths of all files below some folders by the `key` of their names."""
  paths: dict[str, list[str]] = {}
  for folder in folders:
    for where, inside, names in os.walk(folder):
      inside[:] = [name for name in inside if Path(where, name) not in avoid]
      for name in names:
        path = os.path.join(where, name)
        if path not in paths.setdefault(key(name), []):
          paths[key(name)].append(path)
  return paths


def key(name: str) -> str:
  """The last part of a name, the same for names that differ in case or in how an accent is written."""
  return unicodedata.normalize("NFC", re.split(r"[\\/]", name)[-1]).casefold()


def alike(path: str, parts: Sequence[str]) -> int:
  """How many of the last parts of a path are those of a name."""
  own = [key(part) for part in path.split(os.sep)]
  same = 0
  while same < min(len(own), len(parts)) and own[-1 - same] == parts[-1 - same]:
    same += 1
  return same
