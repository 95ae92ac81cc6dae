"""Train and val of a data set with one split."""

import json
from collections import Counter

import numpy as np
import pytest

from iou_det.data import open_dataset
from iou_det.data.coco import read_coco
from iou_det.data.divide import divide
from iou_det.errors import UserError
from tests.command import iou_det
from tests.data.coco_files import content, write


def many(tmp_path, images=400, seed=0):
  """Labels of images with 0 to 4 boxes of classes, of which some are rare; and a content number for each."""
  rng = np.random.default_rng(seed)
  coco = {"images": [], "annotations": [], "categories": [{"id": k, "name": f"c{k}"} for k in range(1, 6)]}
  for i in range(images):
    coco["images"].append({"id": i, "file_name": f"{i}.jpg", "height": 9, "width": 9})
    for _ in range(rng.integers(5)):
      k = int(rng.choice([1, 2, 3, 4, 5], p=[0.6, 0.25, 0.1, 0.04, 0.01]))
      coco["annotations"].append({"image_id": i, "category_id": k, "bbox": [1, 1, 3, 3]})
  file = tmp_path / "all.json"
  file.write_text(json.dumps(coco))
  contents = np.arange(1, images + 1, dtype=np.uint64)
  contents[1::10] = contents[::10]  # every tenth image is there twice
  return read_coco(file), contents


def images_with(labels):
  """How many images have each class; 0 stands for none."""
  a = labels.annotations
  counts = Counter()
  for i in range(len(a)):
    counts.update(set((a.label[a.rows(i)] + 1).tolist()) or {0})
  return counts


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_every_class_has_its_share(tmp_path, fraction):
  labels, contents = many(tmp_path)
  parts = divide(labels, contents, fraction, seed=0)
  whole, val = images_with(labels), images_with(parts["val"])
  for k, number in whole.items():
    assert abs(val[k] - fraction * number) <= max(2, 0.06 * number), (k, val[k], number)
  ids = [set(p.annotations.image_id.tolist()) for p in parts.values()]
  assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == len(labels.annotations)
  by_content = [{int(contents[i]) for i in part} for part in ids]
  assert not by_content[0] & by_content[1]  # no image is in both under another name
  for part in parts.values():
    for place, i in enumerate(part.annotations.image_id.tolist()):  # the boxes are still those of their image
      a, b = part.annotations, labels.annotations
      np.testing.assert_array_equal(a.label[a.rows(place)], b.label[b.rows(i)])


def test_the_seed_alone_decides(tmp_path):
  labels, contents = many(tmp_path)
  chosen = [divide(labels, contents, 0.2, seed)["val"].annotations.image_id.tolist() for seed in (0, 0, 1)]
  assert chosen[0] == chosen[1] != chosen[2]


def test_no_part_may_be_empty(tmp_path):
  labels, contents = many(tmp_path, images=4)
  for fraction, part in ((0.01, "val"), (1.0, "train")):
    with pytest.raises(UserError, match=rf"leaves {part} none"):
      divide(labels, contents, fraction, seed=0)


def test_the_command_prepares_both(tmp_path):
  coco = content()
  for i in range(50, 80):
    coco["images"].append({"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 50})
    coco["annotations"].append({"id": i, "image_id": i, "category_id": 9, "bbox": [1, 2, 30, 30]})
  write(tmp_path / "all", "default", coco)
  flags = ["--name=set", f"--data_dir={tmp_path}", f"--data={tmp_path / 'all'}", "--val_fraction=0.25"]
  done = iou_det("prepare", *flags)
  assert done.returncode == 0, done.stderr
  train, val = (open_dataset(tmp_path / "set", split) for split in ("train", "val"))
  assert train.categories == val.categories and len(train) + len(val) == 34 and 7 <= len(val) <= 10
  assert f"set/val: {len(val)} of them" in done.stdout
  everything = {
    r.image_id: r.image for source in (train, val) for r in map(source.__getitem__, range(len(source)))
  }
  for image in coco["images"]:
    file = tmp_path / "all" / "default" / image["file_name"]
    assert everything[image["id"]] == file.read_bytes()
  for split in ("train", "val"):
    write(tmp_path / "two", split)
  done = iou_det("prepare", *flags[:2], f"--data={tmp_path / 'two'}", flags[3], "--overwrite")
  assert done.returncode == 2 and "is for data with one split" in done.stderr
  done = iou_det("prepare", *flags[:1], f"--data_dir={tmp_path / 'out'}", f"--data={tmp_path / 'two'}")
  assert done.returncode == 0 and "(train, val); use it with --config.data.path=" in done.stdout
  assert len(open_dataset(tmp_path / "out" / "set", "val")) == 4
