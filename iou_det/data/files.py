"""The image files of a data set: found by the names that annotations give them, read by their place."""

import errno
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from iou_det.data.headers import SUFFIXES
from iou_det.errors import UserError

START = 1 << 16  # bytes that nearly always hold a picture's header
USUAL = ("train", "training", "val", "valid", "validation", "test")  # names of splits
LARGEST_TEXT = 1 << 26  # bytes: no text file of one picture has as many


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
    if "\0" in name:
      missing[i] = "its name has a zero byte"
      continue
    for k, folder in enumerate(folders):
      parent, base = os.path.split(name)
      if base in inside(folder / parent if parent else folder):
        if k:
          found[i] = os.path.abspath(folder / name)  # `Files` has it below its own folder else
        break
    else:
      paths = every_file().get(key(name), [])
      parts = [key(part) for part in re.split(r"[\\/]", name)]
      same = [alike(path, parts) for path in paths]
      best = [path for path, number in zip(paths, same, strict=True) if number == max(same, default=0)]
      if len(best) == 1:
        found[i] = best[0]
        elsewhere.append(i)
      else:
        several = f"there are {len(best)} files of its name: {', '.join(best[:3])}"
        missing[i] = several if best else "the file does not exist"
  every = names if not found else [found.get(i, name) for i, name in enumerate(names)]
  return Found(Files(folders[0] if folders else Path(), every), missing, elsewhere)


def of_other_splits(root: Path, split: str, splits: Iterable[str]) -> list[Path]:
  """Folders in `root`, or one below, that are by their names (val2017, validation) of other splits."""
  is_of = lambda name, one: name.startswith(one.casefold()) or one.casefold().startswith(name)
  others = [other for other in splits if other != split]
  found = []
  for folder in subfolders(root) + [f for inside in subfolders(root) for f in subfolders(inside)]:
    name = folder.name.casefold()
    if any(is_of(name, other) for other in others) and not is_of(name, split):
      found.append(folder)
  return found


def listing(folder: Path) -> set[str]:
  """Names of the files in a folder; none if there is no such folder."""
  try:
    with os.scandir(folder) as entries:
      return {e.name for e in entries if e.is_file()}
  except (OSError, ValueError):  # a name with a zero in it
    return set()


def is_picture(name: str) -> bool:
  """By its suffix; hidden files, as macOS leaves them beside others (._NAME), are none."""
  return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def pictures(folder: Path) -> dict[str, list[str]]:
  """The picture files in a folder, in the order of the alphabet, by their names without suffix."""
  found: dict[str, list[str]] = {}
  for name in sorted(filter(is_picture, listing(folder))):
    found.setdefault(os.path.splitext(name)[0], []).append(name)
  return found


def read_text_file(path: Path) -> bytes:
  """A file of annotations of one picture; an OSError also for one so large that it is something else."""
  with path.open("rb") as file:
    content = file.read(LARGEST_TEXT + 1)
  if len(content) > LARGEST_TEXT:
    raise OSError(errno.EFBIG, f"more than {LARGEST_TEXT >> 20} MB, no annotations of one picture")
  return content


def subfolders(folder: Path) -> list[Path]:
  """In the order of the alphabet, without hidden ones."""
  try:
    with os.scandir(folder) as entries:
      return [folder / n for n in sorted(e.name for e in entries if e.is_dir()) if not n.startswith(".")]
  except OSError:
    return []


def below(folders: Sequence[Path], avoid: Sequence[Path]) -> dict[str, list[str]]:
  """Paths of all files below some folders by the `key` of their names."""
  paths: dict[str, list[str]] = {}
  for folder in folders:
    for where, inside, names in os.walk(folder):
      inside[:] = [name for name in inside if Path(where, name) not in avoid]
      for name in names:
        path = os.path.abspath(os.path.join(where, name))
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


def walk(folder: Path) -> list[str]:
  """Paths of all pictures below a folder, in the order of the alphabet."""
  found = []
  for where, inside, names in os.walk(folder):
    inside[:] = [name for name in inside if not name.startswith(".")]  # .ipynb_checkpoints
    found += [os.path.join(where, name) for name in names if is_picture(name)]
  return sorted(found)


def refuse_left_out(folders: Iterable[Path], found: Iterable[str], lacking: str, root: Path) -> None:
  """A UserError for a folder of pictures that is named as a split but was not found: none may vanish.

  Pictures to test a detector on often have no labels.
  """
  known = {*(split.lower() for split in found), "test"}
  for folder in folders:
    if folder.name.lower() in USUAL and folder.name.lower() not in known and (left := walk(folder)):
      what = f"{folder} has {len(left)} pictures, but there is no {lacking} for them"
      raise UserError(f"{what}; add what is lacking, or move the folder out of {root}")
