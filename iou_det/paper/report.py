"""Writes tables and figures from finished runs: Markdown, CSV, PNG, SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from iou_det.data.records import open_dataset
from iou_det.evaluation.bootstrap import Scored, bootstrap_ap, interval, score_detections
from iou_det.evaluation.coco import IOUS
from iou_det.evaluation.evaluate import ground_truth
from iou_det.paper import plots
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


class Intervals:
  """Differences of AP to a baseline with 95 % intervals, by a bootstrap over images paired by seed."""

  def __init__(self, rows: Sequence[Row], stamp: str = ""):
    self.rows = {row.label: row for row in rows}
    scored = [scored_run(r) for row in rows for r in row.results]
    # runs x samples x IoUs
    ap = 100 * bootstrap_ap(scored, samples=SMOKE_SAMPLES if stamp == SMOKE else SAMPLES)
    ends = np.cumsum([len(row.results) for row in rows])[:-1]
    self.ap = dict(zip(self.rows, np.split(ap, ends), strict=True))

  def at(self, row: Row, ious: Sequence[float] = IOUS) -> tuple[float, float, float]:
    """Difference of AP (mean over `ious`, points) to the row's baseline; its interval's two ends.

    Each sample of images gives one difference, the mean over seeds of run minus baseline of that seed.
    """
    columns = [IOUS.index(iou) for iou in ious]
    differences = (self.ap[row.label] - self.ap[row.baseline])[..., columns].mean(axis=(0, 2))
    names = [f"AP{round(100 * iou)}" for iou in ious]
    ours, base = ([r.mean(n) for n in names] for r in (row, self.rows[row.baseline]))
    value = float(
      np.mean([a - b for a, b in zip(ours, base, strict=True) if a is not None and b is not None])
    )
    return value, *interval(differences)


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
  """Our figures, the difference of AP to the baseline with its interval, the seeds' spread, the paper's AP.

  Args:
    ious: the difference and interval are those of AP at these IoUs.
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
    "spread",
    f"paper {paper}",
    "paper difference",
  ]
  by_label = {row.label: row for row in rows}
  body: list[list[Cell]] = []
  for row in rows:
    compared: tuple[Cell, ...] = (None, None, None)
    paper_difference = None
    if row.baseline:
      compared = intervals.at(row, ious)
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
  formats = {name: "+.1f" for name in ("difference", "95% low", "95% high", "paper difference")}
  formats |= {"spread": ".2f"} | {name: ".2f" for name in extra}
  caption += (
    " Difference: to the baseline, with a 95% bootstrap over images, paired by image and seed, without "
    "the seeds' spread. Spread: standard deviation over seeds of the run's own figure."
  )
  return write_table(stem, columns, body, caption=caption, command=command, formats=formats, stamp=stamp)


def bars(rows: Sequence[Row], stem: Path, *, title: str, rule: str, stamp: str) -> None:
  missing = lambda v: np.nan if v is None else v
  means = np.array([missing(row.mean("AP")) for row in rows])
  spreads = np.array([missing(row.spread("AP")) for row in rows])
  paper = np.array([row.paper.get("AP", np.nan) for row in rows])
  known = None if np.isnan(paper[0]) else paper
  plots.ap_bars(
    [row.label for row in rows], (means, spreads), known, stem, title=title, rule=rule, stamp=stamp
  )
