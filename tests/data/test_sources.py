"""COCO folders are read to the last digit, and everything that is wrong with one is named."""

import importlib
import json
import logging
import pickle
import pkgutil
import subprocess
import sys

import numpy as np
import pytest

from iou_det import data
from iou_det.data import open_dataset, tfds
from iou_det.data.coco import read_coco
from iou_det.data.plan import TrainingFilter, scan
from iou_det.data.source import Category, Source
from iou_det.errors import UserError
from tests.data.coco_files import content, open_pair, write


def test_records_hold_what_the_file_says(tmp_path):
  write(tmp_path)
  source = open_dataset(tmp_path, "train")
  assert isinstance(source, Source) and source.name == f"{tmp_path.name}/train"
  assert source.categories == (Category(2, "dog"), Category(5, "a very big bird"), Category(9, "cat"))
  assert source.annotations.image_id.tolist() == [40, 7, 1000000000007, 3]
  r = source[1]
  assert (r.image_id, r.file_name, r.height, r.width) == (7, "a.jpg", 60, 40)
  assert r.image == (tmp_path / "train" / "a.jpg").read_bytes()
  first = [0.1, 0.7, 0.1 + 10.3, 0.7 + 20.9]
  np.testing.assert_array_equal(r.boxes, [first, [3.3, 4.4, 8.8, 4.4], [1, 1, 21, 21]])
  np.testing.assert_array_equal(r.labels, [2, 0, 1])
  np.testing.assert_array_equal(r.crowd, [False, False, True])
  np.testing.assert_array_equal(r.area, [100.123456789, 0.0, 150.5])
  np.testing.assert_array_equal(r.annotation_id, [11, 13, 14])
  assert source[2].file_name == "sub/c.png" and source[2].boxes.shape == (0, 4)
  assert source[-1].image_id == 3
  with pytest.raises(IndexError):
    source[4]


def test_sources_survive_pickling(tmp_path):
  write(tmp_path)
  source = open_dataset(tmp_path, "train")
  copy = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(copy[0].boxes, source[0].boxes)
  assert copy.categories == source.categories


def test_scan_counts_what_the_filter_drops(tmp_path, caplog):
  write(tmp_path)
  source = open_dataset(tmp_path, "train")
  with caplog.at_level(logging.INFO, logger="absl"):
    index = scan(source, TrainingFilter())
  np.testing.assert_array_equal(index.heights, [48, 60, 33, 31])
  np.testing.assert_array_equal(index.widths, [64, 40, 35, 90])
  np.testing.assert_array_equal(index.num_boxes, [3, 1, 0, 1])
  np.testing.assert_array_equal(index.usable, [True, True, False, False])
  assert (
    "2 of 4 images and 4 of 8 boxes to train on; left out: 1 images with a side below 32 px, 1 images "
    "without usable boxes, 1 crowd boxes, 2 boxes with a side below 1 px or no area" in caplog.text
  )
  np.testing.assert_array_equal(scan(source, TrainingFilter(keep_empty=True)).usable, [1, 1, 1, 0])
  np.testing.assert_array_equal(scan(source, TrainingFilter(min_image_side=31)).usable, [1, 1, 0, 1])
  np.testing.assert_array_equal(scan(source, TrainingFilter(min_box_side=0.5)).num_boxes, [4, 1, 0, 1])
  with pytest.raises(UserError, match="has nothing to train on: 0 of 4 images"):
    scan(source, TrainingFilter(min_image_side=100))


def test_scan_agrees_with_the_filter_on_every_record(tmp_path):
  write(tmp_path)
  source, keep = open_dataset(tmp_path, "train"), TrainingFilter()
  index = scan(source, keep)
  for i in range(len(source)):
    r = source[i]
    assert keep.boxes(r.boxes, r.crowd, r.area).sum() == index.num_boxes[i]


