"""Tables as GitHub Markdown and as CSV."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

Cell = str | float | int | None
Rows = Sequence[Sequence[Cell]]


def markdown(columns: Sequence[str], rows: Rows, formats: Mapping[str, str]) -> str:
  """A table for people.

  Args:
    columns: names, all different.
    rows: one cell for each column; None: there is no such number ("-").
    formats: format specification of a column's floats, such as "+.1f" for differences; columns without one
      have one decimal.

  Raises:
    ValueError: a row of another length, two columns of one name, a format for no column, a number that is not
      finite.
  """
  check(columns, rows)
  unknown = sorted(formats.keys() - set(columns))
  if unknown:
    raise ValueError(f"formats for {unknown}, which are no columns; columns are {list(columns)}")
  specs = [formats.get(name, "z.1f") for name in columns]
  texts = [[cell_text(cell, spec) for cell, spec in zip(row, specs, strict=True)] for row in rows]
  names = [cell_text(name, "") for name in columns]
  widths = [max([3, *map(len, column)]) for column in zip(names, *texts, strict=True)]
  numbers = [not any(isinstance(row[i], str) for row in rows) for i in range(len(columns))]

  def line(cells):
    padded = [f"{c:{'>' if n else '<'}{w}}" for c, w, n in zip(cells, widths, numbers, strict=True)]
    return f"| {' | '.join(padded)} |"

  dashes = ["-" * (w - 1) + (":" if n else "-") for w, n in zip(widths, numbers, strict=True)]
  return "\n".join(map(line, [names, dashes, *texts]))


def write_csv(path: Path, columns: Sequence[str], rows: Rows, *, stamp: str = "") -> None:
  """Writes floats so that they read back as the same float64; None as an empty cell.

  Args:
    stamp: a last column of its own, so that the file stays plain CSV and no row goes without.

  Raises:
    ValueError: as `markdown`.
  """
  if stamp:
    columns, rows = [*columns, "stamp"], [[*row, stamp] for row in rows]
  check(columns, rows)
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[float(c) if isinstance(c, float) else c for c in row] for row in rows])


def check(columns: Sequence[str], rows: Rows) -> None:
  double = sorted({name for name in columns if list(columns).count(name) > 1})
  if double:
    raise ValueError(f"columns named twice: {double}")
  for number, row in enumerate(rows):
    if len(row) != len(columns):
      raise ValueError(f"row {number} has {len(row)} cells for {len(columns)} columns {list(columns)}")
    for name, cell in zip(columns, row, strict=True):
      if isinstance(cell, float) and not math.isfinite(cell):
        raise ValueError(f"row {number}, column {name!r} is {cell}; give None for a number that is missing")


def cell_text(cell: Cell, spec: str) -> str:
  if cell is None:
    return "-"
  if isinstance(cell, float):
    return format(cell, spec)
  return " ".join(str(cell).replace("|", "\\|").split())  # a line break would end the row
