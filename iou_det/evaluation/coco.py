"""COCO metrics: ground truth and detections in COCO's JSON formats, scored by pycocotools."""

import contextlib
import importlib.util
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float, Int
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from iou_det.data.source import Category
from iou_det.errors import UserError

# Name, the words of COCO's table: (quantity, IoU, area, detections per image).
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
  labels: Int[np.ndarray, " n"],
  categories: Sequence[Category],
) -> list[dict[str, Any]]:
  """Detections of one image in COCO's results format.

  Args:
    boxes: x1, y1, x2, y2 in pixels of the original image, x2 and y2 exclusive.
    labels: 0..K-1, indices into `categories`.

  Returns:
    One dict a detection: image_id, category_id (original), bbox (x, y, w, h in pixels), score; not rounded.
  """
  return [
    {"image_id": int(image_id), "category_id": categories[int(label)].id, "bbox": _xywh(box),
     "score": float(score)}
    for box, score, label in zip(boxes, scores, labels, strict=True)
  ]  # fmt: skip


def evaluate(
  ground_truth: dict[str, Any] | str | Path,
  results: Sequence[dict[str, Any]],
  *,
  image_ids: Iterable[int] | None = None,
  backend: str = "pycocotools",
) -> dict[str, Any]:
  """Scores detections with COCO's box metrics.

  Args:
    ground_truth: COCO annotation file, or its content.
    results: COCO results; neither they nor `ground_truth` are changed.
    image_ids: score these images only; default: all of the ground truth, with or without boxes.
    backend: "pycocotools" (the number of record), or "hotcoco" (extra fast-eval; the same figures, sooner).

  Returns:
    AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl in [0, 1], None where there is no ground truth to
    recall; AP_per_iou {"0.50": ...}; AP_per_class {name: ...}, a name that several categories share is
    followed by the id; images and detections: how many were scored.

  Raises:
    UserError: the file cannot be read or is no COCO annotation file; detections, or image_ids, of images
      or categories that it does not have.
  """
  truth, source = load_ground_truth(ground_truth)
  known = {image["id"] for image in truth["images"]}
  scored = known if image_ids is None else set(image_ids)
  chosen = sorted(scored)
  _refuse_unknown(source, "image_ids asks for image ids", scored - known)
  refuse_unknown_ids(truth, source, results)
  ordered = sorted(truth["categories"], key=lambda c: c["id"])  # as COCOeval orders them
  precision, recall = _accumulate(truth, results, chosen, [c["id"] for c in ordered], backend)
  metrics: dict[str, Any] = {}
  for name, (quantity, iou, area, detections) in FIGURES.items():
    table = precision if quantity == "precision" else recall
    at = slice(None) if iou is None else slice(IOUS.index(iou), IOUS.index(iou) + 1)
    metrics[name] = _mean(table[at][..., AREAS.index(area), MAX_DETECTIONS.index(detections)])
  at_100 = precision[..., 0, -1]
  metrics["AP_per_iou"] = {f"{iou:.2f}": _mean(at_100[i]) for i, iou in enumerate(IOUS)}
  metrics["AP_per_class"] = {
    name: _mean(at_100[:, :, k]) for k, name in enumerate(_distinct_names(ordered))
  }  # fmt: skip
  metrics["images"] = len(chosen)
  metrics["detections"] = sum(r["image_id"] in scored for r in results)
  return metrics


