"""When two lists of detections are the same but for rounding."""

import numpy as np


def assert_same_detections(ours, theirs):
  """COCO results: each has its own partner of the same image and class, of nearly the same score and box.

  Not by rank: scores of a barely trained network are so close that rounding changes their order.
  """
  assert len(ours) == len(theirs)
  left = list(theirs)
  for a in ours:
    same = [b for b in left if (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])]
    row = np.array([a["score"], *a["bbox"]])
    close = [b for b in same if np.allclose(row, [b["score"], *b["bbox"]], rtol=1e-3, atol=1e-3)]
    assert close, (a, same)
    left.remove(close[0])
