"""The rows of a CSV file of boxes: what its columns are, read in parts, and what is wrong with some."""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iou_det.data.labels import FAR, Problem
from iou_det.errors import UserError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
COLUMNS = {  # lower case, without spaces, dashes and underscores
  "file": "filename imagepath image imagename path imgpath imgname img file imageid",
  "class": "class classname label labelname category categoryname name",
  "xmin": "xmin x1 left minx bboxxmin xtl",
  "ymin": "ymin y1 top miny bboxymin ytl",
  "xmax": "xmax x2 right maxx bboxxmax xbr",
  "ymax": "ymax y2 bottom maxy bboxymax ybr",
  "width": "width imgwidth imagewidth",
  "height": "height imgheight imageheight",
  "crowd": "isgroupof iscrowd difficult",
}
NEEDED = ("file", "class", *CORNERS)
RETINANET = {"file": 0, "xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4, "class": 5}
CHUNK = 100_000  # rows that are texts at a time
FIRST = 20  # lines: a header, or a good row, is among so many
WHAT_IT_NEEDS = (
  "a header with filename, class, xmin, ymin, xmax, ymax or no header and rows path,x1,y1,x2,y2,class"
)


class Form(NamedTuple):
  """How a file is written."""

  encoding: str
  delimiter: str
  columns: dict[str, int]
  header: bool
  fields: int  # of a row


def form_of(file: Path) -> Form | None:
  """How a file of boxes is written, by the first row that tells; None if it is none."""
  with file.open("rb") as opened:
    start = opened.read(1 << 16)
  encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
  lines = [line for line in start.decode(encoding, errors="replace").splitlines() if line.strip()]
  forms = [form_of_line(line, encoding) for line in lines[:FIRST]]
  return next((form for k, form in enumerate(forms) if form and (k == 0 or not form.header)), None)


def form_of_line(line: str, encoding: str) -> Form | None:
  delimiter = max(",;\t|", key=line.count)
  try:
    row = next(csv.reader([line], delimiter=delimiter), [])
  except csv.Error:
    return None
  names = [re.sub(r"[\s_-]", "", field.lower()) for field in row]
  columns = {}
  for key, known in COLUMNS.items():
    if there := [name for name in known.split() if name in names]:
      columns[key] = names.index(there[0])
  if all(key in columns for key in NEEDED):
    return Form(encoding, delimiter, columns, True, len(row))
  numbers = [to_number(field, delimiter) is not None for field in row[1:5]]
  if len(row) == 6 and row[0].strip() and (all(numbers) or not any(field.strip() for field in row[1:])):
    return Form(encoding, delimiter, RETINANET, False, 6)
  return None


@contextmanager
def rows_of(file: Path, form: Form) -> Iterator[Iterator[list[str]]]:
  """The rows of a file behind its header."""
  with file.open(encoding=form.encoding, newline="") as opened:
    reader = csv.reader(opened, delimiter=form.delimiter)
    try:
      if form.header:
        next((row for row in reader if row), None)
      yield reader
    except UnicodeDecodeError as error:
      what = f"is not UTF-8 behind row {reader.line_num} ({error.reason}); save it as UTF-8"
      raise UserError(f"annotation file {file} {what}") from None
    except (csv.Error, UnicodeError) as error:
      raise UserError(
        f"annotation file {file}, line {reader.line_num}: no CSV that can be read: {error}"
      ) from None


def to_number(text: str, delimiter: str = ",") -> float | None:
  """A number; with a decimal comma too, where commas part no fields (`"1,024"` is one with thousands there).

  None if it is none; `1_0` is one for Python alone.
  """
  try:
    value = float((text if delimiter == "," else text.replace(",", ".")).replace("_", "?"))
  except ValueError:
    return None
  return value if abs(value) < FAR else None


class Rows(NamedTuple):
  """The good rows of a file as columns."""

  files: list[str]
  classes: list[str]  # as they are written, also of bad rows
  image: np.ndarray  # of each row: the place of its file
  label: np.ndarray  # the place of its class; -1: a picture without objects
  corners: np.ndarray  # xmin, ymin, xmax, ymax
  size: np.ndarray  # height, width; 0: not said
  crowd: np.ndarray
  number: np.ndarray  # of the row, from 1
  problems: list[Problem]


def read_rows(file: Path, form: Form) -> Rows:
  """Parses a file."""
  files: dict[str, int] = {}
  classes: dict[str, int] = {}
  problems: list[Problem] = []
  parts = []
  first = 1 + form.header
  with rows_of(file, form) as reader:
    while chunk := list(islice(reader, CHUNK)):
      numbers, rows = list(range(first, first + len(chunk))), chunk
      first += len(chunk)
      if any(len(row) != form.fields for row in rows):
        numbers, rows = right_length(file, form, numbers, rows, problems)
      for name in (row[form.columns["class"]] for row in rows):
        classes.setdefault(name, len(classes))
      try:
        texts = [[row[form.columns[key]] for row in rows] for key in CORNERS]
        corners = np.array([list(map(float, column)) for column in texts]).T
        plain = all(row[form.columns[key]].strip() for row in rows for key in ("file", "class"))
        plain &= not np.isnan(corners).any() and not any("_" in "".join(column) for column in texts)
      except ValueError:
        plain = False
      if not plain:
        numbers, rows, corners = one_by_one(file, form, numbers, rows, problems)
      column = lambda key, rows=rows: [row[form.columns[key]] for row in rows]
      image = np.array([files.setdefault(name.strip(), len(files)) for name in column("file")], np.int64)
      label = np.array([classes[name] for name in column("class")], np.int64)
      label[np.isnan(corners).all(axis=1)] = -1
      size = np.zeros((len(rows), 2), np.int64)
      if "height" in form.columns and "width" in form.columns:
        size = np.array(
          [[pixels(text, form.delimiter) for text in column(key)] for key in ("height", "width")], np.int64
        ).T
      crowd = np.zeros(len(rows), bool)
      if "crowd" in form.columns:
        crowd = np.array([text.strip().lower() in ("1", "1.0", "true") for text in column("crowd")], bool)
      parts.append(
        (image, label, corners.reshape(-1, 4), size.reshape(-1, 2), crowd, np.array(numbers, np.int64))
      )
  if not parts:
    raise UserError(f"annotation file {file} has no row; it needs {WHAT_IT_NEEDS}")
  image, label, corners, size, crowd, number = map(np.concatenate, zip(*parts, strict=True))
  return Rows(list(files), list(classes), image, label, corners, size, crowd, number, problems)


def right_length(
  file: Path, form: Form, numbers: list[int], rows: list[list[str]], problems: list[Problem]
) -> tuple[list[int], list[list[str]]]:
  """The rows with as many fields as the first one, or with empty ones more; blank lines are no rows."""
  kept = []
  for number, row in zip(numbers, rows, strict=True):
    if len(row) >= form.fields and not any(row[form.fields :]):
      kept.append((number, row))
    elif any(field.strip() for field in row):
      what = f"has {len(row)} fields, the first row {form.fields}"
      problems.append(Problem(f"{file}, row {number}", what, "fields"))
  return [number for number, _ in kept], [row for _, row in kept]


def one_by_one(
  file: Path, form: Form, numbers: Sequence[int], rows: list[list[str]], problems: list[Problem]
) -> tuple[list[int], list[list[str]], np.ndarray]:
  """The good ones of some rows, with their corners: NaN for a picture without objects."""
  kept, corners = [], []
  for number, row in zip(numbers, rows, strict=True):
    texts = {key: row[form.columns[key]].strip() for key in NEEDED}
    given = [texts[key] for key in CORNERS]
    values = [math.nan] * 4 if not any(given) else [to_number(t, form.delimiter) for t in given]
    bad = [key for key, value in zip(CORNERS, values, strict=True) if value is None]
    what = ""
    if not texts["file"]:
      what = "has no file name"
    elif bad:
      what = f"{bad[0]} is {texts[bad[0]][:40]!r}, must be a number"
    elif any(given) and not texts["class"]:
      what = "has corners but no class"
    elif texts["class"] and not any(given):
      what = "has a class but no corners"
    if what:
      problems.append(Problem(f"{file}, row {number}", what, re.sub("'.*'", "", what)))
    else:
      kept.append((number, row))
      corners.append(values)
  return [n for n, _ in kept], [row for _, row in kept], np.array(corners, np.float64).reshape(-1, 4)


def pixels(text: str, delimiter: str) -> int:
  """A side of a picture; 0, so that the file's is taken, unless it is a whole number above 0."""
  value = to_number(text, delimiter) or 0
  return int(value) if value > 0 and value == int(value) else 0


def read_classes(file: Path) -> set[str]:
  """The classes that a file names."""
  form = form_of(file)
  if form is None:
    return set()
  column = form.columns["class"]
  with rows_of(file, form) as reader:
    return {row[column] for row in reader if len(row) >= form.fields and not any(row[form.fields :])}
