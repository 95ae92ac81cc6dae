"""What an experiment writes: tables, and plots of one look, the same bytes every time."""

import contextlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iou_det.paper.tables import Rows, markdown, write_csv

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
}


@dataclass(frozen=True)
class Output:
  """A folder of tables and plots, made when something is written, and what each of them says about itself."""

  folder: Path
  source: str  # where the numbers come from (data, split, epochs, seeds), a sentence for captions
  command: str
  smoke: bool = False  # toy size: tables, plots and every row of a CSV say SMOKE

  def table(
    self,
    name: str,
    columns: Sequence[str],
    rows: Rows,
    *,
    caption: str,
    formats: Mapping[str, str] | None = None,
  ) -> str:
    """Writes NAME.md, for people, and NAME.csv, with every digit; returns the Markdown. See `markdown`."""
    parts = [caption, markdown(columns, rows, formats or {}), f"Made by `{self.command}`"]
    if self.smoke:
      parts.insert(0, f"**{SMOKE}**")
    text = "\n\n".join(parts) + "\n"
    self.csv(name, columns, rows)
    (self.folder / f"{name}.md").write_text(text, encoding="utf-8")
    return text

  def csv(self, name: str, columns: Sequence[str], rows: Rows) -> None:
    write_csv(self.folder / f"{name}.csv", columns, rows, stamp=SMOKE if self.smoke else "")

  def figure(self, name: str, title: str, caption: str) -> "Plot":
    """A plot to draw; its caption says how the numbers were made."""
    return Plot(self, name, title, caption)


@dataclass(frozen=True)
class Plot:
  """NAME.png, NAME.svg and NAME.csv of an output, where the last has every number that is drawn."""

  output: Output
  name: str
  title: str
  caption: str

  @contextlib.contextmanager
  def panels(self, height: float, *, note: str = "", **grid: Any) -> Iterator[list[Axes]]:
    """The panels, row by row; writes the images when the block ends without an error.

    Args:
      height: inches; the width is always WIDTH.
      note: said before the caption.
      grid: arguments of `matplotlib.figure.Figure.subplots`.
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
      stem = self.output.folder / self.name
      stem.parent.mkdir(parents=True, exist_ok=True)
      figure.savefig(f"{stem}.png")
      figure.savefig(f"{stem}.svg", metadata={"Date": None})

  def csv(self, columns: Sequence[str], rows: Rows) -> None:
    self.output.csv(self.name, columns, rows)