def test_missing_fields_get_defaults_that_are_counted(tmp_path):
  coco = content()
  for a in coco["annotations"][:2]:
    del a["area"], a["iscrowd"]
  del coco["annotations"][0]["id"]
  _, file = write(tmp_path, coco=coco)
  read = read_coco(file)
  absent = {"'area' (that of the box taken)": 2, "'iscrowd' (0 taken)": 2, "'id' (their place taken)": 1}
  assert {k: r.number for k, r in read.remarks.items()} == {
    f"annotations without {k}": n for k, n in absent.items()
  }
  assert not read.problems
  r = open_dataset(tmp_path, "train")[1]
  assert r.area[0] == pytest.approx(10.3 * 20.9) and r.annotation_id[0] == 1 and not r.crowd[0]


BAD = {
  "no_bbox": (lambda c: c["annotations"][0].pop("bbox"), "annotation id 11 (image id 7): has no 'bbox'"),
  "category": (lambda c: c["annotations"][0].update(category_id=3), "unknown category_id 3; known: 2, 5, 9"),
  "image": (lambda c: c["annotations"][0].update(image_id=8), "there is no image with the id 8"),
  "nan": (lambda c: c["annotations"][0].update(bbox=[0, float("nan"), 1, 1]), "four finite numbers"),
  "infinite": (lambda c: c["annotations"][0].update(area=float("inf")), "'area' is inf, must be a finite"),
  "text": (lambda c: c["annotations"][0].update(bbox=["1", 2, 3, 4]), "four finite numbers"),
  "three": (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "'bbox' is [1, 2, 3]"),
  "negative": (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]), "w and h must not be negative"),
  "negative_height": (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, -4]), "must not be negative"),
  "crowd": (lambda c: c["annotations"][0].update(iscrowd=2), "'iscrowd' is 2, must be 0 or 1"),
  "list": (lambda c: c["annotations"].__setitem__(0, [1, 2]), "annotation number 0: is not an object"),
  "width": (lambda c: c["images"][0].update(width=-5), "image id 40 (b.jpg): 'width' is -5, must be a whole"),
  "height": (lambda c: c["images"][0].update(height=2**31), "'height' is 2147483648, must be a whole number"),
  "size": (lambda c: c["images"][0].update(width=64.5), "'width' is 64.5, must be a whole number"),
  "id": (lambda c: c["images"][0].update(id=40.5), "'id' is 40.5, must be a whole number"),
  "twice": (
    lambda c: c["images"][1].update(id=40),
    "image id 40 (b.jpg): a second image has this id (a.jpg)",
  ),
  "file": (lambda c: c["images"][0].update(file_name="no.jpg"), "no.jpg (image id 40): the file does not"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_records_are_refused_and_named(tmp_path, name):
  images, file = write(tmp_path)
  coco = content()
  damage, message = BAD[name]
  damage(coco)
  file.write_text(json.dumps(coco))
  with pytest.raises(UserError) as error:
    open_dataset(tmp_path, "train")
  assert message in str(error.value) and "\n" not in str(error.value)
  assert str(file) in str(error.value) or str(images) in str(error.value)


def test_boxes_go_with_their_bad_image_unless_another_image_has_the_id(tmp_path):
  coco = content()
  coco["images"][0]["width"] = 64.5
  _, file = write(tmp_path)
  file.write_text(json.dumps(coco))
  read = read_coco(file)
  assert len(read.problems) == 1 and read.dropped_boxes == 4
  assert read.annotations.annotation_id.tolist() == [11, 13, 14, 18]
  coco["images"].append(dict(coco["images"][0], width=64))
  file.write_text(json.dumps(coco))
  read = read_coco(file)
  assert len(read.problems) == 1 and read.dropped_boxes == 0 and len(read.annotations.bbox) == 8


def test_boxes_without_area_are_not_trained_on():
  boxes, crowd = np.array([[0.0, 0, 9, 9], [0, 0, 9, 9]]), np.zeros(2, bool)
  np.testing.assert_array_equal(TrainingFilter().boxes(boxes, crowd, np.array([0.0, 0.1])), [False, True])


def test_problems_of_a_kind_are_told_together(tmp_path):
  coco = content()
  coco["annotations"] += [{"id": 100 + i, "image_id": 7, "category_id": 2, "bbox": "?"} for i in range(30)]
  write(tmp_path, coco=coco)
  with pytest.raises(UserError, match=r"30 bad records of 42: .*\(and 29 more like it: .*id 101") as error:
    open_dataset(tmp_path, "train")
  assert str(error.value).count("'bbox' is '?'") == 1 and len(str(error.value)) < 1000


FILES = {
  "not_json": ("{", "is not JSON"),
  "binary": (b"\xff\xd8\xff", "is not JSON"),
  "a_list": ("[]", "has no list 'images'"),
  "no_images": ('{"annotations": [], "categories": []}', "has no list 'images'"),
  "no_boxes": (json.dumps(content() | {"annotations": []}), "the list 'annotations' is empty"),
  "empty": (json.dumps(content() | {"images": []}), "the list 'images' is empty"),
  "category": (json.dumps(content() | {"categories": [{"id": 1}]}), "category id 1: needs a whole"),
  "ids": (
    json.dumps(content() | {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}),
    "more than one category has the id 1",
  ),
  "names": (
    json.dumps(content() | {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}),
    "more than one category has the name a",
  ),
}


@pytest.mark.parametrize("name", FILES)
def test_unusable_annotation_files_are_refused(tmp_path, name):
  text, message = FILES[name]
  file = tmp_path / "x.json"
  file.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(UserError) as error:
    read_coco(file)
  assert message in str(error.value) and str(file) in str(error.value)


def test_paths_that_hold_no_data_say_what_is_allowed(tmp_path):
  with pytest.raises(UserError, match="is not a folder; give a prepared dataset, a COCO folder"):
    open_dataset(tmp_path / "nothing", "train")
  with pytest.raises(UserError, match=r"neither a prepared dataset .* nor a COCO folder"):
    open_dataset(tmp_path, "train")
  images, file = write(tmp_path, "val")
  with pytest.raises(UserError, match="has no split 'train'; there are: val"):
    open_dataset(tmp_path, "train")
  with pytest.raises(UserError, match=r"nope.json does not exist; JSON files in .*: instances_val.json"):
    open_pair(images, file.with_name("nope.json"))
  with pytest.raises(UserError, match=r"image folder .* does not exist"):
    open_pair(tmp_path / "no_images", file)


@pytest.mark.real_data
def test_real_folders_open(real_data):
  for name, split, images, boxes in (
    ("coco_mini", "train2017", 78, 744),
    ("bccd", "train", 205, 2805),
    ("deeppcb", "test", 500, 3140),
  ):
    source = open_dataset(real_data / name, split)
    assert (len(source), len(source.annotations.bbox)) == (images, boxes)


def test_every_format_is_in_the_table():
  names = [m.name for m in pkgutil.iter_modules(data.__path__)]
  modules = [importlib.import_module(f"iou_det.data.{name}") for name in names]
  assert set(data.FORMATS) == {m for m in modules if hasattr(m, "recognises")}
  for known in data.FORMATS:
    assert all(hasattr(known, name) for name in ("NAME", "WHAT", "SIGN", "recognises", "splits"))
    pair = all(hasattr(known, name) for name in ("read_split", "read_pair", "takes", "WHAT_PAIR"))
    assert pair != hasattr(known, "open_split")
    assert known.WHAT in data.WHAT_A_PATH_MAY_BE


def test_each_format_lists_its_splits(tmp_path):
  write(tmp_path, "val")
  write(tmp_path, "train")
  for split in ("train", "val"):
    tfds.prepare_dataset(open_dataset(tmp_path, split), name="set", split=split, data_dir=tmp_path / "out")
  for path, there in (("shapes", ["train", "val", "test"]), (tmp_path, ["train", "val"])):
    assert data.format_of(path).splits(path) == there
  assert data.format_of(tmp_path / "out").splits(tmp_path / "out") == ["train", "val"]


def test_only_what_needs_tfds_waits_for_its_import():
  code = "import sys, iou_det.data; sys.exit('tensorflow_datasets' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_first_images_of_a_source(tmp_path):
  write(tmp_path)
  source = open_dataset(tmp_path, "train")
  few = source.first(2)
  assert len(few) == 2 and len(source) == 4 == len(source.first(9))
  for i in range(2):
    assert few[i].image == source[i].image and few[i].image_id == source[i].image_id
    np.testing.assert_array_equal(few[i].boxes, source[i].boxes)
