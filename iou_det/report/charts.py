"""Charts as SVG inside a page: its text and axes take the page's colour, its lines the page's palette.

matplotlib writes colours that stand for the page's, and they are replaced: so one chart is right in light and
in dark mode.
"""

import html
import re
from collections.abc import Callable
from io import StringIO
from typing import Any, NamedTuple

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iou_det import fonts
from iou_det.report.markup import text

INK = "#010203"  # becomes the page's text colour
COLOURS = tuple(f"#01020{i}" for i in range(4, 10)) + ("#01020a",)  # become var(--c0), ... var(--c6)
STROKES: tuple[Any, ...] = ("-", "--", "-.", ":")
MARKERS = "osD^vP*"
WIDTH = 4.8  # inches, 346 points: so wide a chart is about as large on a telephone as it was made
STYLE: dict[str, Any] = {
  "figure.dpi": 144,
  "savefig.dpi": 144,
  "savefig.transparent": True,
  "font.size": 11,
  "axes.titlesize": 11,
  "axes.labelsize": 11,
  "text.color": INK,
  "axes.edgecolor": INK,
  "axes.labelcolor": INK,
  "axes.titlecolor": INK,
  "xtick.color": INK,
  "ytick.color": INK,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": INK,
  "grid.alpha": 0.15,
  "lines.linewidth": 1.8,
  "lines.markersize": 5,
  "svg.fonttype": "none",
  "svg.hashsalt": "iou-det",  # ids would be random
  "text.parse_math": False,  # names of classes may have dollars
}


class Look(NamedTuple):
  """How a run is drawn in all charts."""

  colour: str
  stroke: Any
  marker: str

  @classmethod
  def of(cls, place: int) -> "Look":
    again = place // len(COLOURS)
    return cls(COLOURS[place % len(COLOURS)], STROKES[place % 4], MARKERS[(place + again) % 7])

  @property
  def line(self) -> dict[str, Any]:
    return {"color": self.colour, "linestyle": self.stroke}

  @property
  def dots(self) -> dict[str, Any]:
    return {"color": self.colour, "linestyle": "none", "marker": self.marker}


def chart(
  name: str,
  title: str,
  reading: str,
  paint: Callable[[Axes], None],
  height: float = 2.9,
  width: float = WIDTH,
) -> str:
  """A figure of one panel with a heading and a sentence that says how it is read.

  Args:
    name: one in the page: its ids begin so.
    paint: draws on the axes.
    height, width: in inches.
  """
  name = re.sub(r"[^a-z0-9]+", "-", name.lower())
  with style.context(["default", STYLE]):  # not what the user's matplotlibrc says
    figure = Figure(figsize=(width, height), layout="constrained")
    paint(figure.subplots())
    fonts.give(figure)
    written = StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
  picture = for_page(written.getvalue(), name, title)
  return (
    f'<figure class="chart" id="{name}"><h3>{text(title)}</h3>{picture}'
    f"<figcaption>{text(reading)}</figcaption></figure>"
  )


def for_page(svg: str, name: str, title: str) -> str:
  """matplotlib's SVG as a part of a page."""
  svg = svg[svg.index("<svg") :]
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
  svg = re.sub(r"<style .*?</style>", "", svg, flags=re.DOTALL)  # would hold for the whole page
  size = re.search(r'viewBox="[^"]*"', svg)
  assert size
  inside = svg[svg.index(">") + 1 :]

  def tag(found: re.Match[str]) -> str:
    tag = re.sub(r'\bid="', f'id="{name}-', found[0])
    tag = tag.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    tag = tag.replace(INK, "currentColor")
    for i, colour in enumerate(COLOURS):
      tag = tag.replace(colour, f"var(--c{i})")
    return re.sub(r"; font-family: [^;\"]*", "", tag)  # the page's

  inside = re.sub(r"<[^>]*>", tag, inside)  # what stands between them is text
  inside = re.sub(r"[ \t]*\n[ \t]*", " ", inside)
  attributes = f'{size[0]} role="img" aria-label="{html.escape(title)}" class="plot"'
  joins = 'style="stroke-linejoin: round; stroke-linecap: butt"'
  spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
  return f"<svg {spaces} {attributes} {joins}>{inside.rstrip()}"
