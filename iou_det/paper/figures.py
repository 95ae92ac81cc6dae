"""Figures 2 and 3 of finished runs, and what the same detections tell beyond them."""

from pathlib import Path

import numpy as np

from iou_det.data import open_dataset
from iou_det.detector import ground_truth
from iou_det.evaluation import overlap
from iou_det.paper import detections, plots
from iou_det.paper.results import Results
from iou_det.paper.tables import Cell, write_table

RULE = (
  "A detection's IoU is the best with an object of its class in its image, whatever its rank; several may "
  "share an object."
)


def pooled(results: list[Results]) -> overlap.Overlaps:
  """Scores and IoUs of all seeds' detections together."""
  each = []
  for r in results:
    d = r.config.data
    truth = ground_truth(open_dataset(d.path, d.val_split), d.val_annotations)
    each.append(overlap.best_ious(truth, r.detections()))
  return overlap.Overlaps(
    np.concatenate([o.scores for o in each]),
    np.concatenate([o.ious for o in each]),
    sum(o.on_crowd for o in each),
  )


def figure2(runs: dict[str, list[Results]], out: Path, *, rule: str, command: str, stamp: str) -> str:
  """Mean score in each bin of IoU; score against IoU; Spearman's correlation and NMS regret as a table."""
  overlaps = {label: pooled(results) for label, results in runs.items()}
  rule = f"{RULE} {rule}"
  bins = {label: overlap.score_per_iou(o) for label, o in overlaps.items()}
  plots.mean_scores(
    next(iter(bins.values())).edges,
    {label: (b[1], b[2]) for label, b in bins.items()},
    out / "fig2",
    title="Figure 2: mean score by IoU",
    rule=rule,
    stamp=stamp,
  )
  correlation = {label: overlap.rank_correlation(o) for label, o in overlaps.items()}
  plots.score_against_iou(
    {label: (o.scores, o.ious, correlation[label]) for label, o in overlaps.items()},
    out / "score_against_iou",
    title="Score against IoU",
    rule=rule,
    stamp=stamp,
  )
  rows: list[list[Cell]] = []
  for label, results in runs.items():
    regrets = [regret(r) for r in results if r.config.eval.nms == "hard"]  # others suppress nothing
    on_object, regretted = sum(r.on_object for r in regrets), sum(r.regretted for r in regrets)
    lost = sum((r.mean_loss or 0.0) * r.regretted for r in regrets)
    rows.append([
      label,
      correlation[label],
      overlap.rank_correlation(overlaps[label], min_iou=overlap.LOCATED),
      on_object if regrets else None,
      100 * regretted / on_object if on_object else None,
      lost / regretted if regretted else None,
    ])  # fmt: skip
  columns = ["run", "Spearman, all", "Spearman, IoU >= 0.5", "boxes on objects", "NMS regret (%)", "IoU lost"]
  return write_table(
    out / "ranking",
    columns,
    rows,
    caption="Do scores rank boxes by how well they fit? Spearman's correlation of score and IoU; NMS regret: "
    "share of the boxes on an object (IoU >= 0.5) kept by hard NMS that suppressed a box with a higher IoU "
    f"with it, and the mean IoU lost there. {rule}",
    command=command,
    formats={columns[1]: ".3f", columns[2]: ".3f", columns[5]: ".3f"},
    stamp=stamp,
  )


def figure3(runs: dict[str, list[Results]], out: Path, *, rule: str, command: str, stamp: str) -> str:
  """Share of detections above each IoU: of all detections, and of those that are on an object."""
  shares = {label: overlap.share_above_iou(pooled(results)) for label, results in runs.items()}
  thresholds = next(iter(shares.values())).thresholds
  for name, what in (("of_all", "all detections"), ("of_located", "detections with IoU >= 0.5")):
    plots.shares_above(
      thresholds,
      {label: np.nan_to_num(getattr(s, name)) for label, s in shares.items()},
      out / ("fig3" if name == "of_all" else "fig3_located"),
      title=f"Figure 3: share of {what} above each IoU",
      rule=f"{RULE} {rule}",
      stamp=stamp,
    )
  rows: list[list[Cell]] = [
    [label, s.detections, s.located, *(100 * v for v in np.nan_to_num(s.of_all)[::2].tolist())]
    for label, s in shares.items()
  ]
  return write_table(
    out / "shares",
    ["run", "detections", "IoU >= 0.5", *(f"share above {t:.1f} (%)" for t in thresholds[::2])],
    rows,
    caption=f"Figure 3: share of all detections above each IoU. {RULE} {rule}",
    command=command,
    stamp=stamp,
  )


def regret(results: Results) -> overlap.Regret:
  """NMS regret of a run, with the hard NMS that it was scored with."""
  d, e = results.config.data, results.config.eval
  truth = ground_truth(open_dataset(d.path, d.val_split), d.val_annotations)
  found = overlap.load_candidates(detections.candidates(results))
  return overlap.nms_regret(truth, found, nms_iou=e.nms_iou, max_detections=e.max_detections)
