"""COCO metrics: ground truth and detections in COCO's JSON formats, scored by pycocotools."""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from iou_det.data.coco import read_coco, to_coco
from iou_det.errors import UserError
from iou_det.streams import columns_of, one_line

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


CHUNK = 10_000  # detections that are dicts at a time
EXACT = 2**53  # integers up to here are float64 too


@dataclass(frozen=True, eq=False)
class Results:
  """Detections of any number of images in the order found: COCO's results as arrays.

  Attributes:
    category_id: original ids.
    bbox: x, y, w, h in pixels of the original image, not rounded.
  """

  image_id: Int[np.ndarray, " n"]
  category_id: Int[np.ndarray, " n"]
  bbox: Float[np.ndarray, "n 4"]
  score: Float[np.ndarray, " n"]

  def __len__(self) -> int:
    return len(self.score)

  @classmethod
  def of(cls, rows: Sequence[dict[str, Any]]) -> "Results":
    """Of COCO's format: a dict for each detection."""
    column = lambda name, dtype: np.array([row[name] for row in rows], dtype)
    boxes = column("bbox", np.float64).reshape(-1, 4)
    return cls(
      column("image_id", np.int64), column("category_id", np.int64), boxes, column("score", np.float64)
    )

  @classmethod
  def join(cls, parts: Sequence["Results"]) -> "Results":
    """All of them, one after the other."""
    every = [cls.of([]), *parts]
    return cls(*(np.concatenate([getattr(part, name) for part in every]) for name in cls.__annotations__))

  def __getitem__(self, which: slice | Bool[np.ndarray, " n"]) -> "Results":
    return Results(self.image_id[which], self.category_id[which], self.bbox[which], self.score[which])

  def rows(self) -> Iterator[dict[str, Any]]:
    """Dicts in COCO's format, few of them made ahead."""
    for start in range(0, len(self), CHUNK):
      part = self[start : start + CHUNK]
      columns = (part.image_id, part.category_id, part.bbox, part.score)
      for image, category, box, score in zip(*(c.tolist() for c in columns), strict=True):
        yield {"image_id": image, "category_id": category, "bbox": box, "score": score}

  def as_json(self) -> Iterator[bytes]:
    """A file in COCO's format, in pieces: what `json.dumps` makes of the list of all rows, and a newline."""
    yield b"["
    for start in range(0, len(self), CHUNK):
      yield b", "[: 2 * (start > 0)] + json.dumps(list(self[start : start + CHUNK].rows()))[1:-1].encode()
    yield b"]\n"


def to_results(
  image_id: Int[np.ndarray, " n"],
  boxes: Float[np.ndarray, "n 4"],
  scores: Float[np.ndarray, " n"],
  category_ids: Int[np.ndarray, " n"],
) -> Results:
  """Detections in COCO's results format: original category ids, x, y, w, h; not rounded.

  Args:
    boxes: x1, y1, x2, y2 in pixels of the original image, x2 and y2 exclusive.
  """
  corners = boxes.astype(np.float64)
  xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
  return Results(image_id, category_ids, xywh, scores)


def choose_backend(backend: str) -> str:
  """One of the BACKENDS, which is installed, or a UserError; "auto": hotcoco where there is one."""
  if backend not in ("auto", *BACKENDS):
    raise UserError(f"COCO backend {backend!r} is not known; use one of {', '.join(BACKENDS)}, auto")
  if backend == "pycocotools":
    return backend
  try:
    import hotcoco  # noqa: F401
  except ImportError:
    if backend == "auto":
      return "pycocotools"
    remedy = "pip install -e '.[fast-eval]', or use pycocotools"
    raise UserError(f"COCO backend 'hotcoco' is not installed; {remedy}") from None
  return "hotcoco"


