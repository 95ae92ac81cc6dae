"""COCO metrics: ground truth and detections in COCO's JSON formats, scored by pycocotools."""

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float, Int
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from iou_det.data.coco import read_coco, to_coco
from iou_det.errors import UserError

# Name: the words of COCO's table (quantity, IoU, area, detections per image).
FIGURES = {
  "AP": ("precision", None, "all", 100),
  "AP50": ("precision", 0.50, "all", 100),
  "AP75": ("precision", 0.75, "all", 100),
  "APs": ("precision", None, "small", 100),
  "APm": ("precision", None, "medium", 100),
  "APl": ("precision", None, "large", 100),
  "AR1": ("recall", None, "all", 1),
  "AR10": ("recall", None, "all", 10),
  "AR100": ("recall", None, "all", 100),
  "ARs": ("recall", None, "small", 100),
  "ARm": ("recall", None, "medium", 100),
  "ARl": ("recall", None, "large", 100),
}
IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
AREAS = ("all", "small", "medium", "large")
MAX_DETECTIONS = (1, 10, 100)
BACKENDS = ("pycocotools", "hotcoco")


def to_results(
  image_id: int,
  boxes: Float[np.ndarray, "n 4"],
  scores: Float[np.ndarray, " n"],
  category_ids: Int[np.ndarray, " n"],
) -> list[dict[str, Any]]:
  """Detections of one image in COCO's results format: original category ids, x, y, w, h; not rounded.

  Args:
    boxes: x1, y1, x2, y2 in pixels of the original image, x2 and y2 exclusive.
  """
  corners = boxes.astype(np.float64)
  xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
  return [
    {"image_id": int(image_id), "category_id": category, "bbox": box, "score": score}
    for box, score, category in zip(xywh.tolist(), scores.tolist(), category_ids.tolist(), strict=True)
  ]


def evaluate(
  ground_truth: dict[str, Any] | str | Path,
  results: Sequence[dict[str, Any]],
  *,
  image_ids: Iterable[int] | None = None,
  backend: str = "pycocotools",
) -> dict[str, Any]:
  """Scores detections with COCO's box metrics.

  Args:
    ground_truth: COCO annotation file, or its content; it is not changed, nor are the results.
    image_ids: score these images only; default: all of the ground truth, with or without boxes.
    backend: "pycocotools" (the number of record), or "hotcoco" (extra fast-eval; the same figures, sooner).

  Returns:
    The FIGURES in [0, 1], None where there is no ground truth to recall; AP_per_iou {"0.50": ...};
    AP_per_class {name: ...}, a name that several categories share is followed by the id; images and
    detections: how many were scored.
  """
  truth, source = load_ground_truth(ground_truth)
  known = {image["id"] for image in truth["images"]}
  scored = known if image_ids is None else set(image_ids)
  _refuse_unknown(source, "image_ids asks for image ids", scored - known)
  refuse_unknown_ids(truth, source, results)
  ordered = sorted(truth["categories"], key=lambda c: c["id"])  # as COCOeval orders them
  with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
    scorer = _scorer(truth, results, backend)
    scorer.params.imgIds = sorted(scored)
    scorer.params.catIds = [c["id"] for c in ordered]
    scorer.evaluate()
    scorer.accumulate()
  # [ious, recalls, classes, areas, max] and [ious, classes, areas, max]; -1 where there is no ground truth.
  tables = {quantity: np.asarray(scorer.eval[quantity]) for quantity in ("precision", "recall")}
  metrics: dict[str, Any] = {}
  for name, (quantity, iou, area, detections) in FIGURES.items():
    at = slice(None) if iou is None else slice(IOUS.index(iou), IOUS.index(iou) + 1)
    metrics[name] = _mean(tables[quantity][at][..., AREAS.index(area), MAX_DETECTIONS.index(detections)])
  at_100 = tables["precision"][..., 0, -1]
  metrics["AP_per_iou"] = {f"{iou:.2f}": _mean(at_100[i]) for i, iou in enumerate(IOUS)}
  count = Counter(c["name"] for c in ordered)
  names = [c["name"] if count[c["name"]] == 1 else f"{c['name']} (id {c['id']})" for c in ordered]
  metrics["AP_per_class"] = {name: _mean(at_100[:, :, k]) for k, name in enumerate(names)}
  metrics["images"] = len(scored)
  metrics["detections"] = sum(r["image_id"] in scored for r in results)
  return metrics


