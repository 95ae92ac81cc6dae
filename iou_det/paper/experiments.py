"""What each experiment writes, from its finished runs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iou_det.errors import UserError
from iou_det.evaluation.coco import IOUS
from iou_det.paper import ap_plots, detections, figure1, figures, numbers, plots
from iou_det.paper.report import SMOKE, Intervals, Row, ap_table, bars, contrast_table, with_spread
from iou_det.paper.results import Results
from iou_det.paper.runs import CONTROLS, SWEEP, TABLE2, TABLE4, Place, Run
from iou_det.paper.tables import Cell, write_table
from iou_det.training.diagnostics import BINS

LABELS = {
  "baseline": "RetinaNet",
  "cls": "+ cls (eta 1.5)",
  "loc": "+ loc (lambda 1.5)",
  "both": "+ both",
  "baseline_effective": "RetinaNet, localization x mean effective weight",
  "baseline_w_loc": "RetinaNet, localization x w_loc",
  "loc_eq5": "+ loc by Eq. (5)",
  "both_eq5": "+ both by Eq. (5)",
  "balanced_l1": "balanced L1 (Libra R-CNN)",
  "ghm_r": "GHM-R",
  "bounded_iou": "bounded IoU loss",
  "isr": "ISR (PISA)",
}
# What Table 2's controls are for: does a run beat the one that differs in nothing but the weights' shape?
CONTRASTS = (
  ("loc", "baseline_effective"), ("loc", "baseline_w_loc"), ("loc_eq5", "baseline"), ("both_eq5", "cls"),
  ("both", "cls"), ("both", "loc"),
)  # fmt: skip
TABLE4_KEYS = {
  "baseline": ("eta", 0.0), "eta1.0": ("eta", 1.0), "eta1.4": ("eta", 1.4), "cls": ("eta", 1.5),
  "eta1.6": ("eta", 1.6), "lambd0.5": ("lambd", 0.5), "lambd1.0": ("lambd", 1.0), "loc": ("lambd", 1.5),
  "lambd1.8": ("lambd", 1.8),
}  # fmt: skip


def write(experiment: str, place: Place, runs: Sequence[Run], command: str) -> str:
  """Writes W/PRESET/EXPERIMENT/ and returns what to print: tables as Markdown, and where the files are."""
  out = place.workdir / place.name / experiment
  stamp = SMOKE if place.smoke else ""
  if experiment == "fig1":
    figure1.write(out, stamp=stamp)
    return f"wrote {out}"
  groups: dict[tuple[str, bool], list[Results]] = {}
  for run in runs:
    groups.setdefault((run.name, run.large), []).append(Results.read(place.of(run)))
  first = groups["baseline", False][0]
  rule = describe(place, first, seeds=len(groups["baseline", False]))
  writer = {
    "table1": table1, "table2": table2, "table3": table3, "table4": table4, "comparison": comparison,
    "wloc_sweep": wloc_sweep, "fig2": fig2, "fig3": fig3,
  }[experiment]  # fmt: skip
  text = writer(groups, out, rule=rule, command=command, stamp=stamp)
  if experiment == "table1" and place.preset == "coco":
    for (name, _), results in groups.items():
      for r in results:
        method = f"iou-det-{name}-r{r.config.model.depth}-seed{r.config.seed}"
        try:
          text += f"\nfor the evaluation server: {detections.test_dev(r, Path(place.data), method, out)}"
        except UserError as error:  # the table above stands without them
          text += f"\nno results for the evaluation server: {error}"
  return f"{text}\nwrote {out}"


def figures_of(experiment: str, workdirs: Sequence[Path], out: Path, command: str) -> str:
  """Figure 2 or 3 of any scored workdirs; the first is the baseline.

  Raises:
    UserError: a workdir that is no training run or was not scored; two of one name.
  """
  runs: dict[str, list[Results]] = {}
  for workdir in workdirs:
    if str(workdir) in runs:
      raise UserError(f"--workdirs names {workdir} twice")
    try:
      runs[str(workdir)] = [Results.read(workdir)]
    except FileNotFoundError as error:
      raise UserError(f"{workdir} was not scored ({error.filename} is missing); run iou-det eval") from None
  first = runs[str(workdirs[0])][0]
  rule = f"Split {first.config.data.val_split} ({first.metrics['images']} images)"
  draw = figures.figure2 if experiment == "fig2" else figure3
  return f"{draw(runs, out, rule=rule, command=command, stamp='')}\nwrote {out}"


def describe(place: Place, results: Results, seeds: int) -> str:
  """Where the figures come from, in a sentence for captions."""
  d, t = results.config.data, results.config.train
  return (
    f"{place.preset}, split {d.val_split} ({results.metrics['images']} images), {t.epochs} epochs, "
    f"{seeds} seed{'s' if seeds > 1 else ''}"
  )


Groups = dict[tuple[str, bool], list[Results]]


def table1(groups: Groups, out: Path, *, rule: str, command: str, stamp: str) -> str:
  rows = []
  for large in (False, True):
    depth = groups["baseline", large][0].config.model.depth
    paper = "r101" if large else "r50"
    base = f"RetinaNet R{depth}"
    rows.append(Row(base, groups["baseline", large], numbers.TABLE1[f"{paper}_baseline"]))
    rows.append(
      Row(f"IoU-balanced R{depth}", groups["both", large], numbers.TABLE1[f"{paper}_both"], baseline=base)
    )
  for half in (rows[:2], rows[2:]):
    depth = half[0].results[0].config.model.depth
    bars(half, out / f"table1_r{depth}_bars", title=f"Table 1, R{depth}", rule=rule, stamp=stamp)
  return ap_table(
    rows,
    Intervals(rows, stamp),
    numbers.SIZES,
    out / "table1",
    caption=f"Table 1. {rule}. Paper: COCO test-dev, R50 and R101.",
    command=command,
    stamp=stamp,
  )


def compared(groups: Groups, names: Sequence[str], paper: dict[str, dict[str, float]]) -> list[Row]:
  """A row for each name; all but the first are compared with the baseline."""
  return [
    Row(
      LABELS[name], groups[name, False], paper.get(name, {}),
      baseline="" if name == "baseline" else LABELS["baseline"], cells=weights(groups[name, False]),
    )
    for name in names
  ]  # fmt: skip


def weights(results: list[Results]) -> dict[str, float]:
  """Columns of a row: w_loc as trained, and the effective weight over training (means over seeds)."""
  return {
    "w_loc": float(np.mean([r.w_loc for r in results])),
    "effective weight": float(np.mean([r.effective_weight for r in results])),
  }


def table2(groups: Groups, out: Path, *, rule: str, command: str, stamp: str) -> str:
  names = [n for n in (*TABLE2, *CONTROLS) if (n, False) in groups]
  rows = compared(groups, names, numbers.TABLE2)
  intervals = Intervals(rows, stamp)
  text = ap_table(
    rows,
    intervals,
    (*numbers.SIZES, "AP90"),
    out / "table2",
    caption=f"Table 2. {rule}. Paper: COCO val-2017, R50.",
    command=command,
    stamp=stamp,
  )
  bars(rows, out / "table2_bars", title="Table 2", rule=rule, stamp=stamp)
  for name in ("baseline", "loc"):
    diagnostics(groups[name, False][0], out / f"diagnostics_{name}", LABELS[name], rule, stamp)
  differences(rows, intervals, out / "ap_differences", rule, stamp)
  row_of = {name: row for name, row in zip(names, rows, strict=True)}
  pairs = [(row_of[a], row_of[b]) for a, b in CONTRASTS if a in row_of and b in row_of]
  contrasts = contrast_table(
    pairs,
    intervals,
    out / "contrasts",
    caption=f"Differences between the rows of Table 2. {rule}.",
    command=command,
    stamp=stamp,
  )
  return f"{text}\n{contrasts}"


def table3(groups: Groups, out: Path, *, rule: str, command: str, stamp: str) -> str:
  rows = compared(groups, TABLE2, numbers.TABLE3)
  intervals = Intervals(rows, stamp)
  differences(rows, intervals, out / "ap_differences", rule, stamp)
  return ap_table(
    rows,
    intervals,
    numbers.IOUS,
    out / "table3",
    paper="AP90",
    ious=(0.9,),
    command=command,
    stamp=stamp,
    caption=f"Table 3. {rule}. Differences, intervals and the paper's column: AP90. "
    "Every IoU: ap_differences.csv. Paper: COCO val-2017, R50.",
  )


def table4(groups: Groups, out: Path, *, rule: str, command: str, stamp: str) -> str:
  rows = []
  for name in TABLE4:
    results = groups[name, False]
    kind, value = TABLE4_KEYS.get(name, ("lambd", 1.5))
    label = {"eta": f"eta {value}", "lambd": f"lambda {value}"}[kind] + (", Eq. (5)" if "eq5" in name else "")
    paper = numbers.TABLE4[kind, value] if name in TABLE4_KEYS else {}
    base = "" if name == "baseline" else "eta 0.0"
    rows.append(Row(label, results, paper, base, weights(results)))
  text = ap_table(
    rows,
    Intervals(rows, stamp),
    ("AP", "AP50", "AP75", "AP90"),
    out / "table4",
    caption=f"Table 4. {rule}. The row eta 0.0 is lambda 0 too. Paper: COCO val-2017, R50.",
    command=command,
    stamp=stamp,
  )
  bars(rows, out / "table4_bars", title="Table 4", rule=rule, stamp=stamp)
  return text


def comparison(groups: Groups, out: Path, *, rule: str, command: str, stamp: str) -> str:
  rows = compared(groups, [name for name, large in groups if not large], numbers.TABLE2)
  for method in ("linear", "gaussian"):
    for name in ("baseline", "both"):
      again = [detections.soft_nms(r, method) for r in groups[name, False]]
      label = f"{LABELS[name]}, soft-NMS ({method})"
      rows.append(Row(label, again, baseline=LABELS["baseline"], cells=weights(again)))
  text = ap_table(
    rows,
    Intervals(rows, stamp),
    (*numbers.SIZES, "AP90"),
    out / "comparison",
    caption=f"Other methods beside IoU-balanced losses. {rule}. Balanced L1 and GHM-R have their "
    "authors' weights for RetinaNet, the other localization losses one fitted on the matched anchors. Paper: "
    "COCO val-2017, R50, its Table 2.",
    command=command,
    stamp=stamp,
  )
  bars(rows, out / "comparison_bars", title="Methods compared", rule=rule, stamp=stamp)
  return text


def wloc_sweep(groups: Groups, out: Path, *, rule: str, command: str, stamp: str) -> str:
  curves = {}
  body: list[list[Cell]] = []
  for label, name_of in (
    ("without IoU balancing (lambda 0)", lambda w: "baseline" if w == 1.0 else f"weight{w}"),
    ("with IoU balancing (lambda 1.5)", lambda w: f"loc_weight{w}"),
  ):
    rows = {w: Row(label, groups[name_of(w), False]) for w in SWEEP if (name_of(w), False) in groups}
    cells: list[list[float | None]] = []
    for w, row in rows.items():
      ap = [figure for name in ("AP", "AP90") for figure in (row.mean(name), row.spread(name))]
      cells.append([w, weights(row.results)["effective weight"], *ap])
    curves[label] = tuple(np.array(cells, float).T)  # None becomes NaN
    body += [[label, *row] for row in cells]
  ap_plots.sweep(
    curves,
    out / "wloc_sweep",
    title="AP against the localization weight",
    rule=with_spread(rule, seeds=len(groups["baseline", False])),
    stamp=stamp,
  )
  return write_table(
    out / "wloc_sweep_table",
    ["run", "w_loc", "effective weight", "AP", "AP spread", "AP90", "AP90 spread"],
    body,
    caption=f"AP against the localization weight. {rule}. The effective weight is the localization loss over "
    "what it is with weights of 1, averaged over training.",
    command=command,
    formats={"w_loc": ".1f", "effective weight": ".2f", "AP spread": ".2f", "AP90 spread": ".2f"},
    stamp=stamp,
  )


def fig2(groups: Groups, out: Path, *, rule: str, command: str, stamp: str) -> str:
  runs = {LABELS[name]: results for (name, _), results in groups.items()}
  return figures.figure2(runs, out, rule=rule, command=command, stamp=stamp)


def fig3(groups: Groups, out: Path, *, rule: str, command: str, stamp: str) -> str:
  runs = {LABELS[name]: results for (name, _), results in groups.items()}
  return figure3(runs, out, rule=rule, command=command, stamp=stamp)


def figure3(runs: dict[str, list[Results]], out: Path, *, rule: str, command: str, stamp: str) -> str:
  """Shares of detections above each IoU, and the difference of AP at each IoU."""
  base = next(iter(runs))
  rows = [Row(label, results, baseline="" if label == base else base) for label, results in runs.items()]
  differences(rows, Intervals(rows, stamp), out / "ap_differences", rule, stamp)
  return figures.figure3(runs, out, rule=rule, command=command, stamp=stamp)


def differences(rows: Sequence[Row], intervals: Intervals, stem: Path, rule: str, stamp: str) -> None:
  """AP difference at each IoU with its interval."""
  base = rows[0].label
  shown = {}
  for row in rows[1:]:
    ends = np.array([intervals.between(row, rows[0], (iou,))[:3] for iou in IOUS])
    shown[row.label] = (ends[:, 0], ends[:, 1], ends[:, 2])
  ap_plots.ap_differences(
    np.array(IOUS),
    shown,
    stem,
    baseline=base,
    title="AP at each IoU against the baseline",
    rule=f"{rule}; 95% intervals of a bootstrap over images, paired by image and seed.",
    stamp=stamp,
  )


def diagnostics(results: Results, stem: Path, label: str, rule: str, stamp: str) -> None:
  """Over training: shares of the localization gradient and of the positives by IoU."""
  rows = [row for row in results.rows if "positive_share/0.0" in row]
  shares = {
    name: np.array([[row[f"{name}/{i / BINS:.1f}"] for i in range(BINS)] for row in rows])
    for name in ("localization_gradient_share", "positive_share")
  }
  plots.diagnostics(
    np.array([row["step"] for row in rows]),
    np.linspace(0, 1, BINS + 1),
    shares["localization_gradient_share"],
    shares["positive_share"],
    stem,
    title=f"Where the localization gradient comes from: {label}",
    rule=f"Positives by the IoU of their predicted box, single training batches, first seed. {rule}",
    stamp=stamp,
  )
