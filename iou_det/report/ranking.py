"""Do scores rank boxes by how well they fit, and do they say how often a box is right?"""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.ticker import FuncFormatter

from iou_det.evaluation import overlap
from iou_det.report.charts import chart
from iou_det.report.grouped import legend
from iou_det.report.markup import Cell, paragraph, table
from iou_det.report.page import Section
from iou_det.report.runs import Run
from iou_det.report.scores import Group

CELLS = 25  # across a chart of scores and IoUs
# Without the ends, which are lost on a dark and on a light page.
SHADES = ListedColormap(colormaps["viridis"](np.linspace(0.22, 0.95, 256)))
MISSING = "hotcoco is not installed: %s; pip install -e '.[fast-eval]', then make the page again."


def ranking_section(groups: Sequence[Group]) -> Section:
  title = "Scores and how well boxes fit"
  if not any(len(s.run.detections) for g in groups for s in g.seeds):
    return Section("ranking", title, paragraph("There are no detections."))
  pooled = {g.name: pool(g) for g in groups}
  charts = [mean_score(groups, pooled)]
  note = ""
  if all(s.scorer for g in groups for s in g.seeds):
    charts.append(reliability(groups))
  else:
    note = paragraph(MISSING % "no reliability diagram")
  charts += [hexbin(i, g, pooled[g.name]) for i, g in enumerate(groups) if len(pooled[g.name].scores)]
  rule = paragraph(
    "A detection's IoU is the best with an object of its class in its image, 0 where there is none, whatever "
    "its rank; several may share an object."
  )
  inside = f'{rule}{note}{legend(groups)}<div class="charts">{"".join(charts)}</div>'
  return Section("ranking", title, inside + ranking_table(groups, pooled))


def pool(group: Group) -> overlap.Overlaps:
  """Of all seeds together."""
  each = [s.overlaps for s in group.seeds]
  scores, ious = (np.concatenate([o[i] for o in each]) for i in (0, 1))
  return overlap.Overlaps(scores, ious, sum(o.on_crowd for o in each))


def mean_score(groups: Sequence[Group], pooled: dict[str, overlap.Overlaps]) -> str:
  def paint(axis: Axes) -> None:
    for group in groups:
      edges, mean, _ = overlap.score_per_iou(pooled[group.name])
      axis.plot((edges[:-1] + edges[1:]) / 2, mean, **group.look.line, marker=group.look.marker)
    axis.set(xlabel="IoU with the object (bins of 0.1)", ylabel="mean score", xlim=(0, 1), ylim=(0, None))

  reading = (
    "The mean score of boxes that fit so well. Steep is good: NMS and AP rank by score, and a well-fitting "
    "box with a low score loses against a worse one."
  )
  return chart("mean-score", "Mean score by IoU", reading, paint)


def reliability(groups: Sequence[Group]) -> str:
  def paint(axis: Axes) -> None:
    axis.plot([0, 1], [0, 1], color=axis.xaxis.label.get_color(), linewidth=1, alpha=0.6)
    for group in groups:
      for s in group.seeds:
        bins = [b for b in s.scorer.calibration()["bins"] if b["count"]]
        x, y = ([b[key] for b in bins] for key in ("avg_confidence", "avg_accuracy"))
        axis.plot(x, y, **group.look.line, marker=group.look.marker, clip_on=False)
    axis.set(xlabel="score", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))

  reading = (
    "Of the boxes with such a score (bins of 0.1), the share that is right: the first on its object, "
    "with an IoU of 0.5 or more. On the diagonal a score is a probability; below it the detector is too sure."
  )
  return chart("reliability", "Reliability of scores", reading, paint)


def hexbin(number: int, group: Group, overlaps: overlap.Overlaps) -> str:
  def paint(axis: Axes) -> None:
    cells = axis.hexbin(
      overlaps.ious, overlaps.scores, gridsize=CELLS, extent=(0, 1, 0, 1), mincnt=1, cmap=SHADES,
      rasterized=True)  # fmt: skip
    counts = np.asarray(cells.get_array())
    cells.set_norm(LogNorm(1, max(10, counts.max(initial=1))))
    whole = FuncFormatter(lambda n, _: f"{n:,.0f}")
    axis.figure.colorbar(cells, ax=axis, label="detections in a cell", pad=0.02, format=whole)
    axis.set(xlabel="IoU with the object", ylabel="score", xlim=(0, 1), ylim=(0, 1))

  reading = (
    f"Where {group.name}'s {len(overlaps.scores):,} detections lie. Good scores rise with the IoU, from the "
    "lower left to the upper right; what lies at the upper left is sure of itself and wrong."
  )
  return chart(f"score-iou-{number}", f"Score against IoU: {group.name}", reading, paint, height=3.1)


def ranking_table(groups: Sequence[Group], pooled: dict[str, overlap.Overlaps]) -> str:
  rows: list[list[Cell]] = []
  for group in groups:
    o = pooled[group.name]
    shares = overlap.share_above_iou(o)
    known = shares.detections and all(s.scorer for s in group.seeds)
    ece = float(np.mean([s.scorer.calibration()["ece"] for s in group.seeds])) if known else None
    at = lambda share, shares=shares: (
      None if np.isnan(share[0]) else float(share[list(shares.thresholds).index(0.75)])
    )
    rows.append([
      group.name, shares.detections, shares.located, at(shares.of_located), overlap.rank_correlation(o),
      overlap.rank_correlation(o, overlap.LOCATED), ece, *regret(group)])  # fmt: skip
  columns = [
    "run", "detections", "on an object (IoU ≥ 0.5)", "of those IoU ≥ 0.75", "rank correlation",
    "the same, IoU ≥ 0.5", "calibration error", "NMS regret", "mean IoU lost"]  # fmt: skip
  caption = (
    "Rank correlation (Spearman's) of score and IoU: 1 is a perfect ranking. Calibration error: how far "
    "scores are from the share that is right. NMS regret: of the kept boxes on an object, the share that "
    "suppressed a box with a higher IoU with the same object."
  )
  runs = [s.run for group in groups for s in group.seeds]
  notes = ""
  if any(has_regret(run) and run.candidates is None for run in runs):
    notes += paragraph(
      "NMS regret needs the boxes before NMS, which the network must find once more: give --nms_regret."
    )
  if not all(map(has_regret, runs)):
    notes += paragraph("NMS regret is that of hard NMS within each class; other runs have none.")
  return table(caption, columns, rows) + notes


def has_regret(run: Run) -> bool:
  """Whether its NMS is the one whose regret is defined."""
  return run.config.eval.nms == "hard" and not run.config.eval.class_agnostic


def candidates(group: Group) -> list[overlap.Boxes]:
  """What entered the NMS of each seed; empty where one has no file of it, or no hard NMS of each class."""
  runs = [s.run for s in group.seeds]
  files = [run.candidates for run in runs if run.candidates is not None and has_regret(run)]
  return [overlap.load_candidates(file) for file in files] if len(files) == len(runs) else []


def regret(group: Group) -> tuple[Cell, Cell]:
  """Share and mean loss, over all seeds' boxes."""
  each = [
    overlap.nms_regret(
      s.run.truth,
      found,
      nms_iou=s.run.config.eval.nms_iou,
      max_detections=s.run.config.eval.max_detections,
    )
    for s, found in zip(group.seeds, candidates(group), strict=False)
  ]
  on_object, regretted = sum(r.on_object for r in each), sum(r.regretted for r in each)
  lost = sum(r.regretted * (r.mean_loss or 0.0) for r in each)
  return (regretted / on_object if on_object else None), (lost / regretted if regretted else None)