def table(metrics: dict[str, Any]) -> str:
  """Metrics of `evaluate` as text: COCO's 12 lines, AP at each IoU, AP of each class."""
  figure = lambda value: "    -" if value is None else f"{value:5.3f}"
  lines = []
  for name, (quantity, iou, area, detections) in FIGURES.items():
    title = "Average Precision  (AP)" if quantity == "precision" else "Average Recall     (AR)"
    ious = "0.50:0.95" if iou is None else f"{iou:.2f}     "
    at = f"IoU={ious} | area={area:>6} | maxDets={detections:>3}"
    lines.append(f" {title} @[ {at} ] = {figure(metrics[name])}")
  ious = metrics["AP_per_iou"]
  lines += ["", " IoU  " + "  ".join(f"{iou:>5}" for iou in ious)]
  lines += [" AP   " + "  ".join(map(figure, ious.values()))]
  classes = metrics["AP_per_class"]
  width = max(map(len, classes), default=0)
  cells = [f"{name:<{width}}  {figure(value)}" for name, value in classes.items()]
  columns = max(1, min(4, len(cells) // 8 + 1, 100 // (width + 10)))
  rows = -(-len(cells) // columns)
  per_class = [" " + "    ".join(cells[row::rows]) for row in range(rows)]  # read down, then right
  total = f" {metrics['detections']} detections in {metrics['images']} images"
  return "\n".join([*lines, "", " AP of each class", *per_class, "", total])


def load_ground_truth(ground_truth: dict[str, Any] | str | Path) -> tuple[dict[str, Any], str]:
  """COCO annotations, numbered from 1 (scoring needs no ids from outside), and their name in messages.

  A file is checked whole, see `read_coco`; content in memory for what scoring needs.
  """
  if isinstance(ground_truth, dict):
    source, content, without_id = "the ground truth", ground_truth, 0
    fields = {"images": {"id"}, "categories": {"id"}, "annotations": {"image_id", "category_id", "bbox"}}
    for name, needed in fields.items():
      if lacking := [row for row in content.get(name, [{}]) if not needed <= row.keys()]:
        raise UserError(f"{source}: {name} need {', '.join(sorted(needed))}, got {str(lacking[0])[:100]}")
    refuse_unknown_ids(content, source, content["annotations"], "annotations")
  else:
    source, file = str(ground_truth), read_coco(ground_truth, distinct_names=False)
    file.refuse_bad_records("mend them")
    content, without_id = to_coco(file.categories, file.annotations), file.defaults["id"]
  defaults = lambda a: {"id": 0, "iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3]}
  annotations = [defaults(a) | a for a in content["annotations"]]
  ids = {a["id"] for a in annotations}
  if without_id or 0 in ids or len(ids) < len(annotations):
    logging.warning("%s: annotation ids that are missing, 0 or repeated were renumbered for scoring", source)
  # All of them: pycocotools makes floats of ids and takes 0 for "no match", hotcoco refuses negative ones.
  annotations = [a | {"id": i} for i, a in enumerate(annotations, 1)]
  return {"info": {}} | content | {"annotations": annotations}, source


def refuse_unknown_ids(
  truth: dict[str, Any], source: str, rows: Sequence[dict[str, Any]], kind: str = "detections"
) -> None:
  """Raises a UserError for rows of images or categories that the ground truth does not have."""
  for key, table, what in (("image_id", "images", "image"), ("category_id", "categories", "category")):
    unknown = {row[key] for row in rows} - {row["id"] for row in truth[table]}
    _refuse_unknown(source, f"{kind} have {what} ids", unknown)


def _refuse_unknown(source: str, what: str, unknown: set[int]) -> None:
  if unknown:
    some = ", ".join(map(str, sorted(unknown)[:5])) + (", ..." if len(unknown) > 5 else "")
    why = f"{what} that {source} does not have: {some} ({len(unknown)} in all)"
    raise UserError(f"{why}; score against the annotations of the same images and categories")


def _scorer(truth: dict[str, Any], results: Sequence[dict[str, Any]], backend: str) -> Any:
  """A COCOeval of box detections, of one of the BACKENDS."""
  if backend not in BACKENDS:
    raise UserError(f"COCO backend {backend!r} is not known; use one of {', '.join(BACKENDS)}")
  if backend == "pycocotools":
    return pycocotools_scorer(truth, results)
  try:
    import hotcoco  # extra "fast-eval"
  except ImportError:
    remedy = "pip install -e '.[fast-eval]', or use pycocotools"
    raise UserError(f"COCO backend 'hotcoco' is not installed; {remedy}") from None
  expected = hotcoco.COCO(truth)
  return hotcoco.COCOeval(expected, expected.load_res(list(results)), "bbox")


def pycocotools_scorer(truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> COCOeval:
  """A COCOeval of box detections, not run yet; it adds fields to the annotations and prints its progress."""
  # What COCO.loadRes makes of results; it changes them in place, fails on none and adds outlines.
  area = lambda r: r["bbox"][2] * r["bbox"][3]
  found = [r | {"id": i, "area": area(r), "iscrowd": 0} for i, r in enumerate(results, 1)]
  expected, detected = COCO(), COCO()
  for coco, annotations in ((expected, truth["annotations"]), (detected, found)):
    coco.dataset = truth | {"annotations": annotations}
    coco.createIndex()
  return COCOeval(expected, detected, "bbox")


def _mean(table: Float[np.ndarray, "..."]) -> float | None:
  """Mean of the entries that have ground truth (the others are -1), as pycocotools' summarize."""
  present = table[table > -1]
  return float(np.mean(present)) if present.size else None