def table(metrics: dict[str, Any]) -> str:
  """Metrics of `evaluate` as text: COCO's 12 lines, AP at each IoU, AP of each class."""
  lines = []
  for name, (quantity, iou, area, detections) in FIGURES.items():
    title = "Average Precision  (AP)" if quantity == "precision" else "Average Recall     (AR)"
    ious = "0.50:0.95" if iou is None else f"{iou:.2f}     "
    lines.append(
      f" {title} @[ IoU={ious} | area={area:>6} | maxDets={detections:>3} ] = {_figure(metrics[name])}"
    )
  ious = metrics["AP_per_iou"]
  lines += ["", " IoU  " + "  ".join(f"{iou:>5}" for iou in ious)]
  lines += [" AP   " + "  ".join(_figure(value) for value in ious.values())]

  classes = metrics["AP_per_class"]
  width = max(map(len, classes), default=0)
  cells = [f"{name:<{width}}  {_figure(value)}" for name, value in classes.items()]
  columns = max(1, min(4, len(cells) // 8 + 1, 100 // (width + 10)))
  rows = -(-len(cells) // columns)
  lines += ["", " AP of each class"]
  lines += [" " + "    ".join(cells[row::rows]) for row in range(rows)]  # read down, then right
  return "\n".join(lines + ["", f" {metrics['detections']} detections in {metrics['images']} images"])


def _figure(value: float | None) -> str:
  return "    -" if value is None else f"{value:5.3f}"


def _xywh(box: Float[np.ndarray, " 4"]) -> list[float]:
  x1, y1, x2, y2 = box.astype(np.float64).tolist()
  return [x1, y1, x2 - x1, y2 - y1]


def load_ground_truth(ground_truth: dict[str, Any] | str | Path) -> tuple[dict[str, Any], str]:
  """COCO annotations, numbered from 1 (scoring needs no ids from outside), and their name in messages."""
  if isinstance(ground_truth, dict):
    content, source = ground_truth, "the ground truth"
  else:
    source = str(ground_truth)
    try:
      content = json.loads(Path(ground_truth).read_text())
    except OSError as error:
      raise UserError(f"cannot read the annotation file {source}: {error.strerror}") from error
    except ValueError as error:
      raise UserError(f"{source} is no JSON file ({error}); give a COCO annotation file") from error
  needed = ("images", "annotations", "categories")
  missing = [key for key in needed if not isinstance(content, dict) or key not in content]
  if missing:
    raise UserError(f"{source} is no COCO annotation file: it has no {', '.join(missing)}")
  for image in content["images"]:
    if "id" not in image:
      raise UserError(f"{source}: an image has no id: {str(image)[:100]}")
  for row in content["annotations"]:
    lacking = [key for key in ("image_id", "category_id", "bbox") if key not in row]
    if lacking:
      raise UserError(f"{source}: an annotation has no {', '.join(lacking)}: {str(row)[:100]}")
  images, categories = ({row["id"] for row in content[key]} for key in ("images", "categories"))
  shown = {a["image_id"] for a in content["annotations"]}
  _refuse_unknown(source, "annotations have image ids", shown - images)
  used = {a["category_id"] for a in content["annotations"]}
  _refuse_unknown(source, "annotations have category ids", used - categories)
  annotations = [{"iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3]} | a for a in content["annotations"]]
  ids = {a.get("id", 0) for a in annotations}
  if 0 in ids or len(ids) < len(annotations):
    logging.warning("%s: annotation ids that are missing, 0 or repeated were renumbered for scoring", source)
  # All of them: pycocotools makes floats of ids and takes 0 for "no match", hotcoco refuses negative ones.
  annotations = [a | {"id": i} for i, a in enumerate(annotations, 1)]
  return {"info": {}} | content | {"annotations": annotations}, source


def refuse_unknown_ids(truth: dict[str, Any], source: str, results: Sequence[dict[str, Any]]) -> None:
  """Raises a UserError for detections of images or categories that the ground truth does not have."""
  for key, table, what in (("image_id", "images", "image"), ("category_id", "categories", "category")):
    unknown = {r[key] for r in results} - {row["id"] for row in truth[table]}
    _refuse_unknown(source, f"detections have {what} ids", unknown)


def _refuse_unknown(source: str, what: str, unknown: set[int]) -> None:
  if unknown:
    some = ", ".join(map(str, sorted(unknown)[:5]))
    raise UserError(
      f"{what} that {source} does not have: {some}{', ...' if len(unknown) > 5 else ''} "
      f"({len(unknown)} in all); score against the annotations of the same images and categories"
    )


def _accumulate(
  truth: dict[str, Any],
  results: Sequence[dict[str, Any]],
  image_ids: list[int],
  category_ids: list[int],
  backend: str,
) -> tuple[Float[np.ndarray, "ious recalls classes areas max"], Float[np.ndarray, "ious classes areas max"]]:
  """COCOeval's precision and recall tables; -1 where there is no ground truth."""
  if backend not in BACKENDS:
    raise UserError(f"COCO backend {backend!r} is not known; use one of {', '.join(BACKENDS)}")
  if backend == "hotcoco" and importlib.util.find_spec("hotcoco") is None:
    raise UserError(
      "COCO backend 'hotcoco' is not installed; pip install -e '.[fast-eval]', or use pycocotools"
    )
  with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
    if backend == "hotcoco":
      import hotcoco  # extra "fast-eval"

      expected = hotcoco.COCO(truth)
      scorer = hotcoco.COCOeval(expected, expected.load_res(list(results)), "bbox")
    else:
      scorer = pycocotools_scorer(truth, results)
    scorer.params.imgIds = image_ids
    scorer.params.catIds = category_ids
    scorer.evaluate()
    scorer.accumulate()
  tables: Any = scorer.eval
  return np.asarray(tables["precision"]), np.asarray(tables["recall"])


def pycocotools_scorer(truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> COCOeval:
  """A COCOeval of box detections, not run yet; it prints its progress.

  Args:
    truth: as `load_ground_truth` returns it; COCOeval adds fields to its annotations.
    results: COCO results; they stay as they are.
  """
  expected = _pycocotools(truth, truth["annotations"])
  return COCOeval(expected, _pycocotools(truth, _as_annotations(results)), "bbox")


def _pycocotools(truth: dict[str, Any], annotations: list[dict[str, Any]]) -> COCO:
  coco = COCO()
  coco.dataset = truth | {"annotations": annotations}
  coco.createIndex()
  return coco


def _as_annotations(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """What COCO.loadRes makes of results; it changes them in place, fails on none and adds outlines."""
  return [
    r | {"id": i, "area": r["bbox"][2] * r["bbox"][3], "iscrowd": 0} for i, r in enumerate(results, 1)
  ]  # fmt: skip


def _mean(table: Float[np.ndarray, "..."]) -> float | None:
  """Mean of the entries that have ground truth (the others are -1), as pycocotools' summarize."""
  present = table[table > -1]
  return float(np.mean(present)) if present.size else None


def _distinct_names(categories: Sequence[dict[str, Any]]) -> list[str]:
  count = Counter(c["name"] for c in categories)
  return [c["name"] if count[c["name"]] == 1 else f"{c['name']} (id {c['id']})" for c in categories]
