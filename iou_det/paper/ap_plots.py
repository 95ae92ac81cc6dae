"""Plots of AP, from plain arrays: against the baseline at each IoU, against the localization weight, as bars.

Their arguments are those of `iou_det.paper.plots`.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from iou_det.paper.canvas import (
  COLOURS,
  MARKERS,
  cells_of,
  check_ascending,
  check_lengths,
  check_runs,
  drawing,
  legend_above,
)  # fmt: skip
from iou_det.paper.tables import Cell, with_ending, write_csv


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
  check_ascending("IoUs", ious, least=1)
  check_runs(runs, least=1)
  rows: list[list[Cell]] = []
  caption = f"Bars: 95% intervals. {rule}"
  with drawing(stem, title=title, caption=caption, stamp=stamp, height=4.2) as (_, (axis,)):
    axis.axhline(0, color="black", linewidth=1)
    step = 0.6 * np.diff(ious).min(initial=0.05) / len(runs)
    for i, (run, (difference, low, high)) in enumerate(runs.items()):
      check_lengths(run, len(ious), "IoUs", {"difference": difference, "lower end": low, "upper end": high})
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
  """AP and AP90 against the localization weight w_loc (above) and against the effective weight (below).

  Args:
    curves: for each way to weight, ascending w_loc; at each: mean effective weight over training, mean AP in
      percent, its spread over seeds, mean AP90, its spread. A spread is drawn up and down from the mean; NaN:
      not known, not drawn.

  Raises:
    ValueError: not six arrays of one length; no curve, or too many.
  """
  check_runs(curves, least=1)
  names = ("weight", "effective_weight", "ap", "ap_spread", "ap90", "ap90_spread")
  rows: list[list[Cell]] = []
  with drawing(stem, title=title, caption=rule, stamp=stamp, rows=2, columns=2, height=6.6) as (_, axes):
    for i, (curve, arrays) in enumerate(curves.items()):
      if len(arrays) != len(names):
        raise ValueError(f"{curve!r} has {len(arrays)} arrays; give {', '.join(names)}")
      check_lengths(curve, len(arrays[0]), "weights", dict(zip(names, arrays, strict=True)))
      weights, effective, ap, ap_spread, ap90, ap90_spread = arrays
      look: dict[str, Any] = {"color": COLOURS[i], "marker": MARKERS[i], "capsize": 3, "label": curve}
      for x, (left, right) in zip((weights, effective), (axes[:2], axes[2:]), strict=True):
        left.errorbar(x, ap, ap_spread, **look)
        right.errorbar(x, ap90, ap90_spread, **look)
      rows += [[curve, *cells_of(numbers)] for numbers in np.stack(arrays, axis=1)]
    for i, axis in enumerate(axes):
      below = ("localization weight w_loc", "effective weight (mean over training)")[i // 2]
      axis.set(xlabel=below, ylabel=("AP (%)", "AP90 (%)")[i % 2])
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
  check_lengths("ours", len(names), "names", {"mean": mean, "spread": spread})
  differences = {"ours": mean - mean[0]}
  if paper is not None:
    check_lengths("paper", len(names), "names", {"AP": paper})
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
  rows = [[name, *cells_of(row)] for name, row in zip(names, np.stack(numbers, axis=1), strict=True)]
  write_csv(with_ending(stem, ".csv"), columns, rows, stamp=stamp)