def evaluate(
  ground_truth: dict[str, Any] | str | Path,
  results: Results,
  *,
  image_ids: Iterable[int] | None = None,
  backend: str = "pycocotools",
) -> dict[str, Any]:
  """Scores detections with COCO's box metrics.

  Args:
    ground_truth: COCO annotation file, or its content; it is not changed.
    image_ids: score these images only; default: all of the ground truth, with or without boxes.
    backend: "pycocotools" (the number of record), "hotcoco" (extra fast-eval; the same figures, sooner) or
      "auto", see `choose_backend`.

  Returns:
    The FIGURES in [0, 1], None where there is no ground truth to recall; AP_per_iou {"0.50": ...};
    AP_per_class {name: ...}, a name that several categories share is followed by the id; images and
    detections: how many were scored.
  """
  backend = choose_backend(backend)
  truth, source = load_ground_truth(ground_truth)
  known = {image["id"] for image in truth["images"]}
  scored = known if image_ids is None else set(image_ids)
  _refuse_unknown(source, "image_ids asks for image ids", scored - known)
  refuse_unknown_ids(truth, source, results.image_id.tolist(), results.category_id.tolist())
  ordered = sorted(truth["categories"], key=lambda c: c["id"])  # as COCOeval orders them
  scorer = accumulated(truth, results, sorted(scored), backend)
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
  metrics["detections"] = int(np.isin(results.image_id, sorted(scored)).sum())
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
  classes = [(one_line(name), value) for name, value in metrics["AP_per_class"].items()]
  width = max((columns_of(name) for name, _ in classes), default=0)
  cells = [f"{name}{' ' * (width - columns_of(name))}  {figure(value)}" for name, value in classes]
  columns = max(1, min(4, len(cells) // 8 + 1, 100 // (width + 10)))
  rows = -(-len(cells) // columns)
  per_class = [" " + "    ".join(cells[row::rows]) for row in range(rows)]  # read down, then right
  total = f" {metrics['detections']} detections in {metrics['images']} images"
  return "\n".join([*lines, "", " AP of each class", *per_class, "", total])


def load_ground_truth(
  ground_truth: dict[str, Any] | str | Path, skip_bad: bool = False
) -> tuple[dict[str, Any], str]:
  """COCO annotations, numbered from 1 (scoring needs no ids from outside), and their name in messages.

  A file is checked whole, see `read_coco`; content in memory for what scoring needs.
  """
  if isinstance(ground_truth, dict):
    source, content = "the ground truth", ground_truth
    fields = {"images": {"id"}, "categories": {"id"}, "annotations": {"image_id", "category_id", "bbox"}}
    for name, needed in fields.items():
      if lacking := [row for row in content.get(name, [{}]) if not needed <= row.keys()]:
        raise UserError(f"{source}: {name} need {', '.join(sorted(needed))}, got {str(lacking[0])[:100]}")
    images, categories = ([a[k] for a in content["annotations"]] for k in ("image_id", "category_id"))
    refuse_unknown_ids(content, source, images, categories, "annotations")
  else:
    source, labels = str(ground_truth), read_coco(ground_truth)
    labels.settle(skip_bad)
    labels.log(source)
    content = to_coco(labels.categories, labels.annotations)
  defaults = lambda a: {"id": 0, "iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3]}
  annotations = [defaults(a) | a for a in content["annotations"]]
  ids = {a["id"] for a in annotations}
  if 0 in ids or len(ids) < len(annotations):
    logging.warning("%s: annotation ids that are missing, 0 or repeated were renumbered for scoring", source)
  # All of them: pycocotools makes floats of ids and takes 0 for "no match", hotcoco refuses negative ones.
  annotations = [a | {"id": i} for i, a in enumerate(annotations, 1)]
  return {"info": {}} | content | {"annotations": annotations}, source


def refuse_unknown_ids(
  truth: dict[str, Any],
  source: str,
  image_ids: Iterable[int],
  category_ids: Iterable[int],
  kind: str = "detections",
) -> None:
  """Raises a UserError for images or categories of some rows that the ground truth does not have."""
  for ids, table, what in ((image_ids, "images", "image"), (category_ids, "categories", "category")):
    _refuse_unknown(source, f"{kind} have {what} ids", set(ids) - {row["id"] for row in truth[table]})


def _refuse_unknown(source: str, what: str, unknown: set[int]) -> None:
  if unknown:
    some = ", ".join(map(str, sorted(unknown)[:5])) + (", ..." if len(unknown) > 5 else "")
    why = f"{what} that {source} does not have: {some} ({len(unknown)} in all)"
    raise UserError(f"{why}; score against the annotations of the same images and categories")


def accumulated(truth: dict[str, Any], results: Results, image_ids: Sequence[int], backend: str) -> Any:
  """A COCOeval of box detections of all classes, of one of the BACKENDS, that has matched and accumulated.

  Args:
    truth: of `load_ground_truth`.
  """
  with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
    scorer = _scorer(truth, results, backend)
    scorer.params.imgIds = image_ids
    scorer.params.catIds = sorted(c["id"] for c in truth["categories"])
    scorer.evaluate()
    scorer.accumulate()
  return scorer


def _scorer(truth: dict[str, Any], results: Results, backend: str) -> Any:
  """A COCOeval of box detections, of one of the BACKENDS."""
  if backend == "pycocotools":
    return pycocotools_scorer(truth, results)
  import hotcoco  # extra "fast-eval"

  expected = hotcoco.COCO(truth)
  # Arrays are sooner than dicts, but one type for all columns.
  columns = (results.image_id, results.bbox, results.score, results.category_id)
  exact = np.abs(results.image_id).max(initial=0) <= EXACT
  found = np.column_stack(columns).astype(np.float64) if exact else list(results.rows())
  return hotcoco.COCOeval(expected, expected.load_res(found), "bbox")


def pycocotools_scorer(truth: dict[str, Any], results: Results) -> COCOeval:
  """A COCOeval of box detections, not run yet; it adds fields to the annotations and prints its progress."""
  # What COCO.loadRes makes of results; it changes them in place, fails on none and adds outlines.
  area = lambda r: r["bbox"][2] * r["bbox"][3]
  found = [r | {"id": i, "area": area(r), "iscrowd": 0} for i, r in enumerate(results.rows(), 1)]
  expected, detected = COCO(), COCO()
  for coco, annotations in ((expected, truth["annotations"]), (detected, found)):
    coco.dataset = truth | {"annotations": annotations}
    coco.createIndex()
  return COCOeval(expected, detected, "bbox")


def _mean(table: Float[np.ndarray, "..."]) -> float | None:
  """Mean of the entries that have ground truth (the others are -1), as pycocotools' summarize."""
  present = table[table > -1]
  return float(np.mean(present)) if present.size else None
