"""Precision and recall, and AP by IoU, class, size and number of objects."""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from iou_det.evaluation.bootstrap import RECALLS
from iou_det.evaluation.coco import IOUS
from iou_det.report.charts import chart
from iou_det.report.grouped import dots, legend
from iou_det.report.markup import Cell, folded, paragraph, table
from iou_det.report.page import Section
from iou_det.report.scores import Group, Intervals
from iou_det.report.summary import with_interval

AT = (0.5, 0.75, 0.9)  # IoUs of the precision-recall curves
ROWS = 30  # of a chart of dots: what a screen shows
SIZES = {"APs": "small: area < 32²", "APm": "medium", "APl": "large: area > 96²"}


def precision_section(groups: Sequence[Group], intervals: Intervals | None) -> Section:
  title = "Precision and recall"
  if intervals is None:
    return Section("precision", title, paragraph("The split has no objects: nothing can be recalled."))
  charts = [curve(groups, iou) for iou in AT]
  charts.append(by_iou(groups, intervals))
  if len(groups) > 1:
    charts.append(differences(groups, intervals))
  charts += [by_class(groups), by_size(groups)]
  crowding = by_objects(groups)
  tables = folded("AP at each IoU as numbers", iou_table(groups, intervals))
  tables += folded("AP of each class as numbers", class_table(groups))
  inside = f'{legend(groups)}<div class="charts">{"".join([*charts, crowding])}</div>{tables}'
  return Section("precision", title, inside)


def curve(groups: Sequence[Group], iou: float) -> str:
  place = IOUS.index(iou)

  def paint(axis: Axes) -> None:
    for group in groups:
      for s in group.seeds:
        axis.plot(RECALLS, s.curves[place], **group.look.line)
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))

  reading = (
    f"From left to right, ever lower scores count as found (boxes are right from IoU {iou:g} on; mean over "
    "the classes). The area below is the AP; where the curve drops to 0, no lower score finds more."
  )
  return chart(f"pr-{round(100 * iou)}", f"Precision and recall at IoU {iou:g}", reading, paint)


def by_iou(groups: Sequence[Group], intervals: Intervals) -> str:
  def paint(axis: Axes) -> None:
    for group in groups:
      mean = mean_ap(group)
      ends = [intervals.of(group, (iou,)) or (np.nan, np.nan) for iou in IOUS]
      axis.fill_between(IOUS, *np.transpose(ends), color=group.look.colour, alpha=0.18, linewidth=0)
      axis.plot(IOUS, mean, **group.look.line, marker=group.look.marker, clip_on=False)
    axis.set(xlabel="IoU from which a box is right", ylabel="AP", ylim=(0, 1), xticks=IOUS[::2])

  reading = "How fast AP falls where boxes must fit better; the bands are 95 % intervals over the images."
  return chart("ap-by-iou", "AP by IoU", reading, paint)


def mean_ap(group: Group) -> list[float]:
  return [float(ap) for ap in np.mean([s.ap_per_iou for s in group.seeds], axis=0)]


def differences(groups: Sequence[Group], intervals: Intervals) -> str:
  base, *others = groups
  names = ", ".join(g.name for g in others) if len(others) < 4 else "the other runs"

  def paint(axis: Axes) -> None:
    axis.axhline(0, **base.look.line)
    step = 0.03 / len(others)
    for i, group in enumerate(others):
      x = np.array(IOUS) + step * (i - (len(others) - 1) / 2)
      low, high = np.transpose([intervals.between(group, base, (iou,)) or (np.nan, np.nan) for iou in IOUS])
      axis.vlines(x, 100 * low, 100 * high, color=group.look.colour, linewidth=2)
      axis.plot(x, 100 * (np.array(mean_ap(group)) - mean_ap(base)), **group.look.dots)
    axis.set(xlabel="IoU from which a box is right", ylabel="difference of AP (points)", xticks=IOUS[::2])

  reading = (
    f"AP of {names} minus that of {base.name}, the line at 0, with 95 % intervals paired by image. A bar "
    "that does not cross the line is a difference that these images tell from chance."
  )
  return chart("ap-differences", "Differences of AP by IoU", reading, paint)


