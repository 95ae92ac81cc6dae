"""The first section: AP of the runs, how far it can be trusted, and in what the runs differ."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from iou_det.evaluation.coco import IOUS
from iou_det.report.markup import Cell, Safe, folded, paragraph, table
from iou_det.report.page import Section
from iou_det.report.scores import SAMPLES, Group, Intervals, settings_that_differ
from iou_det.workdir.checkpoints import best_step

WITH_INTERVALS: dict[str, tuple[float, ...]] = {"AP": IOUS, "AP50": (0.5,), "AP75": (0.75,), "AP90": (0.9,)}
SIZES = ("APs", "APm", "APl", "AR100")


def summary(groups: Sequence[Group], intervals: Intervals | None) -> Section:
  """`intervals`: None where the split has no objects."""
  first = groups[0].seeds[0].run
  objects = sum(not a.get("iscrowd", 0) for a in first.truth["annotations"])
  images = len(first.truth["images"])
  what = f"{images:,} images, {objects:,} objects of {len(first.categories)} classes"
  parts = [paragraph(f"Scored on {first.source.name}: {what}.")]
  if intervals is None:
    parts.append(paragraph("The split has no objects: there is no AP, and nothing to compare."))
    return Section("summary", "Summary", "".join([*parts, runs_table(groups)]))
  columns = ["run", *WITH_INTERVALS, *SIZES]
  rows: list[list[Cell]] = []
  for group in groups:
    cells: list[Cell] = [
      with_interval(group.mean(partial(figure, name)), intervals.of(group, ious))
      for name, ious in WITH_INTERVALS.items()
    ]
    rows.append([group_name(group), *cells, *(group.mean(partial(figure, name)) for name in SIZES)])
  caption = (
    f"COCO's figures. In small: 95 % intervals of {SAMPLES:,} bootstrap samples of the images; they tell how "
    "far other images of the same kind could move a figure, not what another seed would."
  )
  parts.append(table(caption, columns, rows))
  if len(groups) > 1:
    parts.append(differences_table(groups, intervals))
  settings = settings_that_differ([g.seeds[0].run.config for g in groups])
  if settings:
    caption = "Settings in which the runs differ."
    body = [[name, *map(setting, values)] for name, values in settings.items()]
    parts.append(table(caption, ["setting", *(g.name for g in groups)], body))
  elif len(groups) > 1:
    parts.append(paragraph("The runs do not differ in any setting."))
  parts.append(runs_table(groups))
  return Section("summary", "Summary", "".join(parts))


def figure(name: str, metrics: dict[str, Any]) -> float | None:
  return metrics[name] if name in metrics else metrics["AP_per_iou"][f"0.{name[2:]}"]


def with_interval(value: float | None, ends: tuple[float, float] | None, spec: str = ".3f") -> Cell:
  if value is None or ends is None:
    return value
  low, high = ends
  return Safe(f"{value:{spec}} <small>{low:{spec}} to {high:{spec}}</small>")


def group_name(group: Group) -> str:
  return group.name if len(group.seeds) == 1 else f"{group.name} (mean of {len(group.seeds)} seeds)"


def differences_table(groups: Sequence[Group], intervals: Intervals) -> str:
  base, *others = groups
  rows: list[list[Cell]] = []
  for group in others:
    cells: list[Cell] = []
    for name, ious in WITH_INTERVALS.items():
      ours, theirs = (g.mean(partial(figure, name)) for g in (group, base))
      known = ours is not None and theirs is not None
      ends = intervals.between(group, base, ious)
      cells.append(with_interval(ours - theirs if known else None, ends, "+z.3f"))  # type: ignore[operator]
    rows.append([group.name, *cells])
  caption = (
    f"Difference to {base.name}, with 95 % intervals. All runs saw the same resampled images: an interval "
    "that does not hold 0 is a difference that these images tell from chance."
  )
  return table(caption, ["run", *WITH_INTERVALS], rows)


def setting(value: Any) -> str:
  return "-" if value is None else str(value)


def runs_table(groups: Sequence[Group]) -> str:
  """What was scored, run after run."""
  rows: list[list[Cell]] = []
  for s in (s for g in groups for s in g.seeds):
    run = s.run
    ap = {row["step"]: row[f"{run.split}/AP"] for row in run.rows if f"{run.split}/AP" in row}
    best = best_step(ap, list(ap))
    found = f"{ap[best]:.3f} at step {best:,}" if best is not None else None
    rows.append([
      run.name, run.metrics["AP"], f"{run.metrics['step']:,}", found, run.config.seed,
      f"{run.metrics['images']:,}", f"{len(run.detections):,}", str(run.workdir)])  # fmt: skip
  columns = ["run", "AP", "step", "best in training", "seed", "images", "detections", "workdir"]
  return folded("What was scored", table("Each run with the step that was scored.", columns, rows))
