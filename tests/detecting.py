"""Detections of one view of each image, from the network's outputs: what a `Detector` does behind them."""

import itertools

from iou_det.ops.detection import find_candidates, suppress

FIND = ("ious", "anchors", "image_size", "scale", "inside", "convention", "candidates_per_level", "mirror")


def levels(rows, sizes):
  """Of [batch, anchors, values], [batch, rows, columns, cell's anchors * values] each, as networks return."""
  ends = itertools.accumulate(sizes)
  return [rows[:, end - size : end][:, :, None] for size, end in zip(sizes, ends, strict=True)]


def candidates(logits, deltas, *arrays, level_sizes, ious=None, **settings):
  """`find_candidates` of outputs in one array each."""
  if ious is not None:
    settings["ious"] = levels(ious, level_sizes)
  return find_candidates(levels(logits, level_sizes), levels(deltas, level_sizes), *arrays, **settings)


def detect(logits, deltas, *arrays, level_sizes, **settings):
  """The arguments are those of `candidates` and of `suppress`."""
  find = {name: settings.pop(name) for name in FIND if name in settings}
  return suppress([candidates(logits, deltas, *arrays, level_sizes=level_sizes, **find)], **settings)
