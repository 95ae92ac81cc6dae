"""Writes nms.npz: boxes with scores and what torchvision's batched_nms keeps of them.

Run with a Python that has torch and torchvision (iou_det is not needed):

    python tests/golden/make_nms_golden.py
"""

from pathlib import Path

import numpy as np
import torch
from torchvision.ops import batched_nms

BOXES, CLASSES, IOU, SCORE, MAX = 300, 5, 0.5, 0.05, 100


def main():
  rng = np.random.default_rng(0)
  centre = rng.uniform(0, 200, (BOXES // 6, 2)).repeat(6, axis=0) + rng.normal(0, 4, (BOXES, 2))
  half = rng.uniform(8, 30, (BOXES // 6, 2)).repeat(6, axis=0) * rng.uniform(0.8, 1.25, (BOXES, 2))
  boxes = np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)
  scores = rng.uniform(0, 1, (BOXES, CLASSES)).astype(np.float32) ** 2
  assert len(np.unique(scores)) == scores.size  # torchvision promises no order of equal scores

  box, label = np.nonzero(scores > SCORE)
  kept = batched_nms(
    torch.tensor(boxes[box]), torch.tensor(scores[box, label]), torch.tensor(label), IOU).numpy()  # fmt: skip
  everything = dict(
    boxes=boxes, scores=scores, iou_threshold=IOU, score_threshold=SCORE, max_detections=MAX,
    candidates=len(box), kept=len(kept), box=box[kept].astype(np.int16), label=label[kept].astype(np.int16),
  )  # fmt: skip
  path = Path(__file__).with_name("nms.npz")
  np.savez_compressed(path, **everything)
  print(f"{path}: {len(kept)} of {len(box)} pairs kept, {path.stat().st_size} bytes")


if __name__ == "__main__":
  main()
