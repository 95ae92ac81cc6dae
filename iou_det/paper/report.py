"""Compares the rows of a table, each a detector with all its seeds: differences of AP and their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from iou_det.evaluation.bootstrap import Scored, bootstrap_ap, interval, score_detections
from iou_det.evaluation.coco import IOUS
from iou_det.evaluation.results import Results
from iou_det.paper import plots
from iou_det.paper.output import Cell, Output, Plot
from iou_det.training.diagnostics import BINS

SAMPLES = 1000
SMOKE_SAMPLES = 10
AP_AT = [f"AP{round(100 * iou)}" for iou in IOUS]


@dataclass(frozen=True)
class Row:
  """One detector in a table, with all its seeds."""

  label: str
  results: list[Results]  # by seed
  paper: Mapping[str, float] = field(default_factory=dict)  # the paper's figures for it, by name
  baseline: "Row | None" = None  # row that it is compared with
  cells: Mapping[str, Cell] = field(default_factory=dict)  # further ones, by column

  def known(self, figure: str) -> list[float]:
    return [value for r in self.results if (value := r.figure(figure)) is not None]

  def mean(self, figure: str) -> float | None:
    return float(np.mean(known)) if (known := self.known(figure)) else None

  def spread(self, figure: str) -> float | None:
    """Standard deviation over the seeds; None for one seed."""
    return float(np.std(known, ddof=1)) if len(known := self.known(figure)) > 1 else None


class Difference(NamedTuple):
  """AP of one row minus another's, in points, with a 95 % interval."""

  value: float
  low: float
  high: float
  spread: float | None  # standard deviation over the seeds of each seed's difference; None for one seed


class Intervals:
  """Differences of AP between rows with 95 % intervals: a bootstrap over images and seeds, paired by both."""

  def __init__(self, rows: Sequence[Row], *, smoke: bool = False):
    self.rows = rows
    scored = [scored_run(r) for row in rows for r in row.results]
    ap = 100 * bootstrap_ap(scored, samples=SMOKE_SAMPLES if smoke else SAMPLES)
    ends = np.cumsum([len(row.results) for row in rows])[:-1]
    self.ap = dict(zip([row.label for row in rows], np.split(ap, ends), strict=True))  # run, sample, IoU

  def between(self, row: Row, other: Row, figure: str = "AP") -> Difference:
    """AP or AP at one IoU (AP90) of a row minus another row's.

    Each sample of images and seeds gives one difference, the mean over its seeds of `row` minus `other` of
    that seed. It has one seed fewer than there are, drawn with replacement: the mean's variance is not
    underestimated then. Of one seed it is over images alone.
    """
    columns = [i for i, name in enumerate(AP_AT) if figure in ("AP", name)]
    samples = (self.ap[row.label] - self.ap[other.label])[..., columns].mean(axis=2)  # seed, sample
    number, size = samples.shape
    drawn = np.random.default_rng(0).integers(number, size=(max(number - 1, 1), size))
    samples = np.take_along_axis(samples, drawn, axis=0).mean(axis=0)
    ours, others = (
      np.array([[r.figure(AP_AT[i]) for i in columns] for r in results], float)  # None becomes NaN
      for results in (row.results, other.results)
    )
    seeds = np.nanmean(ours - others, axis=1)
    spread = float(seeds.std(ddof=1)) if len(seeds) > 1 else None
    return Difference(float(seeds.mean()), *interval(samples), spread)


def scored_run(results: Results) -> Scored:
  return score_detections(results.truth, results.detections())


