"""Weights that two programs can draw alike: each tensor depends on its name and shape only."""

import zlib

import numpy as np


def seeded_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """A float32 tensor for a name in torchvision's layout, sized so that activations stay near 1."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  if name.endswith("num_batches_tracked"):
    return np.full(shape, 7)
  if len(shape) > 1:
    return (rng.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
  if name.endswith("running_var"):
    return rng.uniform(0.5, 2.0, shape).astype(np.float32)
  if name.endswith("weight"):  # of a norm
    return rng.uniform(0.2, 0.8, shape).astype(np.float32)
  return rng.normal(0, 0.2, shape).astype(np.float32)  # biases and running means


def seeded_images(height: int, width: int) -> np.ndarray:
  """One normalised image, NHWC."""
  return np.random.default_rng(height * width).standard_normal((1, height, width, 3), np.float32)


def seeded_picture(height: int, width: int) -> np.ndarray:
  """A picture of rectangles on a gradient with some noise: uint8, HWC."""
  rng = np.random.default_rng(height * 10_000 + width)
  y, x = np.mgrid[:height, :width]
  picture = 60.0 + 60 * (y / height)[..., None] + 60 * (x / width)[..., None] * rng.random(3)
  for _ in range(12):
    (y1, y2), (x1, x2) = np.sort(rng.integers(0, height, 2)), np.sort(rng.integers(0, width, 2))
    picture[y1:y2, x1:x2] = rng.uniform(0, 255, 3)
  return np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


def detector_tensor(key: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
  """A tensor of a foreign detector (a key of iou_det's FORMATS): logits are spread, some variances tiny."""
  tensor = seeded_tensor(name, shape)
  if name.endswith(("cls_logits.weight", "retina_cls.weight", "cls_score.weight")):
    return (8 if key == "torchvision_v2" else 2) * tensor  # behind a GroupNorm inputs are smaller
  if name.endswith(("bbox_reg.weight", "retina_reg.weight", "bbox_pred.weight")):
    return tensor / 4
  if name == "backbone.bottom_up.stem.conv1.weight":  # images are not divided by their deviation
    return tensor / 57
  if key == "torchvision" and name.endswith("bn1.running_var"):  # so that its eps matters
    return tensor / 1000
  if key == "torchvision" and name.endswith("bn1.weight"):
    return tensor / np.float32(1000**0.5)
  return tensor