def iou_table(groups: Sequence[Group], intervals: Intervals) -> str:
  columns = ["IoU", *(g.name for g in groups)]
  values = [mean_ap(g) for g in groups]
  rows: list[list[Cell]] = []
  for i, iou in enumerate(IOUS):
    cells = [with_interval(v[i], intervals.of(g, (iou,))) for g, v in zip(groups, values, strict=True)]
    rows.append([f"{iou:.2f}", *cells])
  return table("AP at each IoU with 95 % intervals.", columns, rows)


def ap_per_class(group: Group) -> dict[str, float | None]:
  names = group.seeds[0].run.metrics["AP_per_class"]
  return {name: group.mean(lambda metrics, name=name: metrics["AP_per_class"].get(name)) for name in names}  # type: ignore[misc]


def by_class(groups: Sequence[Group]) -> str:
  values = {g.name: ap_per_class(g) for g in groups}
  first = {name: ap for name, ap in values[groups[0].name].items() if ap is not None}
  order = sorted(first, key=lambda name: first[name])
  shown = order[:ROWS]
  cut = f" The {ROWS} of {len(order)} classes with the lowest AP are shown." if len(order) > ROWS else ""
  reading = f"AP of each class, the lowest of {groups[0].name} at the bottom: classes to look at first.{cut}"
  found = {g.name: [values[g.name].get(name) for name in shown] for g in groups}
  return dots(groups, "ap-by-class", "AP by class", reading, shown, found)


def class_table(groups: Sequence[Group]) -> str:
  run = groups[0].seeds[0].run
  count = Counter(a["category_id"] for a in run.truth["annotations"] if not a.get("iscrowd", 0))
  ids = [c.id for c in run.categories]
  values = [ap_per_class(g) for g in groups]
  rows = [
    [name, count[number], *(v.get(name) for v in values)] for number, name in zip(ids, values[0], strict=True)
  ]
  return table("AP of each class.", ["class", "objects", *(g.name for g in groups)], rows)


def by_size(groups: Sequence[Group]) -> str:
  found = {g.name: [g.mean(lambda m, name=name: m[name]) for name in SIZES] for g in groups}  # type: ignore[misc]
  shown = [i for i in range(len(SIZES)) if any(values[i] is not None for values in found.values())]
  names = [list(SIZES.values())[i] for i in shown]
  lacking = [name.split(":")[0] for i, name in enumerate(SIZES.values()) if i not in shown]
  reading = "AP of objects by their area in pixels of the original image."
  reading += f" The split has no {' and no '.join(lacking)} objects." if lacking else ""
  found = {name: [values[i] for i in shown] for name, values in found.items()}
  return dots(groups, "ap-by-size", "AP by size", reading, names, found)


def by_objects(groups: Sequence[Group]) -> str:
  """AP on the images with few and on those with many objects; empty without hotcoco, or if all are alike."""
  if any(s.scorer is None for g in groups for s in g.seeds):
    return ""
  truth = groups[0].seeds[0].run.truth
  objects = Counter(a["image_id"] for a in truth["annotations"] if not a.get("iscrowd", 0))
  counts = {image["id"]: objects[image["id"]] for image in truth["images"] if objects[image["id"]]}
  edges = np.unique(np.quantile(list(counts.values()), [0, 0.25, 0.5, 0.75, 1], method="lower")).tolist()
  if len(edges) < 3:
    return ""
  slices: dict[str, list[int]] = {}
  for low, high in itertools.pairwise(edges):
    last = high == edges[-1]
    inside = [i for i, n in counts.items() if low <= n and (n < high or last)]
    span = f"{low:g} to {high if last else high - 1:g}" if (high if last else high - 1) > low else f"{low:g}"
    slices[f"{span} ({len(inside)} image{'s' * (len(inside) > 1)})"] = inside
  found: dict[str, list[float | None]] = {}
  for group in groups:
    each = [s.scorer.slice_by(slices) for s in group.seeds]
    found[group.name] = [
      float(np.mean(known)) if (known := [e[name]["AP"] for e in each if e[name]["AP"] >= 0]) else None
      for name in slices
    ]
  reading = "AP on the images with so many objects: where it falls to the top, crowds are hard."
  return dots(groups, "ap-by-objects", "AP by number of objects", reading, list(slices), found)
