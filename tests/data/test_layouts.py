"""COCO files as tools unpack them: where they and their pictures lie, and how file names are written."""

import json

import pytest

from iou_det.data import coco, format_of, open_dataset
from iou_det.errors import UserError
from tests.data.coco_files import picture


def content(*names, category="dog", box=(1, 2, 3, 4)):
  rows = enumerate(names, 1)
  images = [{"id": i, "file_name": name, "height": 40, "width": 60} for i, name in rows]
  annotations = [{"id": i, "image_id": i, "category_id": 1, "bbox": box} for i in range(1, len(names) + 1)]
  return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": category}]}


def write(root, files):
  """Pictures (numbered in their order, from 0) and JSON files by their paths."""
  number = 0
  for path, value in files.items():
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, (dict, list)):
      (root / path).write_text(json.dumps(value))
    else:
      (root / path).write_bytes(picture(40, 60, number))
      number += 1


PIC = None  # a picture
TRAIN, VAL = (f"annotations/instances_{split}.json" for split in ("train", "val"))
LAYOUTS = {  # files, splits, {split: numbers of its pictures}
  "COCO": (
    {"train2017/a.jpg": PIC, "val2017/a.jpg": PIC,
     "annotations/instances_train2017.json": content("a.jpg"),
     "annotations/instances_val2017.json": content("a.jpg"),
     "annotations/captions_train2017.json": content("a.jpg"), "annotations/info.json": content("a.jpg")},
    {"train2017": [0], "val2017": [1]}),
  "Roboflow": (
    {"train/a.jpg": PIC, "valid/b.jpg": PIC, "train/_annotations.coco.json": content("a.jpg"),
     "valid/_annotations.coco.json": content("b.jpg"), "train/other.json": content("c.jpg")},
    {"train": [0], "valid": [1]}),
  "CVAT": ({"images/default/x/a.jpg": PIC, "annotations/instances_default.json": content("x/a.jpg")},
    {"default": [0]}),
  "CVAT, the picture in images": (
    {"images/a.jpg": PIC, "annotations/instances_default.json": content("a.jpg")}, {"default": [0]}),
  "Label Studio": (
    {"images/x-a.jpg": PIC, "images/y-b.jpg": PIC, "images/z-c.jpg": PIC,
     "result.json": content("images\\x-a.jpg", "../../label-studio/data/media/y-b.jpg", "images/z-c.jpg")},
    {"default": [0, 1, 2]}),
  "FiftyOne": ({"data/a.jpg": PIC, "labels.json": content("a.jpg")}, {"default": [0]}),
  "FiftyOne, split": (
    {"train/data/a.jpg": PIC, "train/labels.json": content("a.jpg"),
     "val/data/a.jpg": PIC, "val/labels.json": content("a.jpg")}, {"train": [0], "val": [1]}),
  "files named by their splits": (
    {"images/a.jpg": PIC, "images/b.jpg": PIC, "annotations/train.json": content("a.jpg"),
     "annotations/val.json": content("b.jpg")}, {"train": [0], "val": [1]}),
  "beside the folders": (
    {"train/a.jpg": PIC, "val/a.jpg": PIC, "train.json": content("a.jpg"), "val.json": content("a.jpg")},
    {"train": [0], "val": [1]}),
  "annotations of each split": (
    {"train/images/a.jpg": PIC, "train/annotations.json": content("a.jpg")}, {"train": [0]}),
  "images by split": (
    {"images/train/a.jpg": PIC, "images/val/a.jpg": PIC, TRAIN: content("a.jpg"),
     VAL: content("a.jpg")}, {"train": [0], "val": [1]}),
  "names from another machine": (
    {"train/a.jpg": PIC, "val/a.jpg": PIC,
     TRAIN: content("/home/me/set/train/a.jpg"),
     VAL: content("D:\\set\\a.jpg")}, {"train": [0], "val": [1]}),
  "names with the split's folder": (
    {"train/a.jpg": PIC, TRAIN: content("train/a.jpg")}, {"train": [0]}),
  "names without their folders": (
    {"train/x/a.jpg": PIC, "train/y/b.jpg": PIC, TRAIN: content("a.jpg", "b.jpg")},
    {"train": [0, 1]}),
  "upper and lower case": (
    {"train/a.JPG": PIC, TRAIN: content("A.jpg")}, {"train": [0]}),
  "other JSON beside it": (
    {"train/a.jpg": PIC, TRAIN: content("a.jpg"), "classes.json": ["dog"],
     "info.json": {"images": 3}}, {"train": [0]}),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
  files, splits = LAYOUTS[name]
  write(tmp_path, files)
  assert format_of(tmp_path).NAME == "coco" and coco.splits(tmp_path) == sorted(splits)
  for split, numbers in splits.items():
    source = open_dataset(tmp_path, split)
    assert [source[i].image for i in range(len(source))] == [picture(40, 60, n) for n in numbers]
    assert source.annotations.bbox.tolist() == [[1, 2, 3, 4]] * len(numbers)


def test_of_several_files_of_a_name_the_one_with_most_folders_of_the_name(tmp_path):
  write(tmp_path, {
    "images/x/a.jpg": PIC, "images/y/a.jpg": PIC, TRAIN: content("old/y/a.jpg"),
  })  # fmt: skip
  assert open_dataset(tmp_path, "train")[0].image == picture(40, 60, 1)
  (tmp_path / TRAIN).write_text(json.dumps(content("old/a.jpg")))
  with pytest.raises(UserError, match=r"there are 2 files of its name: .*x/a.jpg, .*y/a.jpg"):
    open_dataset(tmp_path, "train")


def test_pictures_of_other_splits_are_not_taken(tmp_path):
  write(tmp_path, {
    "train/a.jpg": PIC, "val/b.jpg": PIC, TRAIN: content("a.jpg", "b.jpg"),
    VAL: content("b.jpg"),
  })  # fmt: skip
  with pytest.raises(UserError, match=r"b.jpg \(image id 2\): the file does not exist"):
    open_dataset(tmp_path, "train")


@pytest.mark.parametrize("files", (
  {"a.jpg": PIC, "classes.json": ["dog"]},
  {"train/a.jpg": PIC, "train/_annotations.createml.json": [{"image": "a.jpg", "annotations": []}]},
  {"train/a.jpg": PIC, "train/a.json": {"version": "5.0", "shapes": [], "imagePath": "a.jpg"}},
))  # fmt: skip
def test_other_json_is_no_coco(tmp_path, files):
  write(tmp_path, files)
  assert not coco.recognises(tmp_path)


ALL = content("a.jpg")
TOGETHER = {  # splits that lie in two places are all there
  "beside": {"a.jpg": PIC, TRAIN: ALL, "annotations/val.json": ALL},
  "in the folder": {"a.jpg": PIC, TRAIN: ALL, "val.json": ALL},
  "in a folder of its own": {"a.jpg": PIC, TRAIN: ALL, "val/_annotations.coco.json": ALL},
  "cut off": {"a.jpg": PIC, "annotations/train.json": ["cut off"], "annotations/val.json": ALL},
}


@pytest.mark.parametrize("name", TOGETHER)
def test_no_usual_split_is_left_out(tmp_path, name):
  write(tmp_path, TOGETHER[name])
  assert coco.splits(tmp_path) == ["train", "val"]
  assert len(open_dataset(tmp_path, "val")) == 1
  if name == "cut off":
    with pytest.raises(UserError, match=r"train.json has no list 'images'"):
      open_dataset(tmp_path, "train")


REFUSED = {
  "two of one split": (
    {TRAIN: ALL, "annotations/train.json": ALL, "a.jpg": PIC}, "are both of the split 'train'"),
  "two in a folder": (
    {"train/a.jpg": PIC, "train/x.json": ALL, "valid/a.json": ALL, "valid/b.json": ALL},
    "valid has 2 COCO files"),
  "pictures alone": (
    {"train/a.jpg": PIC, "train/_annotations.coco.json": ALL, "valid/a.jpg": PIC},
    "valid has 1 pictures, but there is no COCO file for them"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_vanish_is_refused(tmp_path, name):
  files, message = REFUSED[name]
  write(tmp_path, files)
  with pytest.raises(UserError, match=message):
    coco.splits(tmp_path)


def test_a_folder_with_the_name_of_a_file_is_no_file(tmp_path):
  write(tmp_path, {"a.jpg": PIC, TRAIN: ALL})
  (tmp_path / "annotations/val.json").mkdir()
  (tmp_path / "test.json").mkdir()
  assert coco.splits(tmp_path) == ["train"]
