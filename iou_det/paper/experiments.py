"""What each experiment writes, from its finished runs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iou_det.data.records import open_dataset
from iou_det.paper import figure1, numbers, plots
from iou_det.paper.comparison import figure_two_and_three, soft_nms_results
from iou_det.paper.report import SMOKE, Intervals, Row, ap_table, bars, boot_samples
from iou_det.paper.results import Results
from iou_det.paper.runs import CONTROLS, RUNS, SWEEP, TABLE2, TABLE4, Place, Run
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
TABLE4_KEYS = {
  "baseline": ("eta", 0.0), "eta1.0": ("eta", 1.0), "eta1.4": ("eta", 1.4), "cls": ("eta", 1.5),
  "eta1.6": ("eta", 1.6), "lambd0.5": ("lambd", 0.5), "lambd1.0": ("lambd", 1.0), "loc": ("lambd", 1.5),
  "lambd1.8": ("lambd", 1.8),
}  # fmt: skip


def write(experiment: str, place: Place, runs: Sequence[Run], command: str) -> str:
  """Writes W/PRESET/EXPERIMENT/ and returns what to print: tables as Markdown, and where the files are."""
  out = place.out / experiment
  stamp = SMOKE if place.smoke else ""
  if experiment == "fig1":
    figure1.write(out / "fig1", command=command)
    return f"wrote {out}"
  groups: dict[tuple[str, bool], list[Results]] = {}
  for run in runs:
    groups.setdefault((run.name, run.large), []).append(Results.read(place.of(run)))
  first = groups["baseline", False][0]
  rule = describe(place, first, seeds=len(groups["baseline", False]))
  writer = {
    "table1": table1, "table2": table2, "table3": table3, "table4": table4, "comparison": comparison,
    "wloc_sweep": wloc_sweep, "fig2": figures, "fig3": figures,
  }[experiment]  # fmt: skip
  text = writer(groups, out, rule=rule, command=command, stamp=stamp)
  return f"{text}\nwrote {out}"


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
  return ap_table(
    rows, Intervals(rows, boot_samples(stamp)), numbers.SIZES, out / "table1",
    caption=f"Table 1. {rule}. Paper: COCO test-dev, R50 and R101.", command=command, stamp=stamp)  # fmt: skip


def compared(groups: Groups, names: Sequence[str], paper: dict[str, dict[str, float]]) -> list[Row]:
  """A row for each name; all but the first are compared with the baseline."""
  return [
    Row(
      LABELS[name], groups[name, False], paper.get(name, {}),
      baseline="" if name == "baseline" else LABELS["baseline"], cells=weights(name, groups[name, False]),
    )
    for name in names
  ]  # fmt: skip


def weights(name: str, results: list[Results]) -> dict[str, float]:
  """Columns of a row: w_loc as trained, and the effective weight over training (means over seeds)."""
  return {
    "w_loc": float(np.mean([r.w_loc for r in results])),
    "effective weight": float(np.mean([r.effective_weight for r in results])),
  }


def table2(groups: Groups, out: Path, *, rule: str, command: str, stamp: str) -> str:
  names = [n for n in (*TABLE2, *CONTROLS) if (n, False) in groups]
  rows = compared(groups, names, numbers.TABLE2)
  intervals = Intervals(rows, boot_samples(stamp))
  text = ap_table(
    rows, intervals, (*numbers.SIZES, "AP90"), out / "table2",
    caption=f"Table 2. {rule}. Paper: COCO val-2017, R50.", command=command, stamp=stamp)  # fmt: skip
  bars(rows, out / "table2", title="Table 2", rule=f"{rule}; bars: standard deviation over seeds.", stamp=stamp)
  for name in ("baseline", "loc"):
    diagnostics(groups[name, False][0], out / f"diagnostics_{name}", LABELS[name], rule, stamp)
  differences(rows, intervals, out / "ap_differences", rule, stamp)
  return text


def table3(groups: Groups, out: Path, *, rule: str, command: str, stamp: str) -> str:
  rows = compared(groups, TABLE2, numbers.TABLE3)
  intervals = Intervals(rows, boot_samples(stamp))
  differences(rows, intervals, out / "ap_differences", rule, stamp)
  return ap_table(
    rows, intervals, numbers.IOUS, out / "table3", paper="AP90", difference=(0.9,), command=command, stamp=stamp,
    caption=f"Table 3. {rule}. Differences, intervals and the paper's column: AP90. "
    "Every IoU: ap_differences.csv. Paper: COCO val-2017, R50.")  # fmt: skip


def table4(groups: Groups, out: Path, *, rule: str, command: str, stamp: str) -> str:
  rows = []
  for name in TABLE4:
    results = groups[name, False]
    kind, value = TABLE4_KEYS.get(name, ("lambd", 1.5))
    label = {"eta": f"eta {value}", "lambd": f"lambda {value}"}[kind] + (", Eq. (5)" if "eq5" in name else "")
    paper = numbers.TABLE4[kind, value] if name in TABLE4_KEYS else {}
    base = "" if name == "baseline" else "eta 0.0"
    rows.append(Row(label, results, paper, base, weights(name, results)))
  text = ap_table(
    rows, Intervals(rows, boot_samples(stamp)), ("AP", "AP50", "AP75", "AP90"), out / "table4",
    caption=f"Table 4. {rule}. The row eta 0.0 is lambda 0 too. Paper: COCO val-2017, R50.",
    command=command, stamp=stamp)  # fmt: skip
  bars(rows, out / "table4", title="Table 4", rule=f"{rule}; bars: standard deviation over seeds.", stamp=stamp)
  return text


def comparison(groups: Groups, out: Path, *, rule: str, command: str, stamp: str) -> str:
  rows = compared(groups, [name for name, large in groups if not large], numbers.TABLE2)
  for method in ("linear", "gaussian"):
    for name in ("baseline", "both"):
      again = [soft_nms_results(r, method) for r in groups[name, False]]
      label = f"{LABELS[name]}, soft-NMS ({method})"
      rows.append(Row(label, again, baseline=LABELS["baseline"], cells=weights(name, again)))
  text = ap_table(
    rows, Intervals(rows, boot_samples(stamp)), (*numbers.SIZES, "AP90"), out / "comparison",
    caption=f"Other methods beside IoU-balanced losses. {rule}. Each localization loss has the weight that "
    "keeps the baseline's first-step sum. Paper: COCO val-2017, R50, its Table 2.",
    command=command, stamp=stamp)  # fmt: skip
  bars(rows, out / "comparison", title="Methods compared", rule=rule, stamp=stamp)
  return text


def wloc_sweep(groups: Groups, out: Path, *, rule: str, command: str, stamp: str) -> str:
  curves = {}
  for label, name_of in (
    ("without IoU balancing (lambda 0)", lambda w: "baseline" if w == 1.0 else f"weight{w}"),
    ("with IoU balancing (lambda 1.5)", lambda w: f"loc_weight{w}"),
  ):
    rows = [Row(label, groups[name_of(w), False]) for w in SWEEP]
    missing = lambda v: np.nan if v is None else v
    columns = [
      [missing(f(row)) for row in rows]
      for f in (lambda r: r.mean("AP"), lambda r: r.spread("AP"), lambda r: r.mean("AP90"), lambda r: r.spread("AP90"))
    ]
    curves[label] = tuple(np.array(c, float) for c in [SWEEP, *columns])
  plots.sweep(
    curves, out / "wloc_sweep", title="AP against the localization weight",
    rule=f"{rule}; bars: standard deviation over seeds. Made by {command}", stamp=stamp)  # fmt: skip
  return (out / "wloc_sweep.csv").read_text()


def figures(groups: Groups, out: Path, *, rule: str, command: str, stamp: str) -> str:
  runs = {LABELS[name]: results for (name, _), results in groups.items()}
  return figure_two_and_three(runs, out, rule=rule, command=command, stamp=stamp)


def differences(rows: Sequence[Row], intervals: Intervals, stem: Path, rule: str, stamp: str) -> None:
  """AP difference at each IoU with its interval."""
  base = rows[0].label
  shown = {}
  for row in rows[1:]:
    ends = np.array([intervals.at(row, (iou,)) for iou in plots_ious()])
    shown[row.label] = (ends[:, 0], ends[:, 1], ends[:, 2])
  plots.ap_differences(
    np.array(plots_ious()), shown, stem, baseline=base, title="AP at each IoU against the baseline",
    rule=f"{rule}; 95% intervals of a bootstrap over images, paired by image and seed.", stamp=stamp)  # fmt: skip


def diagnostics(results: Results, stem: Path, label: str, rule: str, stamp: str) -> None:
  """Over training: shares of the localization gradient and of the positives by IoU."""
  rows = [row for row in results.rows if "eq2_normalizer" in row]
  shares = {
    name: np.array([[row[f"{name}/{i / BINS:.1f}"] for i in range(BINS)] for row in rows])
    for name in ("localization_gradient_share", "positive_share")
  }
  plots.diagnostics(
    np.array([row["step"] for row in rows]), np.linspace(0, 1, BINS + 1), shares["localization_gradient_share"],
    shares["positive_share"], stem, title=f"Where the localization gradient comes from: {label}",
    rule=f"Positives by the IoU of their predicted box, single training batches, first seed. {rule}",
    stamp=stamp)  # fmt: skip