def ap_table(
  output: Output, name: str, intervals: Intervals, figures: Sequence[str], *, caption: str, compared: str
) -> str:
  """Our figures; the difference to the baseline, spreads and the paper's number for `compared` (AP, AP90)."""
  extra = list(dict.fromkeys(name for row in intervals.rows for name in row.cells))
  differences = ["difference", "95% low", "95% high", "difference spread"]
  last = ["spread", f"paper {compared}", "paper difference"]
  body: list[list[Cell]] = []
  for row in intervals.rows:
    base, paper = row.baseline, row.paper.get(compared)
    printed = base and base.paper.get(compared)
    cells = [row.label, *(row.cells.get(name) for name in extra), *map(row.mean, figures)]
    cells += intervals.between(row, base, compared) if base else [None] * len(differences)
    body.append([*cells, row.spread(compared), paper, paper - printed if paper and printed else None])
  formats = {name: "+z.1f" for name in (*differences[:3], "paper difference")}
  formats |= {name: ".2f" for name in ("difference spread", "spread", *extra)}
  formats |= {name: ".3f" for name in extra if name == "Spearman" or name.endswith(" gradient")}
  if "effective weight" in extra:
    caption += (
      " w_loc: the weight of the localization loss. Effective weight: that loss over smooth L1 with weights "
      "of 1, averaged over training."
    )
  caption += (
    " Difference: to the baseline, with a 95% bootstrap over images and seeds, paired by both. Spreads: "
    "standard deviations over seeds, of the difference paired by seed and of the run's own figure."
  )
  columns = ["run", *extra, *figures, *differences, *last]
  return output.table(name, columns, body, caption=caption, formats=formats)


def contrast_table(
  output: Output, name: str, intervals: Intervals, pairs: Sequence[tuple[Row, Row]], *, caption: str
) -> str:
  """AP, AP75 and AP90 of one row minus another, with intervals and the difference's spread over seeds."""
  figures = ("AP", "AP75", "AP90")
  columns = [f"{figure}{part}" for figure in figures for part in ("", " low", " high", " spread")]
  between = lambda a, b: [cell for figure in figures for cell in intervals.between(a, b, figure)]
  body = [[a.label, b.label, *between(a, b)] for a, b in pairs]
  formats = {name: ".2f" if name.endswith("spread") else "+z.1f" for name in columns}
  caption += (
    " Low, high: 95% bootstrap over images and seeds, paired by both. Spread: standard deviation over seeds "
    "of the difference of each seed."
  )
  return output.table(name, ["run", "minus", *columns], body, caption=caption, formats=formats)


def ap_differences(output: Output, intervals: Intervals) -> None:
  """Plots the AP of all rows at each IoU minus the first row's, with intervals."""
  base, *others = intervals.rows
  at_each = lambda row: np.array([intervals.between(row, base, name)[:3] for name in AP_AT]).T
  shown = {row.label: at_each(row) for row in others}
  caption = f"{output.source}; 95% intervals of a bootstrap over images and seeds, paired by both."
  plot = Plot(output, "ap_differences", "AP at each IoU against the baseline", caption)
  plots.ap_differences(plot, np.array(IOUS), shown, baseline=base.label)


def ap_bars(output: Output, name: str, rows: Sequence[Row], title: str) -> None:
  """Plots the AP of all rows, and what each adds to the first."""
  ap = np.array([(r.mean("AP"), r.spread("AP"), r.paper.get("AP")) for r in rows], float).T  # NaN for None
  plot = Plot(output, name, title, with_spread(output.source, len(rows[0].results)))
  plots.ap_bars(plot, [row.label for row in rows], ap)


def with_spread(source: str, seeds: int) -> str:
  """A caption that says what the bars are, where there are any."""
  return f"{source}; bars: standard deviation over seeds." if seeds > 1 else f"{source}."


def diagnostics(output: Output, name: str, row: Row) -> None:
  """Plots over the training of the first seed: localization gradient and positives by IoU."""
  log = [entry for entry in row.results[0].rows if "positive_share/0.0" in entry]
  logged = lambda share: np.array([[row[f"{share}/{i / BINS:.1f}"] for i in range(BINS)] for row in log])
  shares = {
    "localization gradient": logged("localization_gradient_share"),
    "positives": logged("positive_share"),
  }
  caption = (
    f"Positives by the IoU of their predicted box, single training batches, first seed. {output.source}"
  )
  plot = Plot(output, name, f"Where the localization gradient comes from: {row.label}", caption)
  steps = np.array([entry["step"] for entry in log])
  plots.diagnostics(plot, steps, np.linspace(0, 1, BINS + 1), shares)
