"""Plots of detections and of training, from plain arrays: Figures 2 and 3 of arXiv:1908.05641 and more.

Every function writes STEM.png, STEM.svg and STEM.csv, which holds every number that is drawn. They share
these arguments:

  stem: path without its ending; the folder is made.
  title: above the panels.
  rule: sentences below the panels that say how the numbers were made: data, matching rule, what a spread is.
  stamp: drawn across the plot, in its title and in every row of the CSV, such as "smoke, not a result".

`runs` maps the name of each run, as the legend shows it, to its numbers; the order is kept.
"""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, LogNorm

from iou_det.paper.canvas import (
  BINS_COLOURMAP,
  COLOURS,
  MARKERS,
  cells_of,
  check_ascending,
  check_lengths,
  check_runs,
  check_unit,
  drawing,
  legend_above,
)  # fmt: skip
from iou_det.paper.tables import Cell, with_ending, write_csv

IOU = "IoU with the ground truth"


def mean_scores(
  edges: Float[np.ndarray, " edges"],
  runs: Mapping[str, tuple[Float[np.ndarray, " _"], Int[np.ndarray, " _"]]],
  stem: Path,
  *,
  title: str,
  rule: str,
  stamp: str = "",
) -> None:
  """Figure 2: mean score of the detections in each bin of IoU, runs side by side, and how many there are.

  Args:
    edges: ascending ends of the IoU bins, one more than bins; a bin holds its lower end.
    runs: mean score of each bin, in [0, 1], anything where the bin is empty; detections in each bin.

  Raises:
    ValueError: a run with another number of bins; edges that do not ascend; too many runs.
  """
  bins = len(edges) - 1
  check_ascending("ends of bins", edges, least=2)
  check_runs(runs, least=1)
  rows: list[list[Cell]] = []
  with drawing(
    stem, title=title, caption=f"{_bins_text(edges)} {rule}", stamp=stamp,
    rows=2, height=5.0, sharex=True, height_ratios=(2, 1)) as (_, (top, bottom)):  # fmt: skip
    for i, (run, (mean, counts)) in enumerate(runs.items()):
      check_lengths(run, bins, "bins", {"mean score": mean, "count": counts})
      full = counts > 0
      check_unit(run, "mean score", mean[full])
      width = 0.84 * np.diff(edges) / len(runs)
      left = edges[:-1] + 0.08 * np.diff(edges) + i * width
      label = f"{run}: {counts.sum():,} detections"
      top.bar(left[full], mean[full], width[full], align="edge", color=COLOURS[i], label=label)
      bottom.bar(left, counts, width, align="edge", color=COLOURS[i])
      for low, high, value, count in zip(edges[:-1], edges[1:], mean.tolist(), counts.tolist(), strict=True):
        rows.append([run, float(low), float(high), value if count else None, count])
    top.set(ylabel="mean score", ylim=(0, None))
    bottom.set_yscale("symlog", linthresh=1)  # a logarithm that can show an empty bin
    bottom.set(ylabel="detections", ylim=(0, None), xlabel=IOU, xlim=(edges[0], edges[-1]))
    for axis in (top, bottom):
      axis.grid(axis="x", visible=False)
    legend_above(top)
  columns = ["run", "iou_from", "iou_to", "mean_score", "detections"]
  write_csv(with_ending(stem, ".csv"), columns, rows, stamp=stamp)


def shares_above(
  thresholds: Float[np.ndarray, " thresholds"],
  runs: Mapping[str, Float[np.ndarray, " _"]],
  stem: Path,
  *,
  title: str,
  rule: str,
  stamp: str = "",
) -> None:
  """Figure 3: share of the detections at or above each IoU, and its difference to the first run.

  Args:
    thresholds: ascending IoUs.
    runs: share of all of the run's detections, in [0, 1]; the first run is the baseline.

  Raises:
    ValueError: a run with another number of shares; thresholds that do not ascend; no second run; too many
      runs; a share outside [0, 1].
  """
  check_ascending("thresholds", thresholds, least=1)
  check_runs(runs, least=2)
  for run, shares in runs.items():
    check_lengths(run, len(thresholds), "thresholds", {"share": shares})
    check_unit(run, "share", shares)
  (baseline, reference), *_ = runs.items()
  rows: list[list[Cell]] = []
  with drawing(
    stem, title=title, caption=rule, stamp=stamp,
    rows=2, height=5.4, sharex=True, height_ratios=(3, 2)) as (_, (top, bottom)):  # fmt: skip
    for i, (run, shares) in enumerate(runs.items()):
      points = 100 * (shares - reference)
      look: dict[str, Any] = {"color": COLOURS[i], "marker": MARKERS[i]}
      top.plot(thresholds, 100 * shares, label=run, **look)
      bottom.plot(thresholds, points, linestyle="--" if i == 0 else "-", **look)
      if i == 1 and len(runs) == 2:
        for x, y in zip(thresholds, points, strict=True):
          up = y >= 0
          bottom.annotate(
            f"{y:+z.2f}", (x, y), (0, 6 if up else -6), textcoords="offset points", fontsize=8,
            ha="center", va="bottom" if up else "top")  # fmt: skip
      for iou, share, more in zip(thresholds.tolist(), shares.tolist(), points.tolist(), strict=True):
        rows.append([run, iou, share, more])
    top.set(ylabel="share of detections (%)", ylim=(0, None))
    bottom.set(xlabel=f"{IOU}, at least", xticks=thresholds)
    bottom.set_ylabel(textwrap.fill(f"difference to {baseline} (points)", 22))
    bottom.tick_params(axis="x", labelrotation=45 if len(thresholds) > 11 else 0)
    bottom.margins(y=0.25)
    legend_above(top)
  write_csv(with_ending(stem, ".csv"), ["run", "iou", "share", "difference_points"], rows, stamp=stamp)


