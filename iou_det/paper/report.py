"""Writes tables and figures from finished runs: Markdown, CSV, PNG, SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iou_det.data import open_dataset
from iou_det.detector import ground_truth
from iou_det.evaluation.bootstrap import Scored, bootstrap_ap, interval, score_detections
from iou_det.evaluation.coco import IOUS
from iou_det.paper import ap_plots
from iou_det.paper.results import Results
from iou_det.paper.tables import Cell, write_table

SAMPLES = 1000
SMOKE_SAMPLES = 10
SMOKE = "smoke, not a result"


@dataclass(frozen=True)
class Row:
  """One detector in a table, with all its seeds.

  Attributes:
    label: first cell.
    results: by seed.
    paper: the paper's figures for it, by name.
    baseline: label of the row that it is compared with; "" for a baseline.
    cells: further cells, by column.
  """

  label: str
  results: list[Results]
  paper: dict[str, float] = field(default_factory=dict)
  baseline: str = ""
  cells: Mapping[str, Cell] = field(default_factory=dict)

  def mean(self, figure: str) -> float | None:
    values = [r.figure(figure) for r in self.results]
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None

  def spread(self, figure: str) -> float | None:
    """Standard deviation over the seeds; None for one seed."""
    values = [r.figure(figure) for r in self.results]
    known = [v for v in values if v is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


class Difference(NamedTuple):
  """AP of one row minus another's, in points.

  Attributes:
    low, high: 95 % interval of a bootstrap over images, paired by image and seed.
    spread: standard deviation over the seeds of the difference of each seed; None for one seed.
  """

  value: float
  low: float
  high: float
  spread: float | None


class Intervals:
  """Differences of AP to a baseline with 95 % intervals, by a bootstrap over images paired by seed."""

  def __init__(self, rows: Sequence[Row], stamp: str = ""):
    scored = [scored_run(r) for row in rows for r in row.results]
    # runs x samples x IoUs
    ap = 100 * bootstrap_ap(scored, samples=SMOKE_SAMPLES if stamp == SMOKE else SAMPLES)
    ends = np.cumsum([len(row.results) for row in rows])[:-1]
    self.ap = dict(zip([row.label for row in rows], np.split(ap, ends), strict=True))

  def between(self, row: Row, other: Row, ious: Sequence[float] = IOUS) -> Difference:
    """AP (mean over `ious`) of a row minus another row's.

    Each sample of images gives one difference, the mean over seeds of `row` minus `other` of that seed.
    """
    columns = [IOUS.index(iou) for iou in ious]
    samples = (self.ap[row.label] - self.ap[other.label])[..., columns].mean(axis=(0, 2))
    names = [f"AP{round(100 * iou)}" for iou in ious]
    of_seed = lambda results: np.array([[r.figure(n) for n in names] for r in results], float)  # None: NaN
    seeds = np.nanmean(of_seed(row.results) - of_seed(other.results), axis=1)
    spread = float(seeds.std(ddof=1)) if len(seeds) > 1 else None
    return Difference(float(seeds.mean()), *interval(samples), spread)


def scored_run(results: Results) -> Scored:
  d = results.config.data
  truth = ground_truth(open_dataset(d.path, d.val_split), d.val_annotations)
  return score_detections(truth, results.detections())


def ap_table(
  rows: Sequence[Row],
  intervals: Intervals,
  figures: Sequence[str],
  stem: Path,
  *,
  caption: str,
  command: str,
  stamp: str,
  ious: Sequence[float] = IOUS,
  paper: str = "AP",
) -> str:
  """Our figures, the difference of AP to the baseline with interval and spread, the paper's AP.

  Args:
    ious: difference, interval and its spread are those of AP at these IoUs.
    paper: figure that the spread and the paper's columns show.
  """
  extra = list(dict.fromkeys(name for row in rows for name in row.cells))
  columns = [
    "run",
    *extra,
    *figures,
    "difference",
    "95% low",
    "95% high",
    "difference spread",
    "spread",
    f"paper {paper}",
    "paper difference",
  ]
  by_label = {row.label: row for row in rows}
  body: list[list[Cell]] = []
  for row in rows:
    compared: tuple[Cell, ...] = (None,) * 4
    paper_difference = None
    if row.baseline:
      compared = intervals.between(row, by_label[row.baseline], ious)
      base = by_label[row.baseline].paper.get(paper)
      if base is not None and paper in row.paper:
        paper_difference = row.paper[paper] - base
    body.append(
      [
        row.label,
        *(row.cells.get(name) for name in extra),
        *(row.mean(f) for f in figures),
        *compared,
        row.spread(paper),
        row.paper.get(paper),
        paper_difference,
      ]
    )
  formats = {name: "+z.1f" for name in ("difference", "95% low", "95% high", "paper difference")}
  formats |= {name: ".2f" for name in ("difference spread", "spread", *extra)}
  caption += (
    " Difference: to the baseline, with a 95% bootstrap over images, paired by image and seed, without "
    "the seeds' spread. Spreads: standard deviations over seeds, of the difference paired by seed and of the "
    "run's own figure."
  )
  return write_table(stem, columns, body, caption=caption, command=command, formats=formats, stamp=stamp)


def contrast_table(
  pairs: Sequence[tuple[Row, Row]],
  intervals: Intervals,
  stem: Path,
  *,
  caption: str,
  command: str,
  stamp: str,
) -> str:
  """AP and AP90 of one row minus another, with intervals and the spread of the difference over seeds."""
  parts = ("", " low", " high", " spread")
  columns = ["run", "minus", *(f"{figure}{part}" for figure in ("AP", "AP90") for part in parts)]
  body: list[list[Cell]] = [
    [a.label, b.label, *intervals.between(a, b), *intervals.between(a, b, (0.9,))] for a, b in pairs
  ]
  formats = {name: ".2f" if name.endswith("spread") else "+z.1f" for name in columns[2:]}
  caption += (
    " Low, high: 95% bootstrap over images, paired by image and seed. Spread: standard deviation over seeds "
    "of the difference of each seed."
  )
  return write_table(stem, columns, body, caption=caption, command=command, formats=formats, stamp=stamp)


def bars(rows: Sequence[Row], stem: Path, *, title: str, rule: str, stamp: str) -> None:
  missing = lambda v: np.nan if v is None else v
  means = np.array([missing(row.mean("AP")) for row in rows])
  spreads = np.array([missing(row.spread("AP")) for row in rows])
  paper = np.array([row.paper.get("AP", np.nan) for row in rows])
  known = None if np.isnan(paper[0]) else paper
  rule = with_spread(rule, seeds=len(rows[0].results))
  ap_plots.ap_bars(
    [row.label for row in rows], (means, spreads), known, stem, title=title, rule=rule, stamp=stamp
  )


def with_spread(rule: str, *, seeds: int) -> str:
  """A caption that says what the bars are, where there are any."""
  return f"{rule}; bars: standard deviation over seeds." if seeds > 1 else f"{rule}."
