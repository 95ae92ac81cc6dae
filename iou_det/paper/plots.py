"""Plots of detections, of AP and of training.

`runs` maps the name of each run, as the legend shows it, to its numbers; the order is kept. There are at most
as many as COLOURS.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, LogNorm

from iou_det.evaluation.overlap import Overlaps, ScorePerIou
from iou_det.paper.output import Cell, Plot

# Okabe and Ito's colours, which everybody can tell apart; without their yellow, too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
BINS_COLOURMAP = "viridis"  # for what has an order
IOU = "IoU with the ground truth"
WHOLE = (
  "{x:,.0f}"  # on a logarithmic scale, where matplotlib's own are formulas, which `Plot` shows as they are
)
BEHIND = {
  "facecolor": "white",
  "edgecolor": "none",
  "pad": 0.5,
}  # of numbers: no line of the grid through them


def mean_scores(plot: Plot, runs: Mapping[str, ScorePerIou]) -> None:
  """Figure 2: mean score of the detections in each bin of IoU, runs side by side, and how many there are."""
  edges = next(iter(runs.values())).edges
  with plot.panels(5.0, note=bins_text(edges), nrows=2, sharex=True, height_ratios=(2, 1)) as (top, bottom):
    for i, (run, (_, mean, counts)) in enumerate(runs.items()):
      full = counts > 0
      width = 0.84 * np.diff(edges) / len(runs)
      left = edges[:-1] + 0.08 * np.diff(edges) + i * width
      label = f"{run}: {counts.sum():,} detections"
      top.bar(left[full], mean[full], width[full], align="edge", color=COLOURS[i], label=label)
      bottom.bar(left, counts, width, align="edge", color=COLOURS[i])
    top.set(ylabel="mean score", ylim=(0, None))
    bottom.set_yscale("symlog", linthresh=1)  # a logarithm that can show an empty bin
    bottom.yaxis.set_major_formatter(WHOLE)
    bottom.set(ylabel="detections", ylim=(0, None), xlabel=IOU, xlim=(edges[0], edges[-1]))
    for axis in (top, bottom):
      axis.grid(axis="x", visible=False)
    legend_above(top)
  means = {run: np.where(counts > 0, mean, np.nan) for run, (_, mean, counts) in runs.items()}
  numbers = {run: (edges[:-1], edges[1:], means[run], bins.counts) for run, bins in runs.items()}
  plot.csv(["run", "iou_from", "iou_to", "mean_score", "detections"], rows_of(numbers))


def shares_above(
  plot: Plot, thresholds: Float[np.ndarray, " n"], runs: Mapping[str, Float[np.ndarray, " n"]]
) -> None:
  """Figure 3: share of a run's detections at or above each IoU, and its difference to the first run."""
  (baseline, reference), *_ = runs.items()
  differences = {run: 100 * (shares - reference) for run, shares in runs.items()}
  with plot.panels(5.4, nrows=2, sharex=True, height_ratios=(3, 2)) as (top, bottom):
    for i, (run, points) in enumerate(differences.items()):
      look: dict[str, Any] = {"color": COLOURS[i], "marker": MARKERS[i]}
      top.plot(thresholds, 100 * runs[run], label=run, **look)
      bottom.plot(thresholds, points, linestyle="--" if i == 0 else "-", **look)
      if i == 1 and len(runs) == 2:
        near: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "ha": "center", "bbox": BEHIND}
        for x, y in zip(thresholds, points, strict=True):
          offset, side = ((0, 6), "bottom") if y >= 0 else ((0, -6), "top")
          bottom.annotate(f"{y:+z.2f}", (x, y), offset, va=side, **near)
    top.set(ylabel="share of detections (%)", ylim=(0, None))
    bottom.set(xlabel=f"{IOU}, at least", xticks=thresholds)
    bottom.set_ylabel(textwrap.fill(f"difference to {baseline} (points)", 22))
    bottom.tick_params(axis="x", labelrotation=45 if len(thresholds) > 11 else 0)
    bottom.margins(y=0.25)
    legend_above(top)
  numbers = {run: (thresholds, runs[run], points) for run, points in differences.items()}
  plot.csv(["run", "iou", "share", "difference_points"], rows_of(numbers))


