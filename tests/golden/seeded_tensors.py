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
