"""Fonts that have the letters of a text, in any script: DejaVu Sans, else one of this machine's."""

import contextlib
import functools
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from PIL import ImageFont, features

from iou_det.errors import UserError
from iou_det.streams import escaped

# What no font needs to have: ends of lines, joiners of letters, ...
UNSEEN = re.compile("[\n\xad\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]")
PLACEHOLDERS = re.compile("last.?resort|adobe.?blank", re.IGNORECASE)  # "have" all letters, as boxes
SLANTED = re.compile("italic|oblique", re.IGNORECASE)
OTHER_THAN_REGULAR = re.compile("bold|black|heavy|light|thin|medium|cond|mono|serif|math", re.IGNORECASE)


@dataclass(frozen=True)
class Face:
  path: str
  index: int = 0  # in a collection


# As matplotlib ships it: the same letters on every machine.
DEJAVU = Face(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")))


@functools.cache
def runs(text: str, first: str | None = None) -> tuple[tuple[str, Face | None], ...]:
  """A text in pieces, each with a face that has all its letters; None for a letter that no font here has.

  Args:
    first: a font file that is asked before DejaVu Sans, which comes before the machine's.
  """
  pieces: list[tuple[str, Face | None]] = []
  while text:
    best, most = None, 0
    for face in _faces(first):
      if (length := _covered(text, face)) > most:
        best, most = face, length
      if most == len(text):
        break
    pieces.append((text[: most or 1], best))
    text = text[most or 1 :]
  return tuple(pieces)


def lacking(text: str, first: str | None = None) -> str:
  """The letters that no font here has."""
  return "".join(piece for piece, face in runs(text, first) if face is None)


def check_font(path: str, flag: str) -> None:
  """A UserError that names the flag unless it is a font with outlines."""
  try:
    ImageFont.truetype(path, 20)
  except OSError as error:
    given = f"--{flag}={path}"
    raise UserError(f"{given} is no font that can be read ({error}); give a TTF, OTF or TTC file") from None
  if not _letters(Face(path)):
    raise UserError(f"--{flag}={path} has no outlines of letters (or colours alone); give another font")


@functools.cache
def load(face: Face, size: int) -> ImageFont.FreeTypeFont:
  return ImageFont.truetype(face.path, size, index=face.index)


@functools.cache
def shapes_letters() -> bool:
  """Whether Pillow has Raqm, which joins letters (Arabic, Devanagari) and knows right to left.

  Without it each letter is drawn for itself, from left to right.
  """
  return bool(features.check("raqm"))


def _covered(text: str, face: Face) -> int:
  """How many letters from the start a face has."""
  have = _letters(face)
  for i, letter in enumerate(text):
    at = bisect_left(have, ord(letter))
    if (at == len(have) or have[at] != ord(letter)) and not UNSEEN.match(letter):
      return i
  return len(text)


def _faces(first: str | None) -> Iterator[Face]:
  """In the order they are asked; a file is opened when it is its turn, which it seldom is."""
  if first:
    yield from _collection(first)
  yield DEJAVU
  for path in _system():
    yield from _collection(path)


@functools.cache
def _system() -> tuple[str, ...]:
  """All that are installed now, upright and regular ones first; matplotlib's own list may be older."""

  def rank(path: str) -> tuple[bool, int, str]:
    name = Path(path).name
    return bool(SLANTED.search(name)), len(OTHER_THAN_REGULAR.findall(name)), path

  from matplotlib import font_manager  # which reads all fonts when it is imported for the first time

  found = font_manager.findSystemFonts()
  return tuple(sorted((path for path in found if not PLACEHOLDERS.search(Path(path).name)), key=rank))


@functools.cache
def _collection(path: str) -> tuple[Face, ...]:
  faces = 1
  if hasattr(FT2Font, "face_index"):  # matplotlib before 3.11 reads the first of a collection alone
    with contextlib.suppress(Exception), TTFont(path, fontNumber=0, lazy=True) as font:
      faces = getattr(font.reader, "numFonts", 1)
  return tuple(Face(path, i) for i in range(faces))


@functools.cache
def _letters(face: Face) -> array:
  """Code points of the letters that a face has outlines of, ascending; none if it cannot be read."""
  with contextlib.suppress(Exception), TTFont(face.path, fontNumber=face.index, lazy=True) as font:
    coloured = "sbix" in font or ("COLR" in font and font["COLR"].version > 0)  # their outlines are empty
    if not coloured and any(table in font for table in ("glyf", "CFF ", "CFF2")):
      # By FreeType: 20 times as quick as fontTools, and a machine may have thousands.
      opened = FT2Font(face.path, face_index=face.index) if face.index else FT2Font(face.path)
      return array("I", sorted(opened.get_charmap()))
  return array("I")


def give(figure: Figure) -> None:
  """Fonts for letters of a figure that DejaVu Sans lacks, as names of runs may have; numbers of letters that
  none has."""
  for text in figure.findobj(Text):
    pieces = runs(escaped(text.get_text(), keep="\n"))
    text.set_text("".join(piece if face else ascii(piece)[1:-1] for piece, face in pieces))
    others = dict.fromkeys(face for _, face in pieces if face not in (None, DEJAVU))
    if others:
      text.set_fontfamily(["DejaVu Sans", *map(family, others)])


@functools.cache
def family(face: Face) -> str:
  """The name by which matplotlib knows a font from now on."""
  manager = font_manager.fontManager
  manager.addfont(face.path)
  same_file = [entry for entry in manager.ttflist if entry.fname == face.path]
  # Of a collection, matplotlib below 3.11 knows the first alone.
  return next((e.name for e in same_file if getattr(e, "index", 0) == face.index), same_file[0].name)
