"""What goes wrong: at which score to cut, which class is taken for which, what errors cost."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes

from iou_det.report.charts import chart
from iou_det.report.grouped import dots, legend
from iou_det.report.markup import Cell, Safe, folded, paragraph, table
from iou_det.report.page import Section
from iou_det.report.ranking import MISSING
from iou_det.report.scores import Group, Scores

# TIDE's errors (arXiv:2008.08115), as hotcoco names them.
ERRORS = {
  "Miss": "missed",
  "Bkg": "false: on no object",
  "Loc": "poorly placed",
  "Dupe": "duplicate",
  "Cls": "wrong class",
  "Both": "wrong class and place",
}
MATRIX = 20  # classes whose confusion matrix fits a screen
LISTED = 20  # confusions, of more classes
DOUBTFUL = 10  # labels that are named


class Cut(NamedTuple):
  """Where to cut scores, at an IoU of 0.5."""

  score: float  # boxes with this score or a higher one are taken
  f1: float
  precision: float
  recall: float


class F1(NamedTuple):
  """F1 of all boxes with each score or a higher one, by falling score."""

  scores: Float[np.ndarray, " n"]
  precision: Float[np.ndarray, " n"]
  recall: Float[np.ndarray, " n"]

  @property
  def values(self) -> Float[np.ndarray, " n"]:
    both = self.precision + self.recall
    return np.divide(2 * self.precision * self.recall, both, out=np.zeros_like(both), where=both > 0)

  @property
  def best(self) -> Cut | None:
    """The highest F1; None without detections or objects."""
    if not len(self.scores):
      return None
    i = int(self.values.argmax())
    return Cut(*(float(column[i]) for column in (self.scores, self.values, self.precision, self.recall)))


def errors_section(groups: Sequence[Group]) -> Section:
  f1 = {g.name: [f1_curve(s) for s in g.seeds] for g in groups}
  charts = [f1_chart(groups, f1)]
  tables = f1_table(groups, f1) + folded("Best score of each class", class_table(groups))
  if not all(s.scorer for g in groups for s in g.seeds):
    tables += paragraph(MISSING % "no confusion matrix and no TIDE errors")
  else:
    charts.append(tide_chart(groups))
    matrices = "".join(confusion(g, f1[g.name]) for g in groups)
    tables += tide_table(groups) + (folded("Confusion matrices", matrices) if len(groups) > 2 else matrices)
    tables += doubtful_labels(groups[0])
  inside = f'{legend(groups)}<div class="charts">{"".join(charts)}</div>{tables}'
  return Section("errors", "Errors", inside)


def f1_curve(
  s: Scores, which: Bool[np.ndarray, " detections"] | None = None, objects: int | None = None
) -> F1:
  """Of all classes together, or of some detections and so many objects; COCO's matching at IoU 0.5."""
  m = s.matched
  counts = ~m.ignored[0] if which is None else ~m.ignored[0] & which
  number = int(m.objects.sum()) if objects is None else objects
  order = np.argsort(-m.score[counts], kind="stable")
  scores, correct = m.score[counts][order], m.correct[0][counts][order]
  last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # a cut takes all equal scores or none
  found = np.cumsum(correct)[last]
  if not number:
    return F1(*(np.zeros(0) for _ in range(3)))
  return F1(scores[last], found / np.flatnonzero(np.append(False, last)), found / number)


def f1_chart(groups: Sequence[Group], f1: dict[str, list[F1]]) -> str:
  def paint(axis: Axes) -> None:
    for group in groups:
      for curve in f1[group.name]:
        axis.plot(curve.scores, curve.values, **group.look.line)
        if curve.best:
          axis.plot(curve.best.score, curve.best.f1, **group.look.dots)
    axis.set(xlabel="lowest score that is taken", ylabel="F1", xlim=(0, 1), ylim=(0, 1))

  reading = (
    "F1 of all boxes with such a score or a higher one (IoU 0.5 or more is right). The mark is the best "
    "place to cut, for iou-det predict's --score, where missed and false boxes weigh the same."
  )
  return chart("f1-by-score", "Where to cut scores", reading, paint)


def f1_table(groups: Sequence[Group], f1: dict[str, list[F1]]) -> str:
  rows: list[list[Cell]] = []
  for group in groups:
    best = [curve.best for curve in f1[group.name] if curve.best]
    rows.append(
      [group.name, *(float(v) for v in np.mean(best, axis=0))] if best else [group.name, *[None] * 4]
    )
  caption = "The lowest score to take for the best F1 at IoU 0.5, all classes together."
  return table(caption, ["run", "score", "F1", "precision", "recall"], rows)


def class_table(groups: Sequence[Group]) -> str:
  """Score and F1 of each class, of the first seed of each group."""
  rows: list[list[Cell]] = []
  names = {c.id: c.name for c in groups[0].seeds[0].run.categories}
  for k, number in enumerate(groups[0].seeds[0].matched.category_ids.tolist()):
    row: list[Cell] = [names[number]]
    for s in (g.seeds[0] for g in groups):
      mine = np.zeros(len(s.matched.score), bool)
      mine[s.matched.start[k] : s.matched.start[k + 1]] = True
      best = f1_curve(s, mine, int(s.matched.objects[k].sum())).best
      row += [best.score, best.f1] if best else [None, None]
    rows.append(row)
  columns = [f"{g.name}: {what}" for g in groups for what in ("score", "F1")]
  several = any(len(g.seeds) > 1 for g in groups)
  caption = f"The lowest score to take for the best F1 of each class{', first seed' if several else ''}."
  return table(caption, ["class", *columns], rows)


