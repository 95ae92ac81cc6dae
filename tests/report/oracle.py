"""Kinds of errors in plain loops, from the definitions of COCO's matching and of TIDE (arXiv:2008.08115)."""


def iou(a, b, inside=False):
  wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
  high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
  common = max(0.0, wide) * max(0.0, high)
  whole = a[2] * a[3] if inside else a[2] * a[3] + b[2] * b[3] - common
  return common / whole


def kinds_of_image(objects, detections):
  """The kind of each detection, and the objects that are missed.

  Args:
    objects: box, class, whether it is a crowd.
    detections: box, class, score; no two scores are the same.
  """
  owner = {}
  kinds = [""] * len(detections)
  for i in sorted(range(len(detections)), key=lambda i: -detections[i][2]):
    box, label, _ = detections[i]
    best, at = 0.5, None
    for k, (other, its_label, crowd) in enumerate(objects):
      if not crowd and its_label == label and k not in owner and iou(box, other) >= best:
        best, at = iou(box, other), k
    if at is not None:
      owner[at], kinds[i] = i, "right"
      continue
    crowds = [o for o, its_label, crowd in objects if crowd and its_label == label]
    if any(iou(box, o, inside=True) >= 0.5 for o in crowds):
      kinds[i] = "ignored"
  excused = set()
  for i, (box, label, _) in enumerate(detections):
    if kinds[i]:
      continue
    overlaps = [(iou(box, o), k, its) for k, (o, its, crowd) in enumerate(objects) if not crowd]
    own = max([(v, k) for v, k, its in overlaps if its == label], default=(0, None))
    other = max([(v, k) for v, k, its in overlaps if its != label], default=(0, None))
    if 0.1 <= own[0] < 0.5:
      kinds[i] = "place"
      excused.add(own[1])
    elif other[0] >= 0.5:
      kinds[i] = "class"
      excused.add(other[1])
    elif own[0] >= 0.5:
      kinds[i] = "duplicate"
    elif max(own[0], other[0]) < 0.1:
      kinds[i] = "false"
    else:
      kinds[i] = "both"
  objects_at = [k for k, (_, _, crowd) in enumerate(objects) if not crowd]
  return kinds, [k for k in objects_at if k not in owner and k not in excused]
