"""The tables and figures as data, with what arXiv:1908.05641 printed, and their making from finished runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from iou_det.errors import UserError
from iou_det.evaluation.overlap import LOCATED, best_ious, rank_correlation
from iou_det.evaluation.results import Results
from iou_det.paper import plots, report, results
from iou_det.paper.figures import figure1, figure2, figure3
from iou_det.paper.output import Cell, Output, Plot
from iou_det.paper.report import Intervals, Row
from iou_det.paper.results import NO_THRESHOLD
from iou_det.paper.runs import SWEEP, Reproduction, Run, run_config
from iou_det.processes import by_process_0
from iou_det.storage import AnyPath, local_path

SIZES = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # columns, named as in our metrics.json
FIVE_IOUS = ("AP50", "AP60", "AP70", "AP80", "AP90")


class Line(NamedTuple):
  """A line of a table, a run in a figure or a point of a curve."""

  run: str  # of `iou_det.paper.runs.RUNS`
  label: str  # with {depth} of the backbone
  paper: tuple[float, ...] = ()  # printed in the table's first columns: AP on COCO, percent
  large: bool = False  # the run with the larger backbone
  published: str = ""  # what others report on COCO, with source


@dataclass(frozen=True)
class Table:
  """A table of AP; the first line of each backbone is the baseline of the others."""

  lines: tuple[Line, ...]
  figures: tuple[str, ...]  # columns
  caption: str  # with {source} of the numbers
  compared: str = "AP"  # figure of differences, spreads and the paper's columns
  weights: bool = True  # columns w_loc and effective weight
  details: bool = False  # columns w_cls, gradients, Spearman and published
  bars: str = ""  # title of the table as a plot; "": none
  differences: bool = False  # a plot of the differences of AP at each IoU
  contrasts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # runs, each minus others


BASELINE = Line("baseline", "RetinaNet", (34.4, 53.9, 36.6, 17.2, 38.2, 48.0))
CLS = Line("cls", "+ cls (eta 1.5)", (35.1, 54.6, 37.5, 18.4, 38.5, 47.8))
LOC = Line("loc", "+ loc (lambda 1.5)", (35.2, 53.7, 37.6, 17.9, 39.3, 48.5))
BOTH = Line("both", "+ both", (35.7, 54.3, 38.0, 17.7, 39.4, 48.8))
# Controls of Table 2: does a run beat the one that differs in nothing but the weights' shape?
CONTROLS = (
  Line("baseline_effective", "RetinaNet, localization x mean effective weight"),
  Line("baseline_w_loc", "RetinaNet, localization x w_loc"),
  Line("loc_eq5", "+ loc by Eq. (5)"),
  Line("both_eq5", "+ both by Eq. (5)"),
)
CONTRASTS: dict[str, tuple[str, ...]] = {
  "loc": ("baseline_effective", "baseline_w_loc"),
  "loc_eq5": ("baseline",),
  "both_eq5": ("cls",),
  "both": ("cls", "loc"),
}
TABLES = {
  "table1": Table(
    (
      Line("baseline", "RetinaNet R{depth}", (35.9, 55.8, 38.4, 19.9, 38.8, 45.0)),
      Line("both", "IoU-balanced R{depth}", (37.0, 56.2, 39.7, 20.6, 39.8, 46.3)),
      Line("baseline", "RetinaNet R{depth}", (38.1, 58.5, 40.8, 21.2, 41.5, 48.2), large=True),
      Line("both", "IoU-balanced R{depth}", (39.2, 58.7, 42.3, 21.5, 42.4, 49.4), large=True),
    ),
    SIZES,
    "Table 1. {source}. Paper: COCO test-dev, R50 and R101.",  # at [800,1333]
    weights=False,
    bars="Table 1",
  ),
  "table2": Table(
    (BASELINE, CLS, LOC, BOTH, *CONTROLS),
    (*SIZES, "AP90"),
    "Table 2. {source}. Paper: COCO val-2017, R50.",  # at [600,1000], as Tables 3 and 4
    bars="Table 2",
    differences=True,
    contrasts=CONTRASTS,
  ),
  "table3": Table(
    (
      BASELINE._replace(paper=(53.9, 49.2, 41.9, 30.0, 11.2)),
      CLS._replace(paper=(54.6, 50.2, 42.7, 31.0, 11.4)),
      LOC._replace(paper=(53.7, 49.3, 42.3, 31.8, 13.1)),
      BOTH._replace(paper=(54.3, 50.0, 43.0, 32.1, 13.5)),
    ),
    FIVE_IOUS,
    "Table 3. {source}. Differences, intervals and the paper's column: AP90. "
    "Every IoU: ap_differences.csv. Paper: COCO val-2017, R50.",
    compared="AP90",
    differences=True,
  ),
  "table4": Table(  # one exponent at a time, the other part of the loss as in the baseline
    (
      Line("baseline", "eta 0.0", (34.4,)),
      Line("eta1.0", "eta 1.0", (34.7,)),
      Line("eta1.4", "eta 1.4", (35.0,)),
      Line("cls", "eta 1.5", (35.1,)),
      Line("eta1.6", "eta 1.6", (34.9,)),
      Line("lambd0.5", "lambda 0.5", (35.0,)),
      Line("lambd1.0", "lambda 1.0", (35.1,)),
      Line("loc", "lambda 1.5", (35.2,)),
      Line("lambd1.8", "lambda 1.8", (35.1,)),
      Line("loc_eq5", "lambda 1.5, Eq. (5)"),  # no number, "inferior"
    ),
    ("AP", "AP50", "AP75", "AP90"),
    "Table 4. {source}. The row eta 0.0 is lambda 0 too. Paper: COCO val-2017, R50.",
    bars="Table 4",
  ),
  "comparison": Table(
    (
      BASELINE._replace(paper=(34.4, 36.6, 11.2)),
      CLS._replace(paper=(35.1, 37.5, 11.4)),
      Line("isr", "ISR", published="with CARL 35.6 -> 36.9 (mmdetection, configs/pisa)"),
      Line("quality_focal", "quality focal"),
      Line("quality_focal_scaled", "quality focal, scaled"),
      Line("varifocal", "varifocal", published="36.5 -> 37.4, 4 images a GPU (its authors' repository)"),
      Line("varifocal_scaled", "varifocal, scaled"),
      Line("varifocal_unweighted", "varifocal without q"),
      Line("varifocal_unweighted_scaled", "varifocal without q, scaled"),
      Line("iou_branch", "IoU branch", published="+1.7 to +1.9 on test-dev (arXiv:1912.05992)"),
      Line("iou_branch_attached", "IoU branch, gradient to its target"),
      Line("concordance", "concordance"),
      CONTROLS[0],
      LOC._replace(paper=(35.2, 37.6, 13.1)),
      Line(
        "balanced_l1",
        "balanced L1, its authors' weight",
        published="with a balanced FPN 35.6 -> 37.7 (mmdetection 1.x, configs/libra_rcnn)",
      ),
      Line("balanced_l1_effective", "balanced L1, effective weight of loc"),
      Line("bounded_iou", "bounded IoU, fitted weight"),
      Line("bounded_iou_effective", "bounded IoU, effective weight of loc"),
      Line("giou", "GIoU, fitted weight"),
      Line("giou_effective", "GIoU, effective weight of loc"),
    ),
    ("AP", "AP75", "AP90"),
    "Ways of tying scores to IoU, then box losses. {source}; scores above {threshold} count. Smooth L1 and "
    "focal loss where nothing else is said. Scaled: with the w_cls that gives the gradient norm which the "
    "focal loss had over its training. Spearman: of score and IoU, detections with an IoU of 0.5 or more, "
    "mean over seeds. Gradients of the classification and the localization loss (not of an IoU branch or "
    "concordance): mean norms, of backbone and FPN, one batch in 100 steps. Published: AP on COCO val-2017 "
    "with R50 unless they say otherwise, in other code. Paper: COCO val-2017, R50.",
    bars="Methods compared",
    details=True,
    contrasts={
      name: ("baseline_effective",)
      for name in ("loc", "balanced_l1_effective", "bounded_iou_effective", "giou_effective")
    },
  ),
}
WITHOUT, WITH = "without IoU balancing (lambda 0)", "with IoU balancing (lambda 1.5)"
EXPERIMENTS: dict[str, tuple[Line, ...]] = {
  **{name: TABLES[name].lines for name in ("table1", "table2", "table3", "table4")},
  "fig1": (),
  "fig2": (BASELINE, CLS),
  "fig3": (BASELINE, LOC),
  "comparison": TABLES["comparison"].lines,
  "wloc_sweep": (
    *(Line("baseline" if w == 1.0 else f"weight{w}", WITHOUT) for w in SWEEP),
    *(Line(f"loc_weight{w}", WITH) for w in SWEEP),
  ),
}


def detect_more(experiment: str, reproduction: Reproduction, runs: Sequence[Run]) -> str:
  """What an experiment needs of its trained runs beside their scores; all processes together.

  Returns what to print of it.
  """
  text = ""
  for run in runs:
    workdir = reproduction.folder(run)
    if experiment == "comparison":
      results.score_without_threshold(workdir)
    if experiment == "fig2":
      results.find_candidates(workdir)
    if experiment == "table1" and reproduction.preset == "coco":
      depth = run_config(run, reproduction.preset).model.depth
      method = f"iou-det-{run.name}-r{depth}-seed{run.seed}"
      try:
        zipped = results.test_dev(
          workdir, local_path(reproduction.data, "--data"), method, folder_of(experiment, reproduction)
        )
        text += f"\nfor the evaluation server: {zipped}"
      except results.NoTestDev as error:  # the table stands without them
        text += f"\nno results for the evaluation server: {error}"
  return text


def folder_of(experiment: str, reproduction: Reproduction) -> AnyPath:
  return reproduction.workdir / reproduction.name / experiment


def write(experiment: str, reproduction: Reproduction, runs: Sequence[Run], command: str) -> str:
  """Writes W/PRESET/EXPERIMENT/ and returns what to print: tables as Markdown, and where the files are."""
  folder = folder_of(experiment, reproduction)
  if experiment == "fig1":
    figure1(Output(folder, "", command, reproduction.smoke))
    return f"wrote {folder}"
  groups: dict[tuple[str, bool], list[Results]] = {}
  for run in runs:
    groups.setdefault((run.name, run.large), []).append(Results.read(reproduction.folder(run)))
  first, seeds = groups["baseline", False][0], len(groups["baseline", False])
  source = (
    f"{reproduction.preset}, split {first.config.data.val_split} ({first.metrics['images']} images), "
    f"{first.config.train.epochs} epochs, {seeds} seed{'s' if seeds > 1 else ''}"
  )
  output = Output(folder, source, command, reproduction.smoke)
  rows = make_rows(experiment, groups)
  if experiment in TABLES:
    text = write_table(experiment, rows, output)
    if experiment == "comparison":  # thresholds cut losses differently: their scores have other scales
      text += "\n" + write_table(
        experiment, make_rows(experiment, groups, NO_THRESHOLD), output, NO_THRESHOLD
      )
  else:
    text = {"fig2": figure2, "fig3": figure3, "wloc_sweep": wloc_sweep}[experiment](rows, output)
  return f"{text}\nwrote {folder}"


def figures_of(experiment: str, workdirs: Sequence[AnyPath], folder: AnyPath, command: str) -> str:
  """Figure 2 or 3 of any scored workdirs; the first is the baseline. All processes together."""
  if len(workdirs) > len(plots.COLOURS):
    raise UserError(f"--workdirs names {len(workdirs)} workdirs; a figure shows {len(plots.COLOURS)} at most")
  by_process_0(lambda: len(scored_rows(workdirs)))  # refuses what is wrong with them before any work
  if experiment == "fig2":
    for workdir in workdirs:
      results.find_candidates(workdir)

  def draw() -> str:
    rows = scored_rows(workdirs)
    first = rows[0].results[0]
    output = Output(
      folder, f"Split {first.config.data.val_split} ({first.metrics['images']} images)", command
    )
    return f"{(figure2 if experiment == 'fig2' else figure3)(rows, output)}\nwrote {folder}"

  return by_process_0(draw)


def scored_rows(workdirs: Sequence[AnyPath]) -> list[Row]:
  rows: list[Row] = []
  for workdir in workdirs:
    if str(workdir) in [row.label for row in rows]:
      raise UserError(f"--workdirs names {workdir} twice")
    try:
      rows.append(Row(str(workdir), [Results.read(workdir)], baseline=rows[0] if rows else None))
    except FileNotFoundError as error:
      raise UserError(f"{workdir} was not scored ({error.filename} is missing); run iou-det eval") from None
  return rows


def make_rows(
  experiment: str, groups: Mapping[tuple[str, bool], list[Results]], variant: str = ""
) -> list[Row]:
  """Rows of the lines whose runs, by name and size, are there; `variant`: see `Results.read`."""
  table = TABLES.get(experiment)
  rows: list[Row] = []
  baselines: dict[bool, Row] = {}
  for run, label, paper, large, published in EXPERIMENTS[experiment]:
    found = groups.get((run, large), [])
    if not found:  # a control that was not asked for
      continue
    if variant:
      found = [Results.read(r.workdir, variant) for r in found]
    cells: dict[str, Cell] = {}
    if table is None or table.weights:  # means over seeds: as trained, and over training
      cells["w_loc"] = float(np.mean([r.w_loc for r in found]))
      weights = [r.effective_weight for r in found]
      known = [weight for weight in weights if weight is not None]
      cells["effective weight"] = float(np.mean(known)) if len(known) == len(found) else None
    if table is not None and table.details:
      cells |= details(found) | {"published": published or None}
    label = label.format(depth=found[0].config.model.depth)
    printed = dict(zip(table.figures, paper, strict=False)) if table else {}
    rows.append(Row(label, found, printed, baselines.get(large), cells))
    baselines.setdefault(large, rows[-1])
  return rows


def details(found: Sequence[Results]) -> dict[str, Cell]:
  """Means over seeds of what the losses do beside AP; None where a seed has no such number."""
  of_seeds: dict[str, list[float | None]] = {
    "w_cls": [r.w_cls for r in found],
    "cls gradient": [r.classification_gradient for r in found],
    "loc gradient": [r.localization_gradient for r in found],
    "Spearman": [rank_correlation(best_ious(r.truth, r.detections()), min_iou=LOCATED) for r in found],
  }
  return {name: None if None in x else float(np.mean(np.array(x, float))) for name, x in of_seeds.items()}


def write_table(experiment: str, rows: Sequence[Row], output: Output, variant: str = "") -> str:
  table = TABLES[experiment]
  name = "_".join(filter(None, (experiment, variant)))
  intervals = Intervals(rows, smoke=output.smoke)
  threshold = 0 if variant else rows[0].results[0].config.eval.score_threshold
  caption = table.caption.format(source=output.source, threshold=threshold)
  text = report.ap_table(output, name, intervals, table.figures, caption=caption, compared=table.compared)
  if table.differences:
    report.ap_differences(output, intervals)
  if table.bars:
    baselines = [row for row in rows if row.baseline is None]
    for base in baselines:
      shown = [row for row in rows if row is base or row.baseline is base]
      depth = base.results[0].config.model.depth
      size, title = ("", "") if len(baselines) == 1 else (f"_r{depth}", f", R{depth}")
      title += ", scores above 0" if variant else ""
      report.ap_bars(output, f"{name}{size}_bars", shown, table.bars + title)
  row_of = {line.run: row for line in table.lines for row in rows if row.label == line.label}
  if experiment == "table2":
    for run in ("baseline", "loc"):
      report.diagnostics(output, f"diagnostics_{run}", row_of[run])
  contrasts = [(a, b) for a, others in table.contrasts.items() for b in others if {a, b} <= row_of.keys()]
  if contrasts:
    pairs = [(row_of[a], row_of[b]) for a, b in contrasts]
    caption = f"Differences between rows of {name}. {output.source}."
    file = "_".join(filter(None, ("contrasts", variant)))
    text += "\n" + report.contrast_table(output, file, intervals, pairs, caption=caption)
  return text


def wloc_sweep(rows: Sequence[Row], output: Output) -> str:
  """AP and AP90 against the localization weight, and against the mean effective weight; AP50 in the table."""
  body: list[list[Cell]] = []
  for row in rows:
    ap = [figure for name in ("AP", "AP90") for figure in (row.mean(name), row.spread(name))]
    body.append([row.label, *row.cells.values(), *ap, row.mean("AP50")])
  curve = lambda label: np.array([line[1:-1] for line in body if line[0] == label], float).T  # NaN for None
  curves = {label: curve(label) for label in (WITHOUT, WITH)}
  caption = report.with_spread(output.source, len(rows[0].results))
  plots.sweep(Plot(output, "wloc_sweep", "AP against the localization weight", caption), curves)
  return output.table(
    "wloc_sweep_table",
    ["run", "w_loc", "effective weight", "AP", "AP spread", "AP90", "AP90 spread", "AP50"],
    body,
    caption=f"AP against the localization weight. {output.source}. The effective weight is the localization "
    "loss over what it is with weights of 1, averaged over training.",
    formats={"w_loc": ".1f", "effective weight": ".2f", "AP spread": ".2f", "AP90 spread": ".2f"},
  )
