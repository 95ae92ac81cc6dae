"""Small COCO-format folders for the tests of the data room."""

import json
from pathlib import Path

import cv2
import numpy as np

from iou_det.data.coco import read_pair

CATEGORIES = [{"id": 9, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 5, "name": "a very big bird"}]


def picture(height, width, seed=0, extension=".jpg"):
  """Encoded image of noise."""
  pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
  return cv2.imencode(extension, pixels)[1].tobytes()


def content():
  """Four images (one without boxes, one too small to train on) and eight boxes."""
  images = [
    {"id": 40, "file_name": "b.jpg", "height": 48, "width": 64},
    {"id": 7, "file_name": "a.jpg", "height": 60, "width": 40},
    {"id": 1000000000007, "file_name": "sub/c.png", "height": 33, "width": 35},
    {"id": 3, "file_name": "small.jpg", "height": 31, "width": 90},
  ]
  row = lambda i, image, category, bbox, area, crowd=0: {
    "id": i,
    "image_id": image,
    "category_id": category,
    "bbox": bbox,
    "area": area,
    "iscrowd": crowd,
    "segmentation": [[1, 2, 3]],
  }
  annotations = [
    row(11, 7, 9, [0.1, 0.7, 10.3, 20.9], 100.123456789),
    row(12, 40, 2, [5, 6, 20, 30], 600),
    row(13, 7, 2, [3.3, 4.4, 5.5, 0.0], 0.0),  # no area
    row(14, 7, 5, [1, 1, 20, 20], 150.5, crowd=1),
    row(15, 40, 2, [50.25, 40.5, 30, 10], 300.75),  # reaches out of its image
    row(2**40, 40, 2, [5, 6, 20, 30], 600),  # given twice
    row(17, 40, 9, [2, 2, 0.99, 9], 8.9),  # below 1 px
    row(18, 3, 9, [2, 2, 10, 10], 100.0),
  ]
  return {
    "info": {},
    "images": images,
    "annotations": annotations,
    "categories": [dict(c) for c in CATEGORIES],
  }


def write(root: Path, split="train", coco=None):
  """Writes a COCO folder with all its images; returns (image folder, annotation file)."""
  coco = content() if coco is None else coco
  for i, image in enumerate(coco["images"]):
    path = root / split / image["file_name"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(image["height"], image["width"], i, path.suffix))
  file = root / "annotations" / f"instances_{split}.json"
  file.parent.mkdir(exist_ok=True)
  file.write_text(json.dumps(coco))
  return root / split, file


def assert_same_records(a, b, exactly=True):
  """Two sources hold the same records in the same order."""
  assert len(a) == len(b) and a.categories == b.categories
  for i in range(len(a)):
    x, y = a[i], b[i]
    for name in ("image_id", "file_name", "image", "height", "width"):
      assert getattr(x, name) == getattr(y, name), (i, name)
    for name in ("labels", "crowd", "annotation_id"):
      np.testing.assert_array_equal(getattr(x, name), getattr(y, name))
    for name in ("boxes", "area"):
      if exactly:
        np.testing.assert_array_equal(getattr(x, name), getattr(y, name))
      else:
        np.testing.assert_allclose(getattr(x, name), getattr(y, name), rtol=1e-6, atol=1e-3)


def open_pair(images, file):
  """A source of a folder of images and an annotation file."""
  labels = read_pair(images, file)
  labels.settle(False)
  return labels.source("pair", "auto")