def tide(group: Group) -> dict[str, dict[str, float]]:
  """Gain of AP50 and number of errors by kind, mean over the seeds."""
  each = [s.scorer.tide_errors() for s in group.seeds]
  mean = lambda of: float(np.mean([of(e) for e in each]))
  gain = {kind: mean(lambda e, kind=kind: e["delta_ap"][kind]) for kind in ERRORS}
  count = {kind: mean(lambda e, kind=kind: e["counts"][kind]) for kind in ERRORS}
  return {"gain": gain, "count": count}


def tide_chart(groups: Sequence[Group]) -> str:
  found = {g.name: [100 * tide(g)["gain"][kind] for kind in reversed(ERRORS)] for g in groups}
  reading = (
    "TIDE: how many points AP50 would gain if all errors of a kind were mended and nothing else. The gains "
    "do not add up: errors hide each other."
  )
  names = list(reversed(ERRORS.values()))
  return dots(groups, "tide", "What errors cost", reading, names, found, "AP50 that is lost (points)")


def tide_table(groups: Sequence[Group]) -> str:
  rows: list[list[Cell]] = []
  for group in groups:
    found = tide(group)
    total = sum(found["gain"].values())
    cells = []
    for kind in ERRORS:
      gain, count = found["gain"][kind], found["count"][kind]
      share = f" ({gain / total:.0%})" if total > 0 else ""
      cells.append(Safe(f"{100 * gain:.1f} <small>{count:,.0f}{share}</small>"))
    rows.append([group.name, *cells])
  caption = (
    "Points of AP50 lost to each kind of error; how many there are, of all detections whatever their score; "
    "its share of the sum. Poorly placed: IoU of 0.1 to 0.5; false: below 0.1 with every object."
  )
  return table(caption, ["run", *ERRORS.values()], rows)


def confusion(group: Group, f1: Sequence[F1]) -> str:
  """What was taken for what, of all seeds together, each cut at its own best score."""
  matrices = [
    s.scorer.confusion_matrix(min_score=curve.best.score if curve.best else None)["matrix"]
    for s, curve in zip(group.seeds, f1, strict=True)
  ]
  total = np.sum(matrices, axis=0).astype(np.int64)
  names = [c.name for c in group.seeds[0].run.categories]
  cuts = ", ".join(f"{curve.best.score:.2f}" for curve in f1 if curve.best) or "none"
  crowds = sum(bool(a.get("iscrowd", 0)) for a in group.seeds[0].run.truth["annotations"])
  note = f" Boxes on the {crowds} crowd regions count as false here." if crowds else ""
  caption = (
    f"{group.name}: objects of a class in a row, boxes of a class in a column, matched at an IoU of 0.5 "
    f"whatever the class; scores from {cuts} on, the best F1.{note}"
  )
  if len(names) > MATRIX:
    return confused_classes(caption, names, total)
  share = total / np.maximum(total.sum(axis=1, keepdims=True), 1)
  rows = [
    [name, *(shaded(int(total[i, k]), float(share[i, k]), i == k) for k in range(len(names) + 1))]
    for i, name in enumerate([*names, "no object"])
  ]
  return table(caption, ["object \\ box", *names, "no box"], rows)


def shaded(count: int, share: float, right: bool) -> Cell:
  """A number in a shade of its share of the row: one colour for what is right, one for what is not."""
  if not count:
    return Safe('<span class="none">0</span>')
  colour = "--c2" if right else "--c1"
  return Safe(f'<span class="cell" style="--share: {60 * share:.0f}%; --of: var({colour})">{count:,}</span>')


def confused_classes(caption: str, names: Sequence[str], total: Any) -> str:
  """The most frequent confusions, of classes too many for a matrix."""
  between = total[:-1, :-1].copy()
  np.fill_diagonal(between, 0)
  worst = np.argsort(-between, axis=None, kind="stable")[:LISTED]
  pairs = [divmod(int(place), len(names)) for place in worst if between.flat[place]]
  rows: list[list[Cell]] = [[names[i], names[k], int(between[i, k]), int(total[i].sum())] for i, k in pairs]
  if not rows:
    return paragraph(f"{caption} No class was taken for another.")
  return table(caption, ["object", "taken for", "times", "objects"], rows)


def doubtful_labels(group: Group) -> str:
  """Annotations that the best-scoring errors of the first seed speak against."""
  s = group.seeds[0]
  found = s.scorer.image_diagnostics(score_thr=0.5)["label_errors"]
  if not found:
    return ""
  names = {image["id"]: image["file_name"] for image in s.run.truth["images"]}
  best = sorted(found, key=lambda e: -e["dt_score"])
  rows: list[list[Cell]] = [
    [names[e["image_id"]], e["dt_category"], e["gt_category"] or "no label there", e["dt_score"], e["iou"]]
    for e in best[:DOUBTFUL]
  ]
  caption = (
    f"The surest {len(rows)} of {len(found)} boxes of {s.run.name} (score 0.5 or more) that no label bears "
    "out: errors of the detector, or labels that are missing or wrong."
  )
  return folded("Labels to look at", table(caption, ["image", "found", "label", "score", "IoU"], rows))
