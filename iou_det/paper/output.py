"""What an experiment writes: tables, and plots of one look, the same bytes every time."""

import contextlib
import csv
import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iou_det import fonts
from iou_det.storage import AnyPath, whole_file, write_whole

Cell = str | float | int | None
Rows = Sequence[Sequence[Cell]]
SMOKE = "smoke, not a result"
WIDTH = 8.0  # inches; 1600 pixels in the PNG, which a README shows at about half
STYLE: dict[str, Any] = {
  "figure.dpi": 200,
  "savefig.dpi": 200,
  "font.size": 10,
  "axes.titlesize": 10,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": "#dddddd",
  "lines.linewidth": 1.8,
  "lines.markersize": 5,
  "legend.frameon": False,
  "legend.fontsize": 9,
  "svg.fonttype": "none",  # text stays text: small, searchable, readable by a screen reader
  "svg.hashsalt": "iou-det",  # ids would be random
  "text.parse_math": False,  # names of runs may have dollars
}


@dataclass(frozen=True)
class Output:
  """A folder of tables and plots, made when something is written, and what each of them says about itself."""

  folder: AnyPath
  source: str  # where the numbers come from (data, split, epochs, seeds), a sentence for captions
  command: str
  smoke: bool = False  # toy size: tables, plots and every row of a CSV say SMOKE

  def table(
    self, name: str, columns: Sequence[str], rows: Rows, *, caption: str, formats: Mapping[str, str] = {}
  ) -> str:
    """Writes NAME.md, for people, and NAME.csv, with every digit; returns the Markdown. See `markdown`."""
    stamp = [f"**{SMOKE}**"] if self.smoke else []
    parts = [*stamp, caption, markdown(columns, rows, formats), f"Made by `{self.command}`"]
    text = "\n\n".join(parts) + "\n"
    self.csv(name, columns, rows)
    write_whole(self.folder / f"{name}.md", text)
    return text

  def csv(self, name: str, columns: Sequence[str], rows: Rows) -> None:
    """Writes floats so that they read back as the same float64; None as an empty cell. See `check`."""
    if self.smoke:  # a last column: the file stays plain CSV, and no row goes without
      columns, rows = [*columns, "stamp"], [[*row, SMOKE] for row in rows]
    check(columns, rows)
    self.folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[float(c) if isinstance(c, float) else c for c in row] for row in rows])
    write_whole(self.folder / f"{name}.csv", text.getvalue())


@dataclass(frozen=True)
class Plot:
  """NAME.png, NAME.svg and NAME.csv of an output, where the last has every number that is drawn."""

  output: Output
  name: str
  title: str
  caption: str  # how the numbers were made

  @contextlib.contextmanager
  def panels(self, height: float, *, note: str = "", **grid: Any) -> Iterator[list[Axes]]:
    """The panels, row by row; writes the images when the block ends without an error.

    `height` is in inches; a `note` stands before the caption; `grid` goes to matplotlib's `Figure.subplots`.
    """
    heading = f"{self.title}: {SMOKE}" if self.output.smoke else self.title
    with style.context(["default", STYLE]):  # not what the user's matplotlibrc says
      figure = Figure(figsize=(WIDTH, height), layout="constrained")
      axes = figure.subplots(**grid, squeeze=False).ravel().tolist()
      caption = textwrap.fill(f"{note} {self.caption}".strip(), 136)
      figure.suptitle(textwrap.fill(heading, 88), x=0.012, ha="left", fontsize=11, fontweight="bold")
      figure.supxlabel(caption, x=0.012, ha="left", fontsize=8, color="#444444")
      yield axes
      if self.output.smoke:
        behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.5}
        across = figure.text(0.5, 0.5, SMOKE, color="#B00000", alpha=0.6, bbox=behind)
        across.set(ha="center", va="center", rotation=18, fontsize=40, in_layout=False)
      fonts.give(figure)
      self.output.folder.mkdir(parents=True, exist_ok=True)
      for kind, metadata in (("png", {}), ("svg", {"Date": None})):
        with whole_file(self.output.folder / f"{self.name}.{kind}") as file:
          figure.savefig(file, format=kind, metadata=metadata)

  def csv(self, columns: Sequence[str], rows: Rows) -> None:
    self.output.csv(self.name, columns, rows)


def markdown(columns: Sequence[str], rows: Rows, formats: Mapping[str, str]) -> str:
  """A table as GitHub Markdown; None is "-": there is no such number.

  `formats` has the format of a column's floats, such as "+.1f" for differences; without one: one decimal.
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


def check(columns: Sequence[str], rows: Rows) -> None:
  """Raises a ValueError if two columns have one name, a row another length, or a number is not finite."""
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
