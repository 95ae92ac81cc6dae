"""How the runs were trained: losses, learning rate and AP by step."""

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes

from iou_det.report.charts import chart
from iou_det.report.grouped import legend
from iou_det.report.markup import paragraph
from iou_det.report.page import Section
from iou_det.report.scores import Group

FEW = 20  # rows of a short run, whose curves have corners between them
# Name of a column of metrics.jsonl: what the chart is called, and how it is read.
LOSSES = {
  "loss": (
    "Training loss",
    "The mean over the steps between two log lines; a curve that still falls has more to learn. Runs with "
    "other losses have another scale.",
  ),
  "loss_classification": ("Classification loss", "What is what: the part of the loss that scores come from."),
  "loss_localization": (
    "Localization loss",
    "Where it is: the part of the loss that boxes come from; its weight w_loc is in it.",
  ),
  "loss_other": ("Other losses", "Of the IoU branch and concordance."),
  "positive_iou": (
    "IoU of the positives",
    "Mean IoU of the predicted boxes of the anchors that belong to an object: higher is better.",
  ),
  "gradient_norm": (
    "Gradient norm",
    "How hard the loss pulls, before clipping: spikes are steps that went wrong.",
  ),
  "learning_rate": ("Learning rate", "What the schedule gave at the steps that were logged."),
}


def training_curves(groups: Sequence[Group]) -> Section:
  charts = []
  for column, (title, reading) in LOSSES.items():
    if any(column in row for _, row in rows_of(groups)):
      charts.append(curves(groups, f"training-{column.replace('_', '-')}", title, reading, column))
  splits = {s.run.config.data.val_split for g in groups for s in g.seeds}
  for split in sorted(splits):
    for column, title, reading in (
      (
        f"{split}/loss",
        f"Loss on {split}",
        "Where it rises while the training loss falls, the run learns by heart.",
      ),
      (
        f"{split}/AP",
        f"AP on {split}",
        "Higher is better; where it has been level for long, training may end sooner.",
      ),
      (f"{split}/AP75", f"AP75 on {split}", "AP of boxes that fit well (IoU 0.75 or more)."),
    ):
      if any(column in row for _, row in rows_of(groups)):
        name = f"training-{split}-{column.rpartition('/')[2]}".lower()
        charts.append(curves(groups, name, title, reading, column, marked=True))
  if not charts:
    inside = paragraph("The runs have no metrics.jsonl: how they were trained is not known.")
  else:
    inside = legend(groups) + f'<div class="charts">{"".join(charts)}</div>'
  return Section("training", "Training", inside)


def rows_of(groups: Sequence[Group]) -> Iterator[tuple[Group, dict[str, Any]]]:
  return ((g, row) for g in groups for s in g.seeds for row in s.run.rows)


def curves(
  groups: Sequence[Group], name: str, title: str, reading: str, column: str, marked: bool = False
) -> str:
  def paint(axis: Axes) -> None:
    for group in groups:
      for s in group.seeds:
        points = [(row["step"], row[column]) for row in s.run.rows if column in row]
        steps, values = zip(*points, strict=True) if points else ((), ())
        marker = group.look.marker if marked or len(steps) < FEW else ""
        axis.plot(steps, values, **group.look.line, marker=marker, clip_on=not marker)
    axis.set(xlabel="step", xlim=(0, None))
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}")

  return chart(name, title, reading, paint)
