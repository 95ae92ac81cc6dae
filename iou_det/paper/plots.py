"""Plots of runs beside each other, from plain arrays: Figures 2 and 3 of arXiv:1908.05641 and what we add.

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, LogNorm

from iou_det.paper.canvas import BINS_COLOURMAP, COLOURS, MARKERS, drawing, legend_above
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
  _check_ascending("ends of bins", edges, least=2)
  _check_runs(runs, least=1)
  rows: list[list[Cell]] = []
  with drawing(
    stem, title=title, caption=f"{_bins_text(edges)} {rule}", stamp=stamp,
    rows=2, height=5.0, sharex=True, height_ratios=(2, 1)) as (_, (top, bottom)):  # fmt: skip
    for i, (run, (mean, counts)) in enumerate(runs.items()):
      _check_lengths(run, bins, "bins", {"mean score": mean, "count": counts})
      full = counts > 0
      _check_unit(run, "mean score", mean[full])
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
  _check_ascending("thresholds", thresholds, least=1)
  _check_runs(runs, least=2)
  for run, shares in runs.items():
    _check_lengths(run, len(thresholds), "thresholds", {"share": shares})
    _check_unit(run, "share", shares)
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
            f"{y:+z.1f}", (x, y), (0, 6 if up else -6), textcoords="offset points", fontsize=8,
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
  _check_runs(runs, least=1)
  across = 2 if len(runs) == 4 else min(len(runs), 3)
  down = math.ceil(len(runs) / across)
  cells: list[Any] = []  # matplotlib's types do not say what a hexbin holds
  with drawing(
    stem, title=title, caption=rule, stamp=stamp,
    rows=down, columns=across, height=0.9 + 3.2 * down, sharey=True) as (figure, axes):  # fmt: skip
    for axis, (run, (scores, ious, spearman)) in zip(axes, runs.items(), strict=False):
      _check_lengths(run, len(scores), "scores", {"IoU": ious})
      _check_unit(run, "score", scores)
      _check_unit(run, "IoU", ious)
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


def ap_differences(
  ious: Float[np.ndarray, " ious"],
  runs: Mapping[str, tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"], Float[np.ndarray, " _"]]],
  stem: Path,
  *,
  baseline: str,
  title: str,
  rule: str,
  stamp: str = "",
) -> None:
  """AP at each IoU minus the baseline's, with intervals.

  Args:
    ious: ascending IoUs of the AP, COCO's ten.
    runs: difference in points of AP; lower and upper end of its 95% interval.
    baseline: name of the run that is subtracted.

  Raises:
    ValueError: numbers of another count than the IoUs; IoUs that do not ascend; an interval upside down; no
      run, or too many.
  """
  _check_ascending("IoUs", ious, least=1)
  _check_runs(runs, least=1)
  rows: list[list[Cell]] = []
  caption = f"Bars: 95% intervals. {rule}"
  with drawing(stem, title=title, caption=caption, stamp=stamp, height=4.2) as (_, (axis,)):
    axis.axhline(0, color="black", linewidth=1)
    step = 0.6 * np.diff(ious).min(initial=0.05) / len(runs)
    for i, (run, (difference, low, high)) in enumerate(runs.items()):
      _check_lengths(run, len(ious), "IoUs", {"difference": difference, "lower end": low, "upper end": high})
      if np.any(low > high):
        raise ValueError(f"run {run!r}: lower ends {low} exceed upper ends {high}")
      x = ious + step * (i - (len(runs) - 1) / 2)
      axis.vlines(x, low, high, color=COLOURS[i], linewidth=2)
      axis.plot(x, difference, MARKERS[i], color=COLOURS[i], markersize=6, label=run)
      rows += [[run, *numbers] for numbers in np.stack([ious, difference, low, high], axis=1).tolist()]
    axis.set(xlabel="IoU that counts as correct", xticks=ious)
    axis.set_ylabel(textwrap.fill(f"AP - AP of {baseline} (points)", 40))
    axis.grid(axis="x", visible=False)
    legend_above(axis)
  write_csv(with_ending(stem, ".csv"), ["run", "iou", "difference", "low", "high"], rows, stamp=stamp)


def sweep(
  curves: Mapping[str, tuple[Float[np.ndarray, " _"], ...]],
  stem: Path,
  *,
  title: str,
  rule: str,
  stamp: str = "",
) -> None:
  """AP and AP90 against the localization weight, a curve for each way to weight.

  Args:
    curves: ascending weights; at each: mean AP in percent, its spread over seeds, mean AP90, its spread. A
      spread is drawn up and down from the mean; NaN: not known, not drawn.

  Raises:
    ValueError: not five arrays of one length; no curve, or too many.
  """
  _check_runs(curves, least=1)
  names = ("weight", "ap", "ap_spread", "ap90", "ap90_spread")
  rows: list[list[Cell]] = []
  with drawing(stem, title=title, caption=rule, stamp=stamp, columns=2, height=4.2) as (_, axes):
    for i, (curve, arrays) in enumerate(curves.items()):
      if len(arrays) != len(names):
        raise ValueError(f"{curve!r} has {len(arrays)} arrays; give {', '.join(names)}")
      _check_lengths(curve, len(arrays[0]), "weights", dict(zip(names, arrays, strict=True)))
      weights, ap, ap_spread, ap90, ap90_spread = arrays
      look: dict[str, Any] = {"color": COLOURS[i], "marker": MARKERS[i], "capsize": 3, "label": curve}
      axes[0].errorbar(weights, ap, ap_spread, **look)
      axes[1].errorbar(weights, ap90, ap90_spread, **look)
      rows += [[curve, *_cells(numbers)] for numbers in np.stack(arrays, axis=1)]
    for axis, figure in zip(axes, ("AP (%)", "AP90 (%)"), strict=True):
      axis.set(xlabel="localization weight w_loc", ylabel=figure)
    legend_above(axes[0], letters=50)
  write_csv(with_ending(stem, ".csv"), ["curve", *names], rows, stamp=stamp)


def ap_bars(
  names: Sequence[str],
  ours: tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]],
  paper: Float[np.ndarray, " _"] | None,
  stem: Path,
  *,
  title: str,
  rule: str,
  stamp: str = "",
) -> None:
  """A table as a plot: AP of each run with its spread over seeds; beside it what each adds to the first run.

  The paper's AP is of another data set and does not stand beside ours; its differences do.

  Args:
    names: the runs, the baseline first.
    ours: mean AP of each run in percent; its spread over seeds, drawn left and right (NaN: not known).
    paper: the paper's AP of the same runs, in percent, NaN where it has none; None: it has no such table.

  Raises:
    ValueError: numbers of another count than names; no baseline in the paper's numbers.
  """
  mean, spread = ours
  _check_lengths("ours", len(names), "names", {"mean": mean, "spread": spread})
  differences = {"ours": mean - mean[0]}
  if paper is not None:
    _check_lengths("paper", len(names), "names", {"AP": paper})
    if np.isnan(paper[0]):
      raise ValueError(f"the paper's AP of the baseline {names[0]!r} is NaN: nothing to subtract")
    differences["paper (COCO)"] = paper - paper[0]
  y = np.arange(len(names))
  with drawing(
    stem, title=title, caption=rule, stamp=stamp,
    columns=2, height=1.9 + 0.42 * len(names), sharey=True) as (_, (left, right)):  # fmt: skip
    left.errorbar(mean, y, xerr=spread, fmt="o", color=COLOURS[0], capsize=3)
    left.set(xlabel="AP (%)", yticks=y, yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    height = 0.8 / len(differences)
    for i, (label, more) in enumerate(differences.items()):
      given = ~np.isnan(more)
      place = y - 0.4 + height * (i + 0.5)
      bars = right.barh(place[given], more[given], height, color=COLOURS[i], label=label)
      right.bar_label(bars, [f"{v:+z.1f}" for v in more[given]], padding=3, fontsize=8)
    right.axvline(0, color="black", linewidth=1)
    known = np.concatenate(list(differences.values()))
    low, high = min(-0.1, np.nanmin(known)), max(0.1, np.nanmax(known))  # a tenth even if nothing differs
    right.set_xlim(low - 0.15 * (high - low), high + 0.15 * (high - low))  # room for the numbers at the bars
    right.set(xlabel=textwrap.fill(f"AP - AP of {names[0]} (points)", 40))
    right.grid(axis="y", visible=False)
    legend_above(right, letters=50)
  numbers = [mean, spread, mean - mean[0]]
  if paper is not None:
    numbers += [paper, paper - paper[0]]
  columns = ["run", "ap", "ap_spread", "difference", "paper_ap", "paper_difference"][: 1 + len(numbers)]
  rows = [[name, *_cells(row)] for name, row in zip(names, np.stack(numbers, axis=1), strict=True)]
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
  _check_ascending("ends of bins", edges, least=2)
  _check_ascending("steps", steps, least=1)
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
    for i, value in enumerate(_cells(row))
  ]
  write_csv(with_ending(stem, ".csv"), ["share_of", "step", "iou_from", "iou_to", "share"], rows, stamp=stamp)


def _bins_text(edges: Float[np.ndarray, " edges"]) -> str:
  """The bins in words."""
  widths = np.diff(edges)
  if np.allclose(widths, widths[0]):
    return f"{len(widths)} bins of IoU, {widths[0]:.3g} wide, from {edges[0]:.3g} to {edges[-1]:.3g}."
  return f"Bins of IoU with ends {', '.join(f'{edge:.3g}' for edge in edges)}."


def _check_ascending(name: str, values: Shaped[np.ndarray, " _"], *, least: int) -> None:
  if len(values) < least or not np.all(np.diff(values) > 0):
    raise ValueError(f"{name} {values.tolist()}: give {least} or more that ascend")


def _check_runs(runs: Mapping[str, object], *, least: int) -> None:
  if not least <= len(runs) <= len(COLOURS):
    raise ValueError(f"{len(runs)} runs {list(runs)}: this plot shows {least} to {len(COLOURS)}")


def _check_lengths(run: str, length: int, of: str, arrays: Mapping[str, Shaped[np.ndarray, " _"]]) -> None:
  for name, array in arrays.items():
    if len(array) != length:
      raise ValueError(f"{run!r}: {len(array)} values of {name} for {length} {of}")


def _check_unit(run: str, name: str, values: Float[np.ndarray, " _"]) -> None:
  """NaN is outside too."""
  outside = values[~((values >= 0) & (values <= 1))]
  if len(outside):
    raise ValueError(f"{run!r}: {len(outside)} values of {name} are outside [0, 1], such as {outside[0]}")


def _cells(values: Float[np.ndarray, " _"]) -> list[Cell]:
  """NaN as None: a cell that stays empty."""
  return [None if math.isnan(value) else value for value in values.tolist()]
