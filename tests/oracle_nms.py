"""NMS as float64 loops over scalars, class by class. Never imports iou_det."""

import math

import numpy as np

from tests.oracles import iou


def nms(boxes, scores, iou_threshold, score_threshold, max_detections):
  """Per-class greedy NMS, then the best of all classes: [(box, class, score)], best first."""
  kept = []
  for label in range(scores.shape[1]):
    mine = []
    entering = [box for box in range(len(boxes)) if scores[box, label] > score_threshold]  # no NaN
    for box in sorted(entering, key=lambda b: (-scores[b, label], b)):
      if all(iou(boxes[box], boxes[other]) <= iou_threshold for other in mine):
        mine.append(box)
    kept += [(box, label, float(scores[box, label])) for box in mine]
  return sorted(kept, key=lambda k: (-k[2], k[0], k[1]))[:max_detections]


def soft_nms(boxes, scores, method, iou_threshold, sigma, score_threshold, max_detections):
  """Figure 2 of arXiv:1704.04503 for each class, then the best of all classes: [(box, class, score)]."""
  kept = []
  for label in range(scores.shape[1]):
    left = {b: float(s) for b, s in enumerate(scores[:, label]) if s > score_threshold}
    while left:
      best = max(left, key=left.get)
      kept.append((best, label, left.pop(best)))
      for other in list(left):
        u = iou(boxes[best], boxes[other])
        if method == "gaussian":
          left[other] *= math.exp(-u * u / sigma)
        elif u > iou_threshold:
          left[other] *= 1 - u
        if not left[other] > score_threshold:
          del left[other]
  return sorted(kept, key=lambda k: (-k[2], k[0], k[1]))[:max_detections]


def over_all_classes(suppress, boxes, scores):
  """`suppress(boxes, scores)`, as above, of the best class of each box alone: [(box, class, score)]."""
  best = []
  for row in scores:
    label = 0
    for other in range(1, len(row)):
      if row[other] > row[label] or math.isnan(row[label]):
        label = other
    best.append(label)
  kept = suppress(boxes, np.array([[row[label]] for row, label in zip(scores, best, strict=True)]))
  return [(box, best[box], score) for box, _, score in kept]


def best_pairs(scores, score_threshold, max_detections):
  """The best pairs, nothing suppressed: [(box, class, score)]."""
  pairs = [(box, label, float(s)) for box, row in enumerate(scores) for label, s in enumerate(row)]
  return sorted((p for p in pairs if p[2] > score_threshold), key=lambda p: -p[2])[:max_detections]
