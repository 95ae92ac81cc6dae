"""YOLO folders in the layouts and with the oddities that their tools give them."""

import io

import numpy as np
import pytest
from PIL import Image

from iou_det.data import Reading, format_of, open_dataset, read_labels, yolo
from iou_det.errors import UserError
from tests.data.coco_files import picture

NAMES = "names: [cat, dog]\n"
LINE = "1 0.5 0.25 0.1 0.2"  # of a picture of 60 x 40: x 27, y 6, w 6, h 8


def write(root, labels, images="images/train", texts="labels/train", yaml="train: images/train\n" + NAMES):
  """Label files by their names without suffix (None: no file), each with a picture."""
  for folder in (images, texts):
    (root / folder).mkdir(parents=True, exist_ok=True)
  for i, (name, text) in enumerate(labels.items()):
    if text is not None:
      (root / texts / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    (root / images / f"{name}.jpg").write_bytes(picture(40, 60, i))
  if yaml:
    (root / "data.yaml").write_bytes(yaml if isinstance(yaml, bytes) else yaml.encode())
  return root


def only(root, split="train", **reading):
  return open_dataset(root, split, Reading(**reading))


def refused(root, split="train"):
  with pytest.raises(UserError) as error:
    only(root, split)
  assert "\n" not in str(error.value)
  return str(error.value)


def test_shares_of_the_sides_become_pixels(tmp_path):
  source = only(write(tmp_path, {"a": LINE + "\r\n\r\n 0.0\t.5 5e-1 1 1 \n"}))
  np.testing.assert_allclose(source.annotations.bbox, [[27, 6, 6, 8], [0, 0, 60, 40]])
  np.testing.assert_allclose(source.annotations.area, [48, 2400])
  assert source.annotations.label.tolist() == [1, 0]
  assert [(c.id, c.name) for c in source.categories] == [(0, "cat"), (1, "dog")]
  assert (source[0].height, source[0].width) == (40, 60)


@pytest.mark.parametrize("exif", ("auto", "apply", "ignore"))
def test_shares_are_of_the_picture_as_shown(tmp_path, exif):
  write(tmp_path, {"a": LINE})
  tag = Image.Exif()
  tag[0x0112] = 6
  file = io.BytesIO()
  Image.new("RGB", (60, 40)).save(file, "jpeg", exif=tag)
  (tmp_path / "images/train/a.jpg").write_bytes(file.getvalue())
  a = only(tmp_path, exif=exif).annotations
  height, width = (40, 60) if exif == "ignore" else (60, 40)
  assert (a.height[0], a.width[0]) == (height, width)
  np.testing.assert_allclose(a.bbox, [[0.45 * width, 0.15 * height, 0.1 * width, 0.2 * height]], rtol=1e-6)


def test_polygons_are_the_boxes_around_them(tmp_path):
  labels = read_labels(
    write(tmp_path, {"a": "0 0.1 0.2 0.5 0.1 0.3 0.6\n1 .1 .1 .2 .1 .2 .3 .1 .3\n" + LINE}), "train"
  )
  np.testing.assert_allclose(
    labels.annotations.bbox, [[6, 4, 24, 20], [6, 4, 6, 8], [27, 6, 6, 8]], atol=1e-6
  )
  assert [r.number for trait, r in labels.remarks.items() if "polygons" in trait] == [2]


def test_keypoints_are_left_out(tmp_path):
  write(
    tmp_path, {"a": LINE + " 0.1 0.2 2 0.3 0.4 1"}, yaml=f"train: images/train\nkpt_shape: [2, 3]\n{NAMES}"
  )
  np.testing.assert_allclose(only(tmp_path).annotations.bbox, [[27, 6, 6, 8]])


def test_pictures_without_label_files_are_without_objects(tmp_path):
  labels = read_labels(write(tmp_path, {"a": LINE, "b": None, "c": "", "d": "\n"}), "train")
  assert np.diff(labels.annotations.first).tolist() == [1, 0, 0, 0]
  assert [str(r) for trait, r in labels.remarks.items() if "without a label file" in trait] == ["1 (b.jpg)"]
  (tmp_path / "labels/train/e.txt").write_text(LINE)
  (tmp_path / "labels/train/notes.txt").write_text("two lines\nof text")
  remarks = read_labels(tmp_path, "train").remarks
  assert [r.number for trait, r in remarks.items() if "without a picture" in trait] == [1]


BAD = {
  "pixels": ("0 30 20 6 8", "cx cy w h are 30 20 6 8, must be shares"),
  "NaN": ("0 nan 0.5 0.1 0.1", "must be shares"),
  "below": ("0 0.5 -0.2 0.1 0.1", "must be shares"),
  "negative": ("0 0.5 0.5 -0.005 0.1", "must not be negative"),
  "class": ("2 0.5 0.5 0.1 0.1", "the class is 2, must be one of those with names (0 to 1, 2 names)"),
  "negative class": ("-1 0.5 0.5 0.1 0.1", "the class is -1"),
  "part of a class": ("0.5 0.5 0.5 0.1 0.1", "the class is 0.5"),
  "score": ("0 0.5 0.5 0.1 0.1 0.9", "has six numbers, as predictions with a score have"),
  "four": ("0 0.5 0.5 0.1", "has 4 numbers, must have five"),
  "odd polygon": ("0 .1 .1 .2 .1 .2 .3 .9", "has 8 numbers, must have five"),
  "text": ("dog 0.5 0.5 0.1 0.1", "is 'dog 0.5 0.5 0.1 0.1', must be numbers"),
  "bytes": (b"\xff\xfe0\x00", "must be numbers"),
  "polygon in pixels": ("0 10 10 20 10 20 30", "must be shares"),
  "endless polygon": ("0 .1 .1 inf .1 .2 .3", "not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines_are_refused_or_dropped(tmp_path, name):
  line, message = BAD[name]
  line = line if isinstance(line, bytes) else line.encode()
  write(tmp_path, {"a": LINE.encode() + b"\n" + line, "b": LINE})
  assert "1 bad record of 5" in refused(tmp_path) and "a.txt, line 2" in refused(tmp_path)
  assert message in refused(tmp_path)
  assert len(only(tmp_path, skip_bad=True).annotations.bbox) == 2


def test_boxes_that_reach_out_a_little_are_kept(tmp_path):
  np.testing.assert_allclose(
    only(write(tmp_path, {"a": "0 1 1 1.005 0.5"})).annotations.bbox, [[29.85, 30, 60.3, 20]]
  )


YAMLS = {
  "tabs": ("train: images/train\n\tnames: [a, b]", "line 2: is no YAML"),
  "cut off": ("names: [a, b", "is no YAML"),
  "documents": (NAMES + "---\ntrain: a\n", "is no YAML"),
  "twice": (NAMES + "train: a\n" + NAMES, "line 3: 'names' stands here a second time"),
  "index twice": (
    "train: images/train\nnames:\n  0: cat\n  0: dog\n",
    "line 4: '0' stands here a second time",
  ),
  "aliases": ("a: &a [x, x]\nb: &b [*a, *a]\nnames: *b\n", "has aliases"),
  "deep": ("names: " + "[" * 3000, "is no YAML"),
  "bytes": (b"names: [\xff\xfe]", "is no YAML"),
  "code": ("train: images/train\nnames: !!python/object/apply:os.system [exit]\n", "nothing is run"),
  "count": ("train: images/train\nnc: 3\n" + NAMES, "nc is 3, but there are 2 names"),
  "same names": ("train: images/train\nnames: [cat, cat]", "more than one class has the name cat"),
  "nested": ("train: images/train\nnames: [[cat], dog]", "names must be a list of names"),
  "keys": ("train: images/train\nnames: {cat: 0, dog: 1}", "names has the key 'cat'"),
  "one number twice": ("train: images/train\nnames: {0: cat, 00: dog}", "names has 0 and 00"),
  "a picture for a folder": ("train: images/train/a.jpg\n" + NAMES, "is neither a folder nor a text file"),
  "another file for a folder": ("train: images.zip\n" + NAMES, "is neither a folder nor a text file"),
  "val empty": ("train: images/train\nval:\n" + NAMES, "val: is empty"),
  "val not there": ("train: images/train\nval: images/val\n" + NAMES, "val: 'images/val' leads to no"),
  "val without pictures": ("train: images/train\nval: labels\n" + NAMES, "val: 'labels' leads to no"),
  "validation": ("train: images/train\nvalidation: labels\n" + NAMES, "validation: 'labels' leads to no"),
  "empty name": ("train: images/train\nnames: ['', dog]", "the name of class 0 is ''"),
  "keypoints": ("train: images/train\nkpt_shape: many\n" + NAMES, "kpt_shape must be two whole numbers"),
}


@pytest.mark.parametrize("name", YAMLS)
def test_bad_yaml_is_refused_in_a_line(tmp_path, name):
  text, message = YAMLS[name]
  write(tmp_path, {"a": "0 0.5 0.5 0.1 0.1"}, yaml=text)
  (tmp_path / "images.zip").write_bytes(b"PK\3\4\0\0")
  if name == "code":
    assert [c.name for c in only(tmp_path).categories] == ["exit"]
  else:
    assert message in refused(tmp_path) and "data.yaml" in refused(tmp_path)
    assert ("is no YAML" in message) == ("is no YAML" in refused(tmp_path))


def test_names_are_texts(tmp_path):
  write(tmp_path, {"a": LINE}, yaml="train: images/train\nnames: {1: no, 0: 2024-13-45}")
  assert [c.name for c in only(tmp_path).categories] == ["2024-13-45", "no"]


PATHS = {
  "relative": "train: images/train\n",
  "path": "path: .\ntrain: ./images/train/\n",
  "path of another machine": "path: /content/set\ntrain: images/train\n",
  "one level too many": "train: ../images/train\n",
  "absolute of another machine": "train: /content/set/images/train\n",
  "of Windows": "train: C:\\sets\\mine\\images\\train\n",
  "the folder above": "train: images\n",
  "a list of folders": "train: [images/train, images/more]\n",
  "a list of pictures": "train: lists/train.txt\n",
}


@pytest.mark.parametrize("name", PATHS)
def test_paths_in_data_yaml(tmp_path, name):
  write(tmp_path, {"a": LINE, "b": LINE}, yaml=PATHS[name] + "test: ../test/images\n" + NAMES)
  if name == "a list of folders":
    write(tmp_path, {"c": LINE}, "images/more", "labels/more", yaml="")
  (tmp_path / "lists").mkdir()
  (tmp_path / "lists/train.txt").write_text("./images/train/a.jpg\n/elsewhere/images/train/b.jpg\n")
  assert yolo.splits(tmp_path) == ["train"]
  a = only(tmp_path).annotations
  assert sorted(n.rpartition("/")[2][0] for n in a.file_name) == ["a", "b", "c"][: len(a)] and len(a) >= 2
  np.testing.assert_allclose(a.bbox, [[27, 6, 6, 8]] * len(a))
  remarks = {t: str(r) for t, r in read_labels(tmp_path, "train").remarks.items() if "not there" in t}
  assert list(remarks.values()) == ["1 (test: ../test/images)"]
  assert "has no split 'test'; there are: train" in refused(tmp_path, "test")
  assert only(tmp_path / "data.yaml").fingerprint() == only(tmp_path).fingerprint()


@pytest.mark.parametrize("content", (b"", b"<html>", picture(40, 60)[:30]))
def test_a_picture_that_does_not_say_its_size_is_a_bad_record(tmp_path, content):
  write(tmp_path, {"a": LINE, "b": LINE})
  (tmp_path / "images/train/a.jpg").write_bytes(content)
  assert "1 bad record of 4: " in refused(tmp_path) and "a.jpg (image id 1): " in refused(tmp_path)
  assert only(tmp_path, skip_bad=True).annotations.file_name == ["b.jpg"]


def test_hidden_files_are_no_pictures(tmp_path):
  write(tmp_path, {"a": LINE, "._a": LINE})
  write(tmp_path, {"b": LINE}, "images/train/.ipynb_checkpoints", "labels/train/.ipynb_checkpoints", yaml="")
  assert only(tmp_path).annotations.file_name == ["a.jpg"]


def test_a_folder_that_is_lacking_of_a_list_is_named(tmp_path):
  write(tmp_path, {"a": LINE}, yaml="train: [images/train, images/more]\n" + NAMES)
  assert "of train: there is no 'images/more'" in refused(tmp_path)


def test_two_splits_in_one_folder_are_refused_unless_written_so(tmp_path):
  write(tmp_path, {"a": LINE}, yaml="train: /x/images/train\nval: /y/images/train\n" + NAMES)
  assert "are one folder here" in refused(tmp_path)
  write(tmp_path, {"a": LINE}, yaml="train: images/train\nval: ./images/train/\n" + NAMES)
  assert len(only(tmp_path, "val")) == 1


LAYOUTS = {  # pictures, label files, splits, where the names are
  "ultralytics": ("images/train", "labels/train", ["train"], "classes.txt"),
  "roboflow": ("train/images", "train/labels", ["train"], "train/labels/classes.txt"),
  "label studio": ("images", "labels", ["default"], "classes.txt"),
  "LabelImg": ("", "", ["default"], "classes.txt"),
  "darknet of Roboflow": ("train", "train", ["train"], "train/_darknet.labels"),
  "darknet's VOC": ("JPEGImages", "labels", ["default"], "data/voc.names"),
  "CVAT": ("obj_train_data", "obj_train_data", ["train"], "obj.names"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_without_yaml(tmp_path, name):
  images, texts, there, names = LAYOUTS[name]
  write(tmp_path, {"a": LINE, "b": LINE}, images, texts, yaml="")
  if name == "CVAT":
    (tmp_path / "train.txt").write_text("data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n")
  (tmp_path / "README.roboflow.txt").write_text("0 what this is\n")
  if name != "darknet's VOC":
    assert "no names of the classes" in refused(tmp_path, there[0])
  (tmp_path / names).parent.mkdir(exist_ok=True)
  (tmp_path / names).write_text("\ufeffcat\n\ndog\n", encoding="utf-8")
  assert format_of(tmp_path).NAME == "yolo" and yolo.splits(tmp_path) == there
  source = only(tmp_path, there[0])
  assert [c.name for c in source.categories] == ["cat", "dog"]
  np.testing.assert_allclose(source.annotations.bbox, [[27, 6, 6, 8]] * 2)
  assert source[1].image == picture(40, 60, 1)


def test_validation_is_a_split(tmp_path):
  write(tmp_path, {"b": LINE}, "images/b", "labels/b")
  write(tmp_path, {"a": LINE}, yaml="train: images/train\nvalidation: images/b\ntest:\n" + NAMES)
  assert yolo.splits(tmp_path) == ["train", "validation"] and len(only(tmp_path, "validation")) == 1


@pytest.mark.parametrize("labels", (None, "", "\n"))
@pytest.mark.parametrize("layout", ("images/{}", "{}/images", "{}"))
def test_a_split_without_labels_is_not_left_out(tmp_path, labels, layout):
  for split, text in (("train", LINE), ("val", labels)):
    images = layout.format(split)
    write(tmp_path, {split: text}, images, images.replace("images", "labels"), yaml="names: [cat, dog]\n")
  with pytest.raises(UserError, match="val has 1 pictures, but there is no label file with a box for them"):
    yolo.splits(tmp_path)


@pytest.mark.parametrize("before", ("", "data/", "/elsewhere/set/"))
def test_pictures_of_other_splits_lists_are_not_taken(tmp_path, before):
  for split in ("train", "val"):
    write(tmp_path, {"a": LINE, "b": LINE}, f"obj_{split}", f"obj_{split}", yaml=NAMES)
    (tmp_path / f"{split}.txt").write_text(f"{before}obj_{split}/a.jpg\n{before}obj_{split}/b.jpg\n")
  (tmp_path / "obj_train/b.jpg").unlink()
  (tmp_path / "obj_train/b.txt").unlink()
  assert "b.jpg (image id 2): the file does not exist" in refused(tmp_path)
  assert len(only(tmp_path, "val")) == 2


def test_an_empty_list_of_a_split_is_not_left_out(tmp_path):
  write(tmp_path, {"a": LINE}, yaml=NAMES)
  (tmp_path / "train.txt").write_text("images/train/a.jpg\n")
  (tmp_path / "val.txt").write_text("")
  with pytest.raises(UserError, match=r"val\.txt does not begin with the path of a picture"):
    yolo.splits(tmp_path)


def test_lists_of_names_that_contradict_are_refused(tmp_path):
  for split, names in (("train", "cat\ndog"), ("val", "dog\ncat")):
    write(tmp_path, {split: LINE}, f"images/{split}", f"labels/{split}", yaml="")
    (tmp_path / f"labels/{split}/classes.txt").write_text(names)
  assert "name other classes, or in another order" in refused(tmp_path)


def test_pictures_none_of_which_has_a_label_file_are_refused(tmp_path):
  write(tmp_path, {"a": None})
  assert "none of 1 pictures has a label file" in refused(tmp_path)


def test_a_pair_of_folders(tmp_path):
  write(tmp_path, {"a": LINE}, "pictures", "texts")
  (tmp_path / "pictures/more").mkdir()
  (tmp_path / "pictures/more/b.png").write_bytes(picture(40, 60, 1, ".png"))
  (tmp_path / "texts/more").mkdir()
  (tmp_path / "texts/more/b.txt").write_text(LINE)
  assert yolo.takes(tmp_path / "texts") and not yolo.takes(tmp_path / "pictures")
  labels = yolo.read_pair(tmp_path / "pictures", tmp_path / "texts")
  labels.find_sizes("auto")
  assert labels.annotations.file_name == ["a.jpg", "more/b.png"] and labels.own_ids and not labels.problems
  np.testing.assert_allclose(labels.annotations.bbox, [[27, 6, 6, 8]] * 2)


def test_a_data_yaml_of_16_bits(tmp_path):
  text = ("train: images/train\nval: images/val\n" + NAMES).encode("utf-16")
  write(tmp_path, {"a": LINE, "b": LINE}, yaml=text)
  assert format_of(tmp_path).NAME == "yolo"
