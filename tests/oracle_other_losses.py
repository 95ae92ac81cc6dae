"""The methods of iou_det/ops/other_losses.py as float64 loops over scalars. Never imports iou_det."""

import math
from collections import Counter, defaultdict

import numpy as np


def balanced_l1(d, alpha, gamma, beta):
  """Integral of the slope alpha ln(b x + 1), x = |d| / beta, by the trapezoidal rule; gamma beyond beta."""
  b = math.exp(gamma / alpha) - 1
  size = abs(float(d))
  x = np.linspace(0, min(size, beta), 20001)
  slope = alpha * np.log(b * x / beta + 1)
  return float(((slope[1:] + slope[:-1]) / 2 * np.diff(x)).sum()) + gamma * max(size - beta, 0.0)


def bounded_iou_loss(box, target, beta):
  """Loss of x, y, w, h from boxes x1, y1, x2, y2 in pixels."""
  out = []
  for low, high in ((0, 2), (1, 3)):
    shift = abs((box[low] + box[high]) / 2 - (target[low] + target[high]) / 2)
    size = target[high] - target[low]
    out.append(max(0.0, (size - 2 * shift) / (size + 2 * shift)))
  for low, high in ((0, 2), (1, 3)):
    ratio = (box[high] - box[low]) / (target[high] - target[low])
    out.append(min(ratio, 1 / ratio))
  costs = [1 - x for x in out]
  return np.array([2 * (c * c / (2 * beta) if c < beta else c - beta / 2) for c in costs])


def giou_loss(box, target):
  """1 - GIoU of two boxes x1, y1, x2, y2, by the authors' steps."""
  (x1, y1, x2, y2), (u1, v1, u2, v2) = ([float(x) for x in b] for b in (box, target))
  width, height = min(x2, u2) - max(x1, u1), min(y2, v2) - max(y1, v1)
  overlap = width * height if width > 0 and height > 0 else 0.0
  union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - overlap
  hull = (max(x2, u2) - min(x1, u1)) * (max(y2, v2) - min(y1, v1))
  iou = overlap / union if union > 0 else 0.0
  return 1 - (iou - (hull - union) / hull if hull > 0 else iou)


def binary_entropy(logit, target):
  """-t log(p) - (1 - t) log(1 - p); only for logits that float64's exp can take."""
  p = 1 / (1 + math.exp(-logit))
  return -target * math.log(p) - (1 - target) * math.log1p(-p)


def quality_focal_loss(logit, quality, beta):
  return abs(quality - 1 / (1 + math.exp(-logit))) ** beta * binary_entropy(logit, quality)


def varifocal_loss(logit, positive, quality, alpha, gamma, weighted):
  if positive:
    return binary_entropy(logit, quality) * (quality if weighted else 1)
  p = 1 / (1 + math.exp(-logit))
  return alpha * p**gamma * -math.log1p(-p)


def concordance_loss(scores, iou, positive):
  """By numpy's covariance matrix of the positives."""
  s, u = (np.asarray(x, np.float64)[positive] for x in (scores, iou))
  if len(s) < 2:
    return 0.0
  (var_s, cov), (_, var_u) = np.cov(s, u, ddof=0)
  return 1 - 2 * cov / (var_s + var_u + (s.mean() - u.mean()) ** 2)


def isr_weights(loss, iou, target, box_index, gamma, beta):
  """For loss, target [batch, anchors, classes] and iou, box_index [batch, anchors]."""
  of_box = defaultdict(list)
  for i in np.ndindex(iou.shape):
    if target[i].any():
      of_box[i[0], int(box_index[i]), int(np.argmax(target[i]))].append(i)
  ranks, counts = {}, Counter()
  for label in range(target.shape[2]):
    queues = [
      sorted(members, key=lambda i: -iou[i]) for key, members in sorted(of_box.items()) if key[2] == label
    ]
    # First all the best of their ground truths, then all the second best, ...
    while any(queues):
      front = [queue.pop(0) for queue in queues if queue]
      for i in sorted(front, key=lambda i: -iou[i]):
        ranks[i] = counts[label]
        counts[label] += 1
  most = max(counts.values(), default=0)
  raw = {i: ((1 - beta) * (most - rank) / most + beta) ** gamma for i, rank in ranks.items()}
  own = {i: float(loss[i][target[i]][0]) for i in ranks}
  weights = np.ones(loss.shape)
  for i in ranks:
    weights[i][target[i]] = raw[i] * sum(own.values()) / sum(raw[j] * own[j] for j in ranks)
  return weights
