"""Writes ops.npz: inputs and what torchvision and pycocotools make of them.

Run with a Python that has torch, torchvision and pycocotools (iou_det is not needed):

    python tests/golden/make_ops_golden.py
"""

from pathlib import Path

import numpy as np
import torch
import torchvision
from pycocotools import mask
from torchvision.models.detection import _utils, retinanet
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, clip_boxes_to_image, generalized_box_iou_loss, sigmoid_focal_loss

SIZE = (200, 333)  # not multiples of the strides: torchvision's steps are then shorter than its strides


def draw_boxes(rng, count, low, high):
  xy = rng.uniform(-10, 90, (count, 2))
  return np.concatenate([xy, xy + rng.uniform(low, high, (count, 2))], axis=1).astype(np.float32)


def main():
  rng = np.random.default_rng(0)
  out = {}

  a, b = draw_boxes(rng, 40, 1, 60), draw_boxes(rng, 30, 1, 60)
  a[0], b[0] = [5, 5, 15, 15], [5, 5, 15, 15]
  out["iou_a"], out["iou_b"] = a, b
  out["iou_torchvision"] = box_iou(torch.tensor(a), torch.tensor(b)).numpy()
  xywh = [np.concatenate([x[:, :2], x[:, 2:] - x[:, :2]], axis=1).astype(np.float64) for x in (a, b)]
  out["iou_pycocotools"] = mask.iou(xywh[0], xywh[1], [0] * len(b))

  moved = np.random.default_rng(1).uniform(-9, 9, (30, 4)).astype(np.float32)  # half of them a little
  x = torch.tensor(a[:30], requires_grad=True)
  targets = np.where(np.arange(30)[:, None] % 2, b, a[:30] + moved)
  targets[:, 2:] = np.maximum(targets[:, 2:], targets[:, :2] + 1)
  loss = generalized_box_iou_loss(x, torch.tensor(targets))
  loss.sum().backward()
  out["giou_targets"], out["giou"], out["giou_gradient"] = targets, loss.detach().numpy(), x.grad.numpy()

  coder = _utils.BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
  anchors, boxes = draw_boxes(rng, 50, 4, 80), draw_boxes(rng, 50, 1, 80)
  deltas = rng.normal(0, 1, (50, 4)).astype(np.float32)
  deltas[:4] = np.diag([8, -8, 9, 9])  # the last two beyond the clamp at log(1000 / 16)
  decoded = coder.decode(torch.tensor(deltas), [torch.tensor(anchors)])[:, 0]
  out["coder_anchors"], out["coder_boxes"], out["coder_deltas"] = anchors, boxes, deltas
  out["coder_encoded"] = coder.encode_single(torch.tensor(boxes), torch.tensor(anchors)).numpy()
  out["coder_decoded"] = decoded.numpy()
  out["clip_size"] = np.array([70, 90])
  out["clipped"] = clip_boxes_to_image(decoded, (70, 90)).numpy()

  features = [torch.zeros(1, 1, -(-SIZE[0] // s), -(-SIZE[1] // s)) for s in (8, 16, 32, 64, 128)]
  grid = retinanet._default_anchorgen()(ImageList(torch.zeros(1, 3, *SIZE), [SIZE]), features)[0]
  out["anchors_size"], out["anchors"] = np.array(SIZE), grid.numpy().astype(np.float16)
  assert np.array_equal(out["anchors"], grid.numpy())  # small whole numbers

  truth = draw_boxes(rng, 25, 10, 120)
  truth[5] = truth[4] + 1  # two that compete for the same anchors
  matcher = _utils.Matcher(0.5, 0.4, allow_low_quality_matches=True)
  out["match_boxes"] = truth
  out["match_all"] = matcher(box_iou(torch.tensor(truth), grid)).numpy().astype(np.int8)
  matcher = _utils.Matcher(0.5, 0.4, allow_low_quality_matches=False)
  out["match_plain"] = matcher(box_iou(torch.tensor(truth), grid)).numpy().astype(np.int8)

  logits = np.concatenate([rng.normal(0, 4, 190), np.linspace(-80, 80, 10)]).astype(np.float32)
  targets = rng.integers(0, 2, 200).astype(np.float32)
  out["focal_logits"], out["focal_targets"] = logits, targets
  for gamma in (0.0, 0.5, 2.0):
    x = torch.tensor(logits, requires_grad=True)
    loss = sigmoid_focal_loss(x, torch.tensor(targets), alpha=0.25, gamma=gamma)
    loss.sum().backward()
    out[f"focal_{gamma}"], out[f"focal_gradient_{gamma}"] = loss.detach().numpy(), x.grad.numpy()

  d = np.concatenate([rng.normal(0, 0.2, 100), [0.0, 0.11, -0.11, 50.0]]).astype(np.float32)
  x = torch.tensor(d, requires_grad=True)
  loss = torch.nn.functional.smooth_l1_loss(x, torch.zeros(len(d)), reduction="none", beta=0.11)
  loss.sum().backward()
  out["l1_d"], out["l1"], out["l1_gradient"] = d, loss.detach().numpy(), x.grad.numpy()

  path = Path(__file__).with_name("ops.npz")
  versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
  np.savez_compressed(path, versions=versions, **out)
  print(f"{path}: {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
  main()