def score_against_iou(
  runs: Mapping[str, tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"], float | None]],
  stem: Path,
  *,
  title: str,
  rule: str,
  stamp: str = "",
) -> None:
  """Where a run's detections lie by IoU and score: a panel each, one scale of colours.

  Args:
    runs: scores; IoU of the same detections; their Spearman correlation, None if it is not defined.

  Raises:
    ValueError: scores and IoUs of different numbers; values outside [0, 1]; no run.
  """
  check_runs(runs, least=1)
  across = 2 if len(runs) == 4 else min(len(runs), 3)
  down = math.ceil(len(runs) / across)
  cells: list[Any] = []  # matplotlib's types do not say what a hexbin holds
  with drawing(
    stem, title=title, caption=rule, stamp=stamp,
    rows=down, columns=across, height=0.9 + 3.2 * down, sharey=True) as (figure, axes):  # fmt: skip
    for axis, (run, (scores, ious, spearman)) in zip(axes, runs.items(), strict=False):
      check_lengths(run, len(scores), "scores", {"IoU": ious})
      check_unit(run, "score", scores)
      check_unit(run, "IoU", ious)
      cells.append(axis.hexbin(ious, scores, gridsize=25, extent=(0, 1, 0, 1), mincnt=1, cmap=BINS_COLOURMAP))
      known = "not defined" if spearman is None else f"{spearman:.3f}"
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
    figure.colorbar(cells[0], ax=axes[: len(runs)], label="detections in a cell", pad=0.01)
  rows: list[list[Cell]] = []
  for (run, (_, _, spearman)), cell in zip(runs.items(), cells, strict=True):
    for (iou, score), count in zip(cell.get_offsets().tolist(), cell.get_array().tolist(), strict=True):
      rows.append([run, spearman, iou, score, int(count)])
  columns = ["run", "spearman", "cell_iou", "cell_score", "detections"]
  write_csv(with_ending(stem, ".csv"), columns, rows, stamp=stamp)


def diagnostics(
  steps: Int[np.ndarray, " steps"],
  edges: Float[np.ndarray, " edges"],
  gradient: Float[np.ndarray, "_ _"],
  positives: Float[np.ndarray, "_ _"],
  stem: Path,
  *,
  title: str,
  rule: str,
  stamp: str = "",
) -> None:
  """Over training: which bins of IoU the localization gradient comes from, and where the positives lie.

  Args:
    steps: ascending training steps.
    edges: ascending ends of the IoU bins, one more than bins.
    gradient: gradient norm of the positives in each bin at each step, in any unit: each step is divided by
      its sum. A step that sums to 0 (no positives) is a gap in the plot and empty in the CSV.
    positives: positives in each bin at each step, counts or shares; divided likewise.

  Raises:
    ValueError: arrays that are not steps x bins; values that are negative or not finite; no
      steps, or steps or ends that do not ascend.
  """
  check_ascending("ends of bins", edges, least=2)
  check_ascending("steps", steps, least=1)
  panels = {"localization gradient": gradient, "positives": positives}
  shape = (len(steps), len(edges) - 1)
  shares = {}
  for name, values in panels.items():
    if values.shape != shape:
      raise ValueError(f"{name}: an array of {values.shape} for {shape[0]} steps x {shape[1]} bins")
    if not np.all(np.isfinite(values) & (values >= 0)):
      raise ValueError(f"{name}: values are negative or not finite")
    total = values.sum(axis=1, keepdims=True)
    shares[name] = np.divide(values, total, out=np.full(shape, np.nan), where=total > 0)
  with drawing(
    stem, title=title, caption=f"{_bins_text(edges)} {rule}", stamp=stamp,
    columns=2, height=4.2, sharey=True) as (figure, axes):  # fmt: skip
    ends = np.append(steps, steps[-1] + np.diff(steps, prepend=steps[-1] - 1)[-1])
    scale = BoundaryNorm(edges, 256)
    colours = colormaps[BINS_COLOURMAP](scale(edges[:-1]))
    for axis, (name, share) in zip(axes, shares.items(), strict=True):
      held = np.concatenate([share, share[-1:]]).T  # until the next step; stays visible if there is only one
      axis.stackplot(ends, 100 * np.nan_to_num(held), colors=colours, step="post")
      axis.set_title(f"Share of the {name}", loc="left")
      axis.set(xlabel="training step", xlim=(ends[0], ends[-1]), ylim=(0, 100))
    axes[0].set_ylabel("share (%)")
    colours = ScalarMappable(scale, BINS_COLOURMAP)
    figure.colorbar(colours, ax=axes, label=IOU, pad=0.01, spacing="proportional", ticks=edges)
  rows = [
    [name, step, float(edges[i]), float(edges[i + 1]), value]
    for name, share in shares.items()
    for step, row in zip(steps.tolist(), share, strict=True)
    for i, value in enumerate(cells_of(row))
  ]
  write_csv(with_ending(stem, ".csv"), ["share_of", "step", "iou_from", "iou_to", "share"], rows, stamp=stamp)


def _bins_text(edges: Float[np.ndarray, " edges"]) -> str:
  """The bins in words."""
  widths = np.diff(edges)
  if np.allclose(widths, widths[0]):
    return f"{len(widths)} bins of IoU, {widths[0]:.3g} wide, from {edges[0]:.3g} to {edges[-1]:.3g}."
  return f"Bins of IoU with ends {', '.join(f'{edge:.3g}' for edge in edges)}."
