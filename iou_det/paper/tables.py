"""Writes a table as GitHub Markdown and as CSV."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

Cell = str | float | int | None


def write_table(
  stem: Path,
  columns: Sequence[str],
  rows: Sequence[Sequence[Cell]],
  *,
  caption: str,
  command: str,
  formats: Mapping[str, str] | None = None,
  stamp: str = "",
) -> str:
  """Writes STEM.md, for people, and STEM.csv, with every digit.

  Args:
    stem: path without its ending; the folder is made.
    columns: names, all different.
    rows: one cell for each column; None: there is no such number ("-" in Markdown, empty in CSV).
    caption: what the table shows.
    command: command line that made it.
    formats: format specification of a column's floats in Markdown, such as "+.1f" for differences; columns
      without one have one decimal.
    stamp: said above the table and in every row of the CSV, such as "smoke, not a result".

  Returns:
    The Markdown.

  Raises:
    ValueError: rows of another length, two columns of one name, a format for no column, a number that is not
      finite.
  """
  _check(columns, rows)
  formats = formats or {}
  unknown = sorted(formats.keys() - set(columns))
  if unknown:
    raise ValueError(f"formats for {unknown}, which are no columns; columns are {list(columns)}")
  specs = [formats.get(name, "z.1f") for name in columns]
  texts = [[_text(cell, spec) for cell, spec in zip(row, specs, strict=True)] for row in rows]
  names = [_text(name, "") for name in columns]
  widths = [max([3, *map(len, column)]) for column in zip(names, *texts, strict=True)]
  numbers = [not any(isinstance(row[i], str) for row in rows) for i in range(len(columns))]

  def line(cells):
    padded = [f"{c:{'>' if n else '<'}{w}}" for c, w, n in zip(cells, widths, numbers, strict=True)]
    return f"| {' | '.join(padded)} |"

  rule = ["-" * (w - 1) + (":" if n else "-") for w, n in zip(widths, numbers, strict=True)]
  parts = [f"**{stamp}**", caption] if stamp else [caption]
  parts += ["\n".join(map(line, [names, rule, *texts])), f"Made by `{command}`"]
  markdown = "\n\n".join(parts) + "\n"
  stem.parent.mkdir(parents=True, exist_ok=True)
  with_ending(stem, ".md").write_text(markdown, encoding="utf-8")
  write_csv(with_ending(stem, ".csv"), columns, rows, stamp=stamp)
  return markdown


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, stamp: str = "") -> None:
  """Writes floats so that they read back as the same float64; None as an empty cell.

  A stamp is a last column of its own, so that the file stays plain CSV and no row goes without.

  Raises:
    ValueError: rows of another length, two columns of one name, a number that is not finite.
  """
  if stamp:
    columns, rows = [*columns, "stamp"], [[*row, stamp] for row in rows]
  _check(columns, rows)
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[float(c) if isinstance(c, float) else c for c in row] for row in rows])


def with_ending(stem: Path, ending: str) -> Path:
  """The path with `ending` added; `Path.with_suffix` would take "w_1" for the stem "w_1.5"."""
  return stem.with_name(stem.name + ending)


def _check(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
  double = sorted({name for name in columns if list(columns).count(name) > 1})
  if double:
    raise ValueError(f"columns named twice: {double}")
  for number, row in enumerate(rows):
    if len(row) != len(columns):
      raise ValueError(f"row {number} has {len(row)} cells for {len(columns)} columns {list(columns)}")
    for name, cell in zip(columns, row, strict=True):
      if isinstance(cell, float) and not math.isfinite(cell):
        raise ValueError(f"row {number}, column {name!r} is {cell}; give None for a number that is missing")


def _text(cell: Cell, spec: str) -> str:
  if cell is None:
    return "-"
  if isinstance(cell, float):
    return format(cell, spec)
  return " ".join(str(cell).replace("|", "\\|").split())  # a line break would end the row
