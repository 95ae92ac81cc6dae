"""One look for every figure: size, colours, caption, stamp; the same bytes every time, no pyplot."""

import contextlib
import math
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iou_det.paper.tables import Cell, with_ending

# Okabe and Ito's colours, which everybody can tell apart; without their yellow, too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
BINS_COLOURMAP = "viridis"  # for what has an order
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


@contextlib.contextmanager
def drawing(
  stem: Path,
  *,
  title: str,
  caption: str,
  stamp: str,
  height: float,
  rows: int = 1,
  columns: int = 1,
  **grid: Any,
) -> Iterator[tuple[Figure, list[Axes]]]:
  """A figure and its panels, row by row; writes STEM.png and STEM.svg when the block ends without an error.

  Args:
    stem: path without its ending; the folder is made.
    title: above the panels, with the stamp.
    caption: small print below the panels: how the numbers were made.
    stamp: drawn across the figure, such as "smoke, not a result"; "": none.
    height: inches; the width is always WIDTH.
    grid: more arguments of `Figure.subplots`.
  """
  with style.context(["default", STYLE]):  # not what the user's matplotlibrc says
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **grid).ravel().tolist()
    heading = f"{title}: {stamp}" if stamp else title
    figure.suptitle(textwrap.fill(heading, 88), x=0.012, ha="left", fontsize=11, fontweight="bold")
    figure.supxlabel(textwrap.fill(caption, 136), x=0.012, ha="left", fontsize=8, color="#444444")
    yield figure, axes
    if stamp:
      behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.5}
      across = figure.text(0.5, 0.5, stamp, color="#B00000", alpha=0.6, bbox=behind)
      across.set(ha="center", va="center", rotation=18, fontsize=min(40, 800 / len(stamp)), in_layout=False)
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(with_ending(stem, ".png"))
    figure.savefig(with_ending(stem, ".svg"), metadata={"Date": None})


def legend_above(axes: Axes, *, letters: int = 108) -> None:
  """A legend between title and panel, where it covers no data, in as many columns as fit.

  Args:
    axes: the panel, whose lines and bars have labels.
    letters: how many stand in its width; 108 is a panel as wide as the figure.
  """
  _, labels = axes.get_legend_handles_labels()
  columns = max(1, min(len(labels), letters // (max(map(len, labels)) + 6)))
  axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, columnspacing=1.4)


def check_ascending(name: str, values: Shaped[np.ndarray, " _"], *, least: int) -> None:
  if len(values) < least or not np.all(np.diff(values) > 0):
    raise ValueError(f"{name} {values.tolist()}: give {least} or more that ascend")


def check_runs(runs: Mapping[str, object], *, least: int) -> None:
  if not least <= len(runs) <= len(COLOURS):
    raise ValueError(f"{len(runs)} runs {list(runs)}: this plot shows {least} to {len(COLOURS)}")


def check_lengths(run: str, length: int, of: str, arrays: Mapping[str, Shaped[np.ndarray, " _"]]) -> None:
  for name, array in arrays.items():
    if len(array) != length:
      raise ValueError(f"{run!r}: {len(array)} values of {name} for {length} {of}")


def check_unit(run: str, name: str, values: Float[np.ndarray, " _"]) -> None:
  """NaN is outside too."""
  outside = values[~((values >= 0) & (values <= 1))]
  if len(outside):
    raise ValueError(f"{run!r}: {len(outside)} values of {name} are outside [0, 1], such as {outside[0]}")


def cells_of(values: Float[np.ndarray, " _"]) -> list[Cell]:
  """NaN as None: a cell that stays empty."""
  return [None if math.isnan(value) else value for value in values.tolist()]