def score_against_iou(plot: Plot, runs: Mapping[str, Overlaps], spearman: Mapping[str, float | None]) -> None:
  """Where a run's detections lie by IoU and score: a panel each, one scale of colours; their correlation."""
  across = 2 if len(runs) == 4 else min(len(runs), 3)
  down = math.ceil(len(runs) / across)
  cells: list[Any] = []  # matplotlib's types do not say what a hexbin holds
  with plot.panels(0.9 + 3.2 * down, nrows=down, ncols=across, sharey=True) as axes:
    look: dict[str, Any] = {"gridsize": 25, "extent": (0, 1, 0, 1), "mincnt": 1, "cmap": BINS_COLOURMAP}
    for axis, (run, (scores, ious, _)) in zip(axes, runs.items(), strict=False):
      cells.append(axis.hexbin(ious, scores, **look))
      known = "not defined" if spearman[run] is None else f"{spearman[run]:.3f}"
      name = textwrap.fill(run, 80 // across)
      axis.set_title(f"{name}\n{len(scores):,} detections\nSpearman {known}", loc="left", fontsize=9)
      axis.set(xlabel=IOU, xlim=(0, 1), ylim=(0, 1))
    for axis in axes[len(runs) :]:
      axis.remove()
    for axis in axes[::across]:
      axis.set_ylabel("score")
    most = max([10, *(count for cell in cells for count in cell.get_array().tolist())])
    for cell in cells:
      cell.set_norm(LogNorm(1, most))
    what = "detections in a cell"
    axes[0].figure.colorbar(cells[0], ax=axes[: len(runs)], label=what, pad=0.01, format=WHOLE)
  rows = [
    [run, spearman[run], iou, score, int(count)]
    for run, cell in zip(runs, cells, strict=True)
    for (iou, score), count in zip(cell.get_offsets().tolist(), cell.get_array().tolist(), strict=True)
  ]
  plot.csv(["run", "spearman", "cell_iou", "cell_score", "detections"], rows)


def ap_differences(
  plot: Plot, ious: Float[np.ndarray, " n"], runs: Mapping[str, Float[np.ndarray, "3 n"]], *, baseline: str
) -> None:
  """AP at each IoU minus the baseline's: points of AP, lower and upper end of the 95% interval."""
  with plot.panels(4.2, note="Bars: 95% intervals.") as (axis,):
    axis.axhline(0, color="black", linewidth=1)
    step = 0.8 * np.diff(ious).min(initial=0.05) / len(runs)
    for i, (run, (difference, low, high)) in enumerate(runs.items()):
      x = ious + step * (i - (len(runs) - 1) / 2)
      axis.vlines(x, low, high, color=COLOURS[i], linewidth=2)
      axis.plot(x, difference, MARKERS[i], color=COLOURS[i], markersize=6, label=run)
    axis.set(xlabel="IoU that counts as correct", xticks=ious)
    axis.set_ylabel(textwrap.fill(f"AP - AP of {baseline} (points)", 40))
    axis.grid(axis="x", visible=False)
    legend_above(axis)
  plot.csv(["run", "iou", "difference", "low", "high"], rows_of({r: (ious, *n) for r, n in runs.items()}))


def sweep(plot: Plot, curves: Mapping[str, Float[np.ndarray, "6 _"]]) -> None:
  """AP and AP90 against the localization weight w_loc (above) and against the effective weight (below).

  A curve has ascending w_loc; mean effective weight over training, mean AP in percent, its spread over seeds
  (NaN: not known, not drawn), mean AP90, its spread.
  """
  with plot.panels(6.6, nrows=2, ncols=2) as axes:
    for i, (curve, arrays) in enumerate(curves.items()):
      weights, effective, ap, ap_spread, ap90, ap90_spread = arrays
      look: dict[str, Any] = {"color": COLOURS[i], "marker": MARKERS[i], "capsize": 3, "label": curve}
      # Curves have the same weights: their bars would hide each other.
      aside = 0.012 * np.ptp(weights) * (i - (len(curves) - 1) / 2)
      for x, (left, right) in zip((weights + aside, effective), (axes[:2], axes[2:]), strict=True):
        left.errorbar(x, ap, ap_spread, **look)
        right.errorbar(x, ap90, ap90_spread, **look)
    for i, axis in enumerate(axes):
      below = ("localization weight w_loc", "effective weight (mean over training)")[i // 2]
      axis.set(xlabel=below, ylabel=("AP (%)", "AP90 (%)")[i % 2])
    legend_above(axes[0], letters=50)
  columns = ["curve", "weight", "effective_weight", "ap", "ap_spread", "ap90", "ap90_spread"]
  plot.csv(columns, rows_of(curves))


def ap_bars(plot: Plot, names: Sequence[str], ap: Float[np.ndarray, "3 n"]) -> None:
  """A table as a plot: AP of each run with its spread over seeds; beside it what each adds to the first run.

  The paper's AP is of another data set and does not stand beside ours; its differences do. `ap` in percent:
  mean of each run; its spread, NaN if not known; the paper's, NaN where it has none (of the first run: then
  nothing of it is shown).
  """
  mean, spread, paper = ap
  ours, theirs = mean - mean[0], paper - paper[0]
  differences, numbers = {"ours": ours}, {"ap": mean, "ap_spread": spread, "difference": ours}
  if not np.isnan(paper[0]):
    differences["paper (COCO)"] = theirs
    numbers |= {"paper_ap": paper, "paper_difference": theirs}
  y = np.arange(len(names))
  with plot.panels(1.9 + 0.42 * len(names), ncols=2, sharey=True) as (left, right):
    left.errorbar(mean, y, xerr=spread, fmt="o", color=COLOURS[0], capsize=3)
    wrapped = [textwrap.fill(name, 26) for name in names]
    left.set(xlabel="AP (%)", yticks=y, yticklabels=wrapped, ylim=(len(names) - 0.4, -0.6))
    height = 0.8 / len(differences)
    for i, (label, more) in enumerate(differences.items()):
      given = ~np.isnan(more)
      middle = y - 0.4 + height * (i + 0.5)
      bars = right.barh(middle[given], more[given], height, color=COLOURS[i], label=label)
      right.bar_label(bars, [f"{v:+z.1f}" for v in more[given]], padding=3, fontsize=8)
    right.axvline(0, color="black", linewidth=1)
    known = np.concatenate(list(differences.values()))
    low, high = min(-0.1, np.nanmin(known)), max(0.1, np.nanmax(known))  # a tenth even if nothing differs
    right.set_xlim(low - 0.2 * (high - low), high + 0.2 * (high - low))  # room for the numbers at the bars
    right.set(xlabel=textwrap.fill(f"AP - AP of {names[0]} (points)", 40))
    right.grid(axis="y", visible=False)
    legend_above(right, letters=50)
  plot.csv(["run", *numbers], list(zip(names, *map(cells_of, numbers.values()), strict=True)))


def diagnostics(
  plot: Plot,
  steps: Int[np.ndarray, " steps"],
  edges: Float[np.ndarray, " edges"],
  amounts: Mapping[str, Float[np.ndarray, "steps bins"]],
) -> None:
  """Over training: the bins of IoU, by ascending `edges`, that something comes from or lies in.

  Two amounts by name, in any unit: each step is divided by its sum. A step that sums to 0 (no positives) is a
  gap in the plot and empty in the CSV.
  """
  shares = {}
  for name, values in amounts.items():
    total = values.sum(axis=1, keepdims=True)
    shares[name] = np.divide(values, total, out=np.full(values.shape, np.nan), where=total > 0)
  with plot.panels(4.2, note=bins_text(edges), ncols=2, sharey=True) as axes:
    ends = np.append(steps[0] - np.diff(steps, append=steps[-1] + 1)[0], steps)
    scale = BoundaryNorm(edges, 256)
    colours = colormaps[BINS_COLOURMAP](scale(edges[:-1]))
    for axis, (name, share) in zip(axes, shares.items(), strict=True):
      held = np.concatenate([share[:1], share]).T  # since the step before; stays visible if there is only one
      axis.stackplot(ends, 100 * np.nan_to_num(held), colors=colours, step="pre")
      axis.set_title(f"Share of the {name}", loc="left")
      axis.set(xlabel="training step", xlim=(ends[0], ends[-1]), ylim=(0, 100))
    axes[0].set_ylabel("share (%)")
    key = ScalarMappable(scale, BINS_COLOURMAP)
    axes[0].figure.colorbar(key, ax=axes, label=IOU, pad=0.01, spacing="proportional", ticks=edges)
  where = np.repeat(steps, len(edges) - 1), *(np.tile(ends, len(steps)) for ends in (edges[:-1], edges[1:]))
  numbers = {name: (*where, share.ravel()) for name, share in shares.items()}
  plot.csv(["share_of", "step", "iou_from", "iou_to", "share"], rows_of(numbers))


def bins_text(edges: Float[np.ndarray, " edges"]) -> str:
  width = np.diff(edges)[0]
  return f"{len(edges) - 1} bins of IoU, {width:.3g} wide, from {edges[0]:.3g} to {edges[-1]:.3g}."


def legend_above(axes: Axes, *, letters: int = 108) -> None:
  """A legend between title and panel, where it covers no data; in the panel's width stand so many letters."""
  _, labels = axes.get_legend_handles_labels()
  columns = max(1, min(len(labels), letters // (max(map(len, labels)) + 6)))
  axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, columnspacing=1.4)


def rows_of(runs: Mapping[str, Iterable[Shaped[np.ndarray, " _"]]]) -> list[list[Cell]]:
  """A row for each number of each run: the run's name and what its arrays have there."""
  return [[run, *cells] for run, arrays in runs.items() for cells in zip(*map(cells_of, arrays), strict=True)]


def cells_of(values: Shaped[np.ndarray, " n"]) -> list[Cell]:
  """NaN as None: a cell that stays empty."""
  return [None if math.isnan(value) else value for value in values.tolist()]
