"""Pictures of what runs found and missed, the worst first, and counts of all errors at every score."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from absl import logging
from jaxtyping import Int

from iou_det.data.images import Unreadable, open_picture
from iou_det.data.source import Source
from iou_det.evaluation import coco
from iou_det.report.kinds import KINDS, group, judge
from iou_det.report.runs import Run

SIDE, QUALITY = 640, 82  # of a picture on the page: pixels of its longer side, at the most; of WebP
STEPS = 100  # of the slider: scores from 0 to 1
FINE = 100  # parts of a step, to which scores are rounded down: page and counts then compare whole numbers
ERRORS = ("missed", "false", "place", "class", "both", "duplicate")
COUNTED = (*ERRORS, "right")

Marks = dict[str, tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]]  # of each of COUNTED: classes, scores


class Findings:
  """What one run found in all images, as columns."""

  def __init__(self, run: Run, truth: dict[str, Any]) -> None:
    found, annotations = run.detections, truth["annotations"]
    place = {c.id: i for i, c in enumerate(run.categories)}
    self.name, self.box = run.name, found.bbox
    # Not of 0.56999999, which is 0.57 in float32.
    self.score = np.floor(np.round(np.clip(found.score, 0, 1) * STEPS * FINE, 2)).astype(int)
    self.label = np.array([place[c] for c in found.category_id.tolist()], int)
    self.kind, self.object = judge(truth, found)
    self.rows = group(found.image_id)
    self.objects = group(np.array([a["image_id"] for a in annotations], int))
    self.object_label = np.array([place[a["category_id"]] for a in annotations], int)
    self.crowd = np.array([a["iscrowd"] for a in annotations], bool)
    # The score up to which an object is not missed: see `judge`.
    self.noticed = np.full(len(annotations), -1)
    notices = np.isin(self.kind, [KINDS.index(k) for k in ("right", "place", "class")])
    np.maximum.at(self.noticed, self.object[notices], self.score[notices])

  def marks(self, image_id: int | None = None) -> Marks:
    """Of an image, or of all. They count at thresholds up to their score; "missed" above it."""
    none = np.zeros(0, int)
    there, rows = (
      np.arange(len(all_of)) if image_id is None else of.get(image_id, none)
      for of, all_of in ((self.objects, self.crowd), (self.rows, self.kind))
    )
    there = there[~self.crowd[there]]
    marks = {"missed": (self.object_label[there], self.noticed[there])}
    for kind in COUNTED[1:]:
      of_kind = rows[self.kind[rows] == KINDS.index(kind)]
      marks[kind] = self.label[of_kind], self.score[of_kind]
    return marks


def labels_at(marks: Marks, threshold: int) -> dict[str, Int[np.ndarray, " _"]]:
  """Of each of COUNTED the classes of those that count at a threshold of 0 to STEPS."""
  counts = lambda kind, scores: (scores < threshold * FINE) == (kind == "missed")
  return {kind: labels[counts(kind, scores)] for kind, (labels, scores) in marks.items()}


def make_gallery(runs: Sequence[Run], budget_bytes: int) -> dict[str, Any]:
  """What the page draws: as many pictures as fit, those with the most errors of all runs together first.

  Before them come the first of these that have a class or a kind of error that none before has. All at the
  threshold at which the mean F1 of the runs is best. Pictures that cannot be read are left out and counted.
  """
  truth, _ = coco.load_ground_truth(runs[0].truth)
  found, source = [Findings(run, truth) for run in runs], runs[0].source
  threshold = best_threshold(found)
  order, has = rank(found, source, threshold)
  images: list[dict[str, Any]] = []
  classes = [c.name for c in source.categories]
  counts = [by_step(f.marks(), len(classes)) for f in found]
  budget_bytes -= len(json.dumps([classes, counts]))
  unread, reason, shown = 0, "", set[str | int]()
  for i in order:
    try:
      image = describe(source, i, found, truth)
    except (Unreadable, OSError) as error:
      unread, reason = unread + 1, reason or f"{source.annotations.file_name[i]}: {error}"
      continue
    budget_bytes -= len(json.dumps(image))
    if budget_bytes < 0:
      break
    images.append(image)
    shown |= has[i]
  if unread:
    logging.warning(f"{unread} pictures cannot be read and are not on the page, the first {reason}")
  return {
    "runs": [f.name for f in found],
    "classes": classes,
    "kinds": KINDS,
    "counted": COUNTED,
    "steps": STEPS,
    "fine": FINE,
    "threshold": threshold,
    "counts": counts,
    "total": len(source),
    "unread": unread,
    "unshown": [classes[x] for x in sorted(x for x in set.union(set(), *has) - shown if isinstance(x, int))],
    "images": images,
  }


def best_threshold(found: Sequence[Findings]) -> int:
  """At which F1 of all classes together is best, in the mean over the runs: 0 to STEPS."""
  totals = []
  for f in found:
    above = lambda scores: np.bincount(scores // FINE, minlength=STEPS + 1)[::-1].cumsum()[::-1]
    marks = f.marks()
    right = above(marks["right"][1])
    detections = sum(above(scores) for kind, (_, scores) in marks.items() if kind != "missed")
    totals.append(2 * right / np.maximum(detections + len(marks["missed"][1]), 1))
  return int(np.mean(totals, axis=0).argmax())


def rank(found: Sequence[Findings], source: Source, threshold: int) -> tuple[list[int], list[set[str | int]]]:
  """The order of the images, see `make_gallery`; and of each image the kinds and the classes that it has."""
  has: list[set[str | int]] = []
  errors = []
  for i, image_id in enumerate(source.annotations.image_id.tolist()):
    runs = [labels_at(f.marks(image_id), threshold) for f in found]
    errors.append(sum(len(labels[kind]) for labels in runs for kind in ERRORS))
    of_objects = source.annotations.label[source.annotations.rows(i)].tolist()
    kinds = [kind for labels in runs for kind, those in labels.items() if len(those)]
    classes = np.concatenate([those for labels in runs for those in labels.values()]).tolist()
    has.append({*of_objects, *kinds, *classes})
  worst = sorted(range(len(has)), key=lambda i: (-errors[i], i))
  first, seen = [], set[str | int]()
  for i in worst:
    if has[i] - seen:
      first.append(i)
      seen |= has[i]
  begins = set(first)
  return first + [i for i in worst if i not in begins], has


def by_step(marks: Marks, classes: int) -> dict[str, list[list[int]]]:
  """Of each of COUNTED and each class: step, number, step, number, ...: how many have scores in that step.

  What counts at no threshold ("missed" that is missed at all) is in the step -1.
  """
  counts: dict[str, list[list[int]]] = {}
  for kind, (labels, scores) in marks.items():
    counts[kind] = [[] for _ in range(classes)]
    pairs, numbers = np.unique(np.stack([labels, scores // FINE]), axis=1, return_counts=True)
    for label, step, number in zip(*pairs.tolist(), numbers.tolist(), strict=True):
      counts[kind][label] += [step, number]
  return counts


def describe(source: Source, i: int, found: Sequence[Findings], truth: dict[str, Any]) -> dict[str, Any]:
  """An image with what is drawn on it; boxes are x, y, w, h in pixels of the original."""
  record = source[i]
  pixels = open_picture(record.image, record.exif, (record.height, record.width)).pixels
  height, width = pixels.shape[:2]
  shrink = min(1.0, SIDE / max(height, width))
  if shrink < 1:
    size = max(1, round(shrink * width)), max(1, round(shrink * height))
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
  encoded = cv2.imencode(".webp", pixels[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, QUALITY])[1]
  rounded = lambda box: [round(v, 1) for v in box]
  there = found[0].objects.get(record.image_id, np.zeros(0, int)).tolist()
  place = {-1: -1} | {row: k for k, row in enumerate(there)}
  of_run = lambda f: [
    [*rounded(f.box[r].tolist()), int(f.score[r]), int(f.label[r]), int(f.kind[r]), place[int(f.object[r])]]
    for r in sorted(f.rows.get(record.image_id, ()), key=lambda r: -f.score[r])
  ]
  return {
    "id": record.image_id,
    "file": record.file_name,
    "width": width,
    "height": height,
    "picture": f"data:image/webp;base64,{base64.b64encode(encoded.tobytes()).decode()}",
    "objects": [
      [*rounded(truth["annotations"][k]["bbox"]), int(found[0].object_label[k]), int(found[0].crowd[k])]
      for k in there
    ],
    "found": [of_run(f) for f in found],
  }
