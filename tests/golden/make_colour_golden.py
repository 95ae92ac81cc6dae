"""Writes colour.npz: images and what torchvision's ColorJitter steps make of them, in float32.

Run with a Python that has torch and torchvision (iou_det is not needed):

    python tests/golden/make_colour_golden.py
"""

from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import functional


def main():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (12, 16, 3), np.uint8)
  image[0, :6] = [[0, 0, 0], [255] * 3, [90] * 3, [255, 0, 0], [0, 255, 0], [0, 0, 255]]
  factors = rng.uniform([0.3, 0.3, 0.0, -0.5], [1.7, 1.7, 2.5, 0.5], (6, 4))
  changed = []
  for brightness, contrast, saturation, hue in factors:
    out = torch.tensor(image).permute(2, 0, 1).float() / 255
    out = functional.adjust_contrast(functional.adjust_brightness(out, brightness), contrast)
    out = functional.adjust_hue(functional.adjust_saturation(out, saturation), hue)
    changed.append(255 * out.permute(1, 2, 0).numpy())
  path = Path(__file__).with_name("colour.npz")
  np.savez_compressed(path, image=image, factors=factors, changed=np.stack(changed))
  print(f"{path}: {len(factors)} images, {path.stat().st_size} bytes")


if __name__ == "__main__":
  main()
