"""What the package should compute, as float64 loops over scalars. Never imports iou_det.

Boxes are x1, y1, x2, y2 in pixels, x2 and y2 exclusive.
"""

import itertools
import math

import numpy as np

MAX_LOG_RATIO = math.log(1000 / 16)


def area(box):
  return max(float(box[2]) - float(box[0]), 0.0) * max(float(box[3]) - float(box[1]), 0.0)


def iou(a, b):
  a, b = [float(x) for x in a], [float(x) for x in b]
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  overlap = width * height if width > 0 and height > 0 else 0.0
  union = area(a) + area(b) - overlap
  return overlap / union if union > 0 else 0.0


def pairwise_iou(a, b):
  return np.array([[iou(x, y) for y in b] for x in a]).reshape(len(a), len(b))


def encode(box, anchor):
  """dx, dy, dw, dh of one box from one anchor."""
  x1, y1, x2, y2 = (float(x) for x in box)
  ax1, ay1, ax2, ay2 = (float(x) for x in anchor)
  width, height = ax2 - ax1, ay2 - ay1
  dx = ((x1 + x2) / 2 - (ax1 + ax2) / 2) / width
  dy = ((y1 + y2) / 2 - (ay1 + ay2) / 2) / height
  return np.array([dx, dy, math.log((x2 - x1) / width), math.log((y2 - y1) / height)])


def decode(delta, anchor, max_log_ratio=MAX_LOG_RATIO):
  """The box at these offsets from one anchor."""
  dx, dy, dw, dh = (float(x) for x in delta)
  x1, y1, x2, y2 = (float(x) for x in anchor)
  width, height = x2 - x1, y2 - y1
  x, y = (x1 + x2) / 2 + dx * width, (y1 + y2) / 2 + dy * height
  width *= math.exp(max(-max_log_ratio, min(max_log_ratio, dw)))
  height *= math.exp(max(-max_log_ratio, min(max_log_ratio, dh)))
  return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])


def anchors(size, strides, scale, octaves, ratios, convention):
  """Anchors of all levels by level, row, column, ratio, octave."""
  out = []
  for stride in strides:
    rows, columns = math.ceil(size[0] / stride), math.ceil(size[1] / stride)
    cells = itertools.product(range(rows), range(columns), ratios, range(octaves))
    for row, column, ratio, octave in cells:
      side = scale * stride * 2 ** (octave / octaves)
      if convention == "torchvision":
        side = int(side)
      width, height = side / math.sqrt(ratio), side * math.sqrt(ratio)
      if convention == "modern":
        x, y = column * stride, row * stride
        out.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
      elif convention == "torchvision":
        x, y = column * (size[1] // columns), row * (size[0] // rows)
        w, h = round(width / 2), round(height / 2)
        out.append([x - w, y - h, x + w, y + h])
      else:
        x, y, centre = column * stride, row * stride, 0.5 * (stride - 1)
        x1, x2 = round(centre - 0.5 * (width - 1)), round(centre + 0.5 * (width - 1))
        y1, y2 = round(centre - 0.5 * (height - 1)), round(centre + 0.5 * (height - 1))
        out.append([x + x1, y + y1, x + x2 + 1, y + y2 + 1])
  return np.array(out)


def match(
  anchors, boxes, valid, positive_iou, negative_iou, force_match, min_forced_iou, forced_target="box"
):
  """Ground truth of each anchor: its number, -1 for negative, -2 for ignored."""
  overlaps = pairwise_iou(anchors, boxes)
  real = [n for n in range(len(boxes)) if valid[n]]
  out, own = [], []
  for a in range(len(anchors)):
    best, index = 0.0, -1
    for n in real:
      if overlaps[a, n] > best:
        best, index = overlaps[a, n], n
    own.append(index)
    out.append(index if best >= positive_iou else -2 if best >= negative_iou else -1)
  if force_match:
    for n in real:
      best = max((overlaps[a, n] for a in range(len(anchors))), default=0.0)
      if best > 0 and best >= min_forced_iou:
        for a in range(len(anchors)):
          if overlaps[a, n] == best:
            out[a] = n if forced_target == "box" else own[a]
  return np.array(out, int)


def sigmoid_focal_loss(logit, target, alpha, gamma):
  """-alpha_t (1 - p_t)^gamma log(p_t) of one logit; only for logits that float64's exp can take."""
  p = 1 / (1 + math.exp(-float(logit)))
  if target:
    return -alpha * (1 - p) ** gamma * math.log(p)
  return -(1 - alpha) * p**gamma * math.log(1 - p)


def smooth_l1(d, delta):
  d = abs(float(d))
  return d * d / (2 * delta) if d <= delta else d - delta / 2


def balanced_weights(loss, iou, positive, exponent, level_sizes):
  """Eq. (2) and (5) for loss, iou, positive [batch, anchors]; 0 where not positive."""
  weights = np.zeros(loss.shape)
  start = 0
  for size in level_sizes:
    members = [
      (b, a) for b in range(loss.shape[0]) for a in range(start, start + size) if positive[b, a]
    ]  # fmt: skip
    before = sum(float(loss[i]) for i in members)
    after = sum(float(iou[i]) ** exponent * float(loss[i]) for i in members)
    for i in members:
      weights[i] = float(iou[i]) ** exponent * before / after
    start += size
  return weights
