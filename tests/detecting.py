"""Detections of one view of each image, from the network's outputs: what a `Detector` does behind them."""

from iou_det.ops.detection import find_candidates, suppress

FIND = (
  "logits", "deltas", "anchors", "image_size", "scale", "level_sizes", "convention", "candidates_per_level"
)  # fmt: skip


def detect(*arrays, **settings):
  """The arguments are those of both, `arrays` the first of `find_candidates`."""
  find = {name: settings.pop(name) for name in FIND if name in settings}
  return suppress([find_candidates(*arrays, **find)], **settings)
