"""Each oddity is found in a small data set that has it, and nothing in one that has none."""

import json

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Exif

from iou_det.config import base_config
from iou_det.data import AS_IT_LOOKS, format_of, oddities
from iou_det.data.checks import check_all, report
from iou_det.data.coco import read_pair
from iou_det.data.look import look
from iou_det.data.tfds import prepare_dataset
from iou_det.training import fit
from tests.data.coco_files import picture
from tests.tiny import tiny_config

HEIGHT, WIDTH = 48, 64
NAMES = ("cat", "dog", "bird")


def split(seed):
  """Eight images with three boxes each all over them, one of each class."""
  rng = np.random.default_rng(seed)
  annotations = []
  for image in range(8):
    for k in range(3):
      w, h = rng.integers(8, 17, 2).tolist()
      x, y = int(rng.integers(0, WIDTH - w)), int(rng.integers(0, HEIGHT - h))
      row = {"id": len(annotations) + 1, "image_id": image, "category_id": k, "bbox": [x, y, w, h]}
      annotations.append(row | {"area": w * h, "iscrowd": 0})
  images = [{"id": i, "file_name": f"{seed}_{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(8)]
  categories = [{"id": k, "name": name} for k, name in enumerate(NAMES)]
  return {"images": images, "annotations": annotations, "categories": categories}


def write(root, **splits):
  """A COCO folder; a picture's content follows from its name."""
  (root / "annotations").mkdir()
  for name, coco in splits.items():
    (root / name).mkdir()
    for image in coco["images"]:
      seed, _, number = image["file_name"].removesuffix(".png").partition("_")
      data = picture(HEIGHT, WIDTH, 1000 * int(seed) + int(number), ".png")
      (root / name / image["file_name"]).write_bytes(data + bytes(int(number)))  # of different sizes
    (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(coco))


def found(root, pictures=1000, wanted=None):
  return look(str(root), wanted, AS_IT_LOOKS, pictures).findings


def boxes(change):
  """A fault of all boxes of both splits, from what each was."""

  def make(train, val):
    for coco in (train, val):
      for row in coco["annotations"]:
        row["bbox"] = change(*row["bbox"])

  return make


def no_dogs(coco):
  coco["annotations"] = [row for row in coco["annotations"] if row["category_id"] != 1]


def same_image(train, val):
  """Under another name."""
  val["images"][3]["file_name"] = "1_5.png"


def reaching(train, val):
  train["annotations"][0]["bbox"] = [60, 40, 9, 3]


def empty_box(train, val):
  val["annotations"][4] |= {"bbox": [5, 5, 0, 9], "area": 0}


def twice(train, val):
  train["annotations"].append(train["annotations"][2] | {"id": 77})


def areas(train, val):
  train["annotations"][3]["area"] = 5000


def tiny_areas(train, val):
  for row in train["annotations"]:
    row["area"] = 1


def repeated_image(train, val):
  train["images"][2]["file_name"] = "1_1.png"


def no_annotations(train, val):
  val["annotations"] = []


def other_table(train, val):
  val["categories"][1]["name"] = "wolf"


def unused_class(train, val):
  for coco in (train, val):
    coco["categories"].append({"id": 9, "name": "yeti"})


def empty_images(train, val):
  train["annotations"] = train["annotations"][3:]


def unbalanced(train, val):
  """A hundred dogs for each cat."""
  for coco in (train, val):
    others = [row for row in coco["annotations"] if row["category_id"]]
    cat, dog, *_ = coco["annotations"]
    more = [dog | {"id": 100 + i, "bbox": [i % 40, i % 30, 8, 9 + i / 200], "area": 72} for i in range(101)]
    coco["annotations"] = [cat, *others, *more]


def bad_record(train, val):
  train["annotations"][1]["bbox"] = [1, 2, "wide", 4]


FAULTS = [
  (boxes(lambda x, y, w, h: [x, y, x + w, y + h]), "error", "x1 y1 x2 y2 given as x y w h"),
  (boxes(lambda x, y, w, h: [x + w / 2, y + h / 2, w, h]), "error", "x_centre y_centre w h given as"),
  (
    boxes(lambda x, y, w, h: [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]),
    "error",
    "fractions of their image given as pixels: train 24, val 24",
  ),
  (bad_record, "error", "train: 1 bad records of 32"),
  (no_annotations, "error", "instances_val.json: the list 'annotations' is empty"),
  (other_table, "error", "train and val have different category tables"),
  (same_image, "warning", "1 images of train are in val too, by content (1_5.png)"),
  (reaching, "warning", "boxes that reach out of their image: train 1 (annotation 1 (image 0, "),
  (empty_box, "warning", "zero-area boxes: val 1"),
  (twice, "warning", "boxes given twice: train 1"),
  (areas, "warning", "'area' is larger than they are: train 1"),
  (tiny_areas, "warning", "'area' is next to nothing, in all images alike: train 24"),
  (repeated_image, "warning", "images with the same content as another: train 1 (1_1.png = 1_1.png)"),
  (lambda train, val: no_dogs(train), "warning", "train has no box of 1 of 3 classes (dog)"),
  (lambda train, val: no_dogs(val), "warning", "val has no box of 1 of 3 classes (dog)"),
  (unused_class, "note", "1 of 4 classes (yeti) have no box"),
  (empty_images, "note", "images without boxes: train 1 (1_0.png)"),
  (unbalanced, "note", "dog has 218 boxes, cat 2"),
]  # fmt: skip


def test_nothing_is_odd_in_a_clean_set(tmp_path):
  write(tmp_path, train=split(1), val=split(2), test=split(3))
  assert found(tmp_path) == []


@pytest.mark.parametrize(("fault", "level", "words"), FAULTS, ids=[words for *_, words in FAULTS])
def test_an_oddity_is_found(tmp_path, fault, level, words):
  """And nothing worse than it."""
  train, val = split(1), split(2)
  fault(train, val)
  write(tmp_path, train=train, val=val)
  first, *rest = sorted(found(tmp_path), key=lambda f: words not in f.what)
  assert words in first.what and first.level == level
  order = ("error", "warning", "note")
  assert all(order.index(f.level) >= order.index(level) for f in rest), rest


def test_images_of_one_content_are_chosen_together(tmp_path):
  """Of 30 images in both splits, of which a fourth is opened: the sample has both or none."""
  parts = {name: split(1) for name in ("train", "val")}
  for name, coco in parts.items():
    images = [coco["images"][0] | {"id": 8 + i, "file_name": f"1_{i + 8}.png"} for i in range(22)]
    coco["images"] += images if name == "train" else images[::-1]
  write(tmp_path, **parts)
  (shared,) = [f.what for f in found(tmp_path, pictures=15) if "by content" in f.what]
  assert shared.startswith("7 images of train are in val too") or shared.startswith("8 images")
  assert not [f for f in found(tmp_path, pictures=0) if "by content" in f.what]
  assert look(str(tmp_path), None, AS_IT_LOOKS, 15).pictures == "15 of 60 opened (--pictures=60 opens all)"


def test_a_bad_picture_is_found_and_missing_ones(tmp_path):
  write(tmp_path, train=split(1), val=split(2))
  (tmp_path / "train/1_4.png").write_bytes(b"GIF, they said")
  (tmp_path / "val/2_7.png").unlink()
  first, second = found(tmp_path)
  assert first.level == second.level == "error"
  assert "val: 1 bad records" in first.what and "2_7.png" in first.what
  assert "train: 1 bad pictures of 8" in second.what and "1_4.png" in second.what


def test_a_turned_picture_whose_size_does_not_tell_is_found(tmp_path):
  """Upside down: the annotated size is right for both."""
  write(tmp_path, train=split(1), val=split(2))
  file = tmp_path / "train/1_4.png"
  exif = Exif()
  exif[0x112] = 3
  Image.open(file).save(file, exif=exif)
  (only,) = found(tmp_path)
  assert only.what == "images turned by EXIF whose size does not tell: train 1 (1_4.png)"
  assert only.level == "warning" and "--exif=ignore" in only.todo


def test_prepared_data_are_looked_at_too(tmp_path):
  train, val = split(1), split(2)
  same_image(train, val)
  empty_box(train, val)
  write(tmp_path, train=train, val=val)
  for name in ("train", "val"):
    labels = format_of(tmp_path).read_split(tmp_path, name)
    prepare_dataset(labels.source(name, "auto"), name="set", split=name, data_dir=tmp_path / "out")
  assert found(tmp_path / "out") == found(tmp_path)


def test_what_is_no_data_set_is_an_error(tmp_path):
  (only,) = found(tmp_path)
  assert only.level == "error" and "is neither a prepared dataset" in only.what
  write(tmp_path, train=split(1))
  (only,) = found(tmp_path, wanted=["dev"])
  assert only.level == "error" and "no split 'dev' in" in only.what and "there are: train" in only.what


def test_prepare_reports_how_boxes_are_given(tmp_path):
  train = split(1)
  boxes(lambda x, y, w, h: [x, y, x + w, y + h])(train, {"annotations": []})
  write(tmp_path, train=train)
  labels = read_pair(tmp_path / "train", tmp_path / "annotations/instances_train.json")
  check_all(labels, "auto", False)
  assert f"  {oddities.CORNERS}: 24" in report(labels, "set/train")
  assert oddities.CENTRES not in report(labels, "set/train")


def test_every_remark_of_boxes_has_its_advice(tmp_path):
  """Or is left to be a note on purpose."""
  write(tmp_path, train=split(1))
  labels = read_pair(tmp_path / "train", tmp_path / "annotations/instances_train.json")
  labels.remarks.clear()
  from iou_det.data.checks import remark_boxes

  remark_boxes(labels)
  oddities.remark_oddities(labels)
  crowds = "crowd boxes (also VOC's difficult ones): neither trained on nor counted"
  assert set(labels.remarks) - set(oddities.ADVICE) == {crowds}


def sized(tmp_path, config):
  seen = look(str(tmp_path), None, AS_IT_LOOKS, 0)
  return [f for f in fit.objects_and_images(config, seen.splits)]


def test_objects_below_the_smallest_anchor_are_found(tmp_path):
  """The bound is that of an IoU: of squares a little below and above it, by plain arithmetic."""
  config = base_config()
  config.data.update(short=HEIGHT, long=WIDTH, canvas=(HEIGHT, WIDTH))
  smallest = config.anchors.scale * 8
  for side, is_odd in ((22.6, True), (22.7, False)):
    iou = side**2 / smallest**2
    assert (iou < config.match.positive_iou) == is_odd
    folder = tmp_path / str(side)
    folder.mkdir()
    train = split(1)
    boxes(lambda x, y, w, h, side=side: [1, 1, side, side])(train, {"annotations": []})
    write(folder, train=train)
    every = sized(folder, config)
    assert [f.level for f in every] == ["warning"] * is_odd
    if is_odd:
      assert every[0].what.startswith("100% of the boxes are below 23 px")
      assert every[0].todo.startswith("--config.anchors.scale=3.9, or larger images: --config.data.short=")


def test_images_above_canvas_and_input_and_what_is_left_out(tmp_path):
  train = split(1)
  train["annotations"][0]["bbox"] = [3, 3, 0.5, 9]
  write(tmp_path, train=train)
  config = base_config()
  config.anchors.scale = 1.0
  config.data.update(short=48, long=64, canvas=(24, 64), min_image_side=50)
  every = sized(tmp_path, config)
  assert [f.level for f in every] == ["warning", "note", "note"]
  assert "8 of 8 images are shrunk to data.canvas=(24, 64), then enlarged to (48, 64)" in every[0].what
  assert "'--config.data.canvas=(48,64)'" in every[0].todo
  assert every[1].what.startswith("1 boxes have a side below 1 px")
  assert every[2].what.startswith("8 images have a side below 50 px")
  config.data.update(short=11, long=15, canvas=(48, 64), min_image_side=1)
  (shrunk,) = [f for f in sized(tmp_path, config) if "images" in f.what and f.level == "warning"]
  assert "8 of 8 images are shrunk more than 4 times (median 4.4)" in shrunk.what


def test_memory_of_the_host_follows_the_pipelines_rule(tmp_path):
  config = tiny_config(tmp_path)
  stacked = 8 * 64 * 96 * 3
  assert fit.host_memory(config, {}) == (5 * stacked, 0)
  config.data.workers = 2
  assert fit.host_memory(config, {}) == (0, 10 * stacked)
  every = list(fit.memory(fit.HostMemory(0, 100), fit.DeviceMemory(50, 50), 120, 99, None))
  assert ["/dev/shm" in f.what for f in every] == [True, False] and all(f.level == "error" for f in every)
  for need, level in ((100, []), (101, ["warning"]), (126, ["error"])):
    every = fit.memory(fit.HostMemory(0, 0), fit.DeviceMemory(50, need - 50), 0, 0, 100)
    assert [f.level for f in every] == level


@pytest.mark.real_data
@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("bccd", [("warning", "zero-area boxes: train 1, val 1")]),
    ("deeppcb", [("note", "grey images: ")]),
    (
      "coco_mini",
      [
        ("warning", "train2017 has no box of 6 of 80 classes"),
        ("note", "images without boxes: train2017 1"),
        ("note", "grey images: train2017 1; crowd boxes"),
        ("note", "7 of 80 classes"),
        ("note", "classes are unbalanced: person has 299 boxes"),
      ],
    ),
  ],
)
def test_real_sets_have_what_they_have_and_no_more(real_data, name, expected):
  every = found(real_data / name, pictures=200)
  assert sorted(f.level for f in every) == sorted(level for level, _ in expected)
  for level, words in expected:
    assert any(f.level == level and f.what.startswith(words) for f in every), words


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["bccd", "deeppcb", "coco_mini"])
def test_real_boxes_in_another_form_are_told_from_those_in_cocos(real_data, name):
  known = format_of(real_data / name)
  for part in known.splits(real_data / name):
    labels = known.read_split(real_data / name, part)
    a, first = labels.annotations, labels.annotations.bbox.copy()
    x, y, w, h = first.T
    height, width = a.height[a.image_of_box()], a.width[a.image_of_box()]
    for form, columns in {
      None: (x, y, w, h),
      oddities.CORNERS: (x, y, x + w, y + h),
      oddities.FRACTIONS: (x / width, y / height, w / width, h / height),
    }.items():
      a.bbox[:] = np.stack(columns, axis=1)
      a.area[:] = a.bbox[:, 2] * a.bbox[:, 3]
      labels.remarks.clear()
      oddities.remark_oddities(labels)
      assert [trait for trait, remark in labels.remarks.items() if remark.number] == [form] * bool(form)
