"""What the charts of groups share: the legend, beside them, where it covers no data; and rows of dots."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from iou_det.report.charts import COLOURS, chart
from iou_det.report.markup import text
from iou_det.report.scores import Group

DASHES = {"-": "", "--": "7 4", "-.": "8 3 2 3", ":": "2 3"}
# About the point 17, 7, as matplotlib's markers of MARKERS.
SHAPES = {
  "o": '<circle cx="17" cy="7" r="4"/>',
  "s": '<path d="M13 3h8v8h-8z"/>',
  "D": '<path d="M17 2l5 5-5 5-5-5z"/>',
  "^": '<path d="M17 2.5l5 8.5H12z"/>',
  "v": '<path d="M17 11.5L12 3h10z"/>',
  "P": '<path d="M15 2h4v3h3v4h-3v3h-4V9h-3V5h3z"/>',
  "*": '<path d="M17 1l1.8 4.2 4.6.4-3.5 3 1.1 4.4-4-2.3-4 2.3 1.1-4.4-3.5-3 4.6-.4z"/>',
}


def legend(groups: Sequence[Group]) -> str:
  """Empty for one run."""
  if len(groups) == 1:
    return ""
  return f'<ul class="legend">{"".join(map(entry, groups))}</ul>'


def entry(group: Group) -> str:
  colour = f"var(--c{COLOURS.index(group.look.colour)})"
  dash = f'stroke-dasharray="{DASHES[group.look.stroke]}"' if DASHES[group.look.stroke] else ""
  line = f'<path d="M1 7h32" fill="none" stroke="{colour}" stroke-width="2.5" {dash}/>'
  mark = f'<g fill="{colour}">{SHAPES[group.look.marker]}</g>'
  picture = f'<svg viewBox="0 0 34 14" width="34" height="14" aria-hidden="true">{line}{mark}</svg>'
  seeds = f" ({len(group.seeds)} seeds)" if len(group.seeds) > 1 else ""
  return f"<li>{picture} {text(group.name + seeds)}</li>"


def dots(
  groups: Sequence[Group],
  name: str,
  title: str,
  reading: str,
  rows: Sequence[str],
  found: Mapping[str, Sequence[float | None]],
  xlabel: str = "AP",
) -> str:
  """A row for each name, a mark in it for each group; `found` has the numbers of each group by its name."""
  height = max(1.2, 0.75 + len(rows) * (0.16 + 0.12 * min(len(groups), 4)))

  def paint(axis: Axes) -> None:
    y = np.arange(len(rows))
    for i, group in enumerate(groups):
      apart = 0.6 * (i - (len(groups) - 1) / 2) / len(groups)
      x = np.array(found[group.name], float)
      axis.plot(x, y - apart, **group.look.dots, clip_on=False)
    axis.set(yticks=y, xlabel=xlabel, ylim=(-0.6, len(rows) - 0.4))
    axis.set_yticklabels([shortened(row) for row in rows])
    axis.set_xlim(0, 1 if xlabel == "AP" else 1.05 * max(0.1, axis.get_xlim()[1]))
    axis.xaxis.set_major_locator(MaxNLocator(5))

  return chart(name, title, reading, paint, height=height)


def shortened(name: str, most: int = 26) -> str:
  return name if len(name) <= most else f"{name[: most - 1]}…"
