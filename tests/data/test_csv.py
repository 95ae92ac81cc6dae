"""CSV files of boxes with the columns and oddities that their tools give them."""

import numpy as np
import pytest

from iou_det.data import Reading, csv, format_of, open_dataset, read_labels
from iou_det.errors import UserError
from tests.data.coco_files import picture

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax"
ROW = "a.jpg,60,40,dog,3,4,12,14"
BOX = [3, 4, 9, 10]


def write(root, text, file="train.csv", names=("a.jpg", "b.jpg"), images="train"):
  for folder in ((root / file).parent, root / images):
    folder.mkdir(parents=True, exist_ok=True)
  (root / file).write_bytes(text if isinstance(text, bytes) else text.encode())
  for i, name in enumerate(names):
    (root / images / name).write_bytes(picture(40, 60, i))
  return root


def only(root, split="train", **reading):
  return open_dataset(root, split, Reading(**reading))


def refused(root, split="train"):
  with pytest.raises(UserError) as error:
    only(root, split)
  assert "\n" not in str(error.value)
  return str(error.value)


FORMS = {
  "TensorFlow": f"{HEADER}\n{ROW}\n",
  "another order": "class,xmax,xmin,ymax,ymin,filename,height,width\ndog,12,3,14,4,a.jpg,40,60\n",
  "upper case and spaces": "File Name,Class Name,X_Min,Y-Min,XMax,YMax\na.jpg, dog ,3, 4 ,12.0,1.4e1\n",
  "DeepForest": "image_path,xmin,ymin,xmax,ymax,label\na.jpg,3,4,12,14,dog\n",
  "semicolons, decimal commas": "filename;class;x1;y1;x2;y2\na.jpg;dog;3,0;4,0;12,0;14\n",
  "tabs": "filename\tclass\txmin\tymin\txmax\tymax\na.jpg\tdog\t3\t4\t12\t14\n",
  "byte order mark, Windows lines": b"\xef\xbb\xbf" + f"{HEADER}\r\n{ROW}\r\n".encode(),
  "Excel's Unicode text": f"{HEADER}\n{ROW}\n".replace(",", "\t").encode("utf-16"),
  "quotes, blank lines": '\n"filename",class,xmin,ymin,xmax,"ymax"\n\n"a.jpg","dog","3","4","12","14"\n\n',
  "empty columns behind": f"{HEADER},,\n{ROW},,\n",
  "RetinaNet": "train/a.jpg,3,4,12,14,dog\n",
  "sizes of the boxes": "filename,class,xmin,ymin,xmax,ymax,width,height\na.jpg,dog,3,4,12,14,9,10\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_columns_are_found(tmp_path, name):
  source = only(write(tmp_path, FORMS[name]))
  assert format_of(tmp_path).NAME == "csv" and csv.splits(tmp_path) == ["train"]
  assert source.annotations.bbox.tolist() == [BOX] and source.annotations.area.tolist() == [90]
  assert [(c.id, c.name) for c in source.categories] == [(1, "dog")]
  assert source[0].image == picture(40, 60, 0) and (source[0].height, source[0].width) == (40, 60)


def test_rows_without_box_are_pictures_without_objects(tmp_path):
  write(tmp_path, "train/a.jpg,3,4,12,14,dog\ntrain/b.jpg,,,,,\n")
  a = only(tmp_path).annotations
  assert a.file_name == ["train/a.jpg", "train/b.jpg"] and np.diff(a.first).tolist() == [1, 0]
  write(tmp_path, f"{HEADER}\nb.jpg,60,40,,,,,\n{ROW}\n")
  a = only(tmp_path).annotations
  assert a.file_name == ["b.jpg", "a.jpg"] and np.diff(a.first).tolist() == [0, 1]


def test_rows_of_a_picture_need_not_stand_together(tmp_path):
  write(tmp_path, f"{HEADER}\n{ROW}\nb.jpg,60,40,ant,1,2,3,4\na.jpg,60,40,ant,5,6,7,8\n")
  a = only(tmp_path).annotations
  assert a.bbox.tolist() == [BOX, [5, 6, 2, 2], [1, 2, 2, 2]] and a.first.tolist() == [0, 2, 3]
  assert a.label.tolist() == [1, 0, 0]


BAD = {
  "exchanged": ("a.jpg,60,40,dog,13,4,12,14", "xmin 13, ymin 4, xmax 12, ymax 14: min is above max"),
  "text": ("a.jpg,60,40,dog,three,4,12,14", "xmin is 'three', must be a number"),
  "NaN": ("a.jpg,60,40,dog,nan,4,12,14", "xmin is 'nan', must be a number"),
  "NaN only": ("a.jpg,60,40,dog,nan,NaN,nan,nan", "xmin is 'nan', must be a number"),
  "thousands": ('a.jpg,60,40,dog,3,4,12,"1,024"', "ymax is '1,024', must be a number"),
  "Python's number": ("a.jpg,60,40,dog,3,4,1_2,14", "xmax is '1_2', must be a number"),
  "endless": ("a.jpg,60,40,dog,3,4,1e999,14", "must be four finite numbers"),
  "no corner": ("a.jpg,60,40,dog,3,4,,14", "xmax is '', must be a number"),
  "no corners": ("a.jpg,60,40,dog,,,,", "has a class but no corners"),
  "no class": ("a.jpg,60,40, ,3,4,12,14", "has corners but no class"),
  "no name": (" ,60,40,dog,3,4,12,14", "has no file name"),
  "short": ("a.jpg,60,40,dog,3,4,12", "has 7 fields, the first row 8"),
  "long": ("a, b.jpg,60,40,dog,3,4,12,14", "has 9 fields, the first row 8"),
  "another size": ("a.jpg,40,60,dog,3,4,12,14", "the picture has 40x60 pixels here, 60x40 in its first row"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_refused_or_dropped(tmp_path, name):
  row, message = BAD[name]
  write(tmp_path, f"{HEADER}\n{ROW}\n{row}\n{ROW}\n")
  assert "1 bad record of " in refused(tmp_path) and "train.csv, row 3" in refused(tmp_path)
  assert message in refused(tmp_path)
  assert only(tmp_path, skip_bad=True).annotations.bbox.tolist() == [BOX, BOX]


def test_sizes_with_decimal_commas_are_compared(tmp_path):
  row = "a.jpg;dog;3,0;4,0;12,0;14;{};40,0\n"
  write(tmp_path, "filename;class;x1;y1;x2;y2;width;height\n" + row.format("60,0") + row.format("61,0"))
  assert "the picture has 61x40 pixels here, 60x40 in its first row" in refused(tmp_path)


def test_the_size_is_that_of_the_first_row_that_says_one(tmp_path):
  unsaid = ROW.replace("60,40", ",")
  write(tmp_path, f"{HEADER}\n{unsaid}\n{ROW}\n{ROW.replace('60,40', '0,0')}\n")
  a = only(tmp_path).annotations
  assert a.bbox.tolist() == [BOX] * 3 and (a.height[0], a.width[0]) == (40, 60)


FILES = {
  "columns": "filename,bbox\na.jpg,3 4 12 14\n",
  "empty": "",
  "binary": b"\xff\xd8\xff\x00" * 50,
  "one column": "filename\na.jpg\n",
}


@pytest.mark.parametrize("name", FILES)
def test_other_files_are_not_taken(tmp_path, name):
  write(tmp_path, FILES[name])
  assert not csv.recognises(tmp_path)
  assert "a folder of CSV files (no SPLIT.csv" in refused(tmp_path)
  with pytest.raises(UserError, match=r"begins with .*; it needs a header with filename, class, xmin"):
    csv.read_pair(tmp_path / "train", tmp_path / "train.csv")


@pytest.mark.parametrize("bad", (b"\xe9.jpg", b'"a.jpg'))
def test_files_that_cannot_be_read_as_text(tmp_path, bad):
  write(tmp_path, f"{HEADER}\n{ROW}\n".encode() + bad + b",60,40,dog,1,2,3,4\n" + ROW.encode() * 20_000)
  assert "train.csv" in refused(tmp_path)


def test_a_file_of_a_header_only(tmp_path):
  assert "has no row" in refused(write(tmp_path, HEADER + "\n"))


@pytest.mark.parametrize("text", ("dog,7\nant,3\n", "class,id\ndog,7\nant,3\n", "id,name\n7,dog\n3,ant\n"))
def test_a_file_of_classes_gives_the_ids(tmp_path, text):
  write(tmp_path, f"{HEADER}\n{ROW}\n")
  (tmp_path / "class_list.csv").write_text(text)
  labels = read_labels(tmp_path, "train")
  assert [(c.id, c.name) for c in labels.categories] == [(3, "ant"), (7, "dog")]
  assert labels.annotations.label.tolist() == [1] and labels.own_ids and csv.splits(tmp_path) == ["train"]
  (tmp_path / "class_list.csv").write_text("ant,3\ncat,7\n")
  assert "row 2 (a.jpg): the class 'dog' is not in the file of classes" in refused(tmp_path)
  (tmp_path / "class_list.csv").write_text("dog,3\ncat,3\n")
  assert "more than one class has the id 3" in refused(tmp_path)


def test_the_order_of_the_classes_is_that_of_all_splits(tmp_path):
  write(tmp_path, f"{HEADER}\n{ROW}\n")
  write(tmp_path, f"{HEADER}\n{ROW.replace('dog', 'ant')}\n", "test.csv", images="test")
  for split, label in (("train", 1), ("test", 0)):
    source = only(tmp_path, split)
    assert [c.name for c in source.categories] == ["ant", "dog"] and source.annotations.label.tolist() == [
      label
    ]


def test_shares_of_the_sides(tmp_path):
  write(tmp_path, "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,/m/1,.1,.2,.25,.5,1\n")
  labels = read_labels(tmp_path, "train")
  np.testing.assert_allclose(labels.annotations.bbox, [[6, 10, 6, 10]])
  assert labels.annotations.crowd.tolist() == [True] and labels.annotations.file_name == ["a.jpg"]
  assert [r.number for trait, r in labels.remarks.items() if "shares" in trait] == [1]


@pytest.mark.parametrize("xmax,shares", (("1.00001", True), ("1.5", False)))
def test_a_share_may_be_above_1_by_rounding(tmp_path, xmax, shares):
  write(tmp_path, f"train/a.jpg,.1,.25,.2,.5,dog\ntrain/b.jpg,.5,-.00001,{xmax},.5,dog\n")
  boxes = read_labels(tmp_path, "train").annotations.bbox
  np.testing.assert_allclose(boxes[0], [6, 10, 6, 10] if shares else [0.1, 0.25, 0.1, 0.25])


def test_a_box_of_one_pixel_is_no_share(tmp_path):
  assert only(write(tmp_path, "train/a.jpg,0,0,1,1,dog\n")).annotations.bbox.tolist() == [[0, 0, 1, 1]]


LAYOUTS = {  # file, pictures, split
  "TensorFlow's tutorial": ("data/train_labels.csv", "images/train", "train"),
  "of one folder": ("annotations/labels.csv", "images", "default"),
  "Roboflow": ("valid/_annotations.csv", "valid", "valid"),
  "named the other way round": ("labels_val.csv", "val", "val"),
  "beside the pictures": ("images/test_labels.csv", "images", "test"),
  "OpenImages": ("oidv6-validation-annotations-bbox.csv", "validation", "validation"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
  file, images, split = LAYOUTS[name]
  write(tmp_path, f"{HEADER}\n{ROW}\n", file, images=images)
  assert csv.splits(tmp_path) == [split] and only(tmp_path, split)[0].image == picture(40, 60, 0)


def test_a_pair(tmp_path):
  write(tmp_path, f"{HEADER}\n{ROW}\n", "x/y.csv", images="pictures")
  assert csv.takes(tmp_path / "x/y.csv") and not csv.takes(tmp_path / "x")
  labels = csv.read_pair(tmp_path / "pictures", tmp_path / "x/y.csv")
  assert labels.annotations.bbox.tolist() == [BOX] and not labels.problems and not labels.own_ids
  with pytest.raises(UserError, match="does not exist"):
    csv.read_pair(tmp_path / "pictures", tmp_path / "x/z.csv")


def test_a_file_whose_first_row_is_bad_is_still_one_of_boxes(tmp_path):
  write(tmp_path, "a.jpg,three,4,12,14,dog\na.jpg,3,4,12,14,dog\n")
  assert "row 1: xmin is 'three', must be a number" in refused(tmp_path)
  assert only(tmp_path, skip_bad=True).annotations.bbox.tolist() == [BOX]


def test_a_split_that_is_garbage_is_not_left_out(tmp_path):
  write(tmp_path, f"{HEADER}\n{ROW}\n")
  (tmp_path / "val.csv").write_text("404 not found")
  (tmp_path / "notes.csv").write_text("what,when\nbought,2019\n")
  assert csv.splits(tmp_path) == ["train", "val"]
  assert "val.csv begins with '404 not found'; it needs a header" in refused(tmp_path, "val")
  (tmp_path / "test").mkdir()
  (tmp_path / "test/_annotations.csv").write_text("404 not found")
  assert "_annotations.csv begins with '404 not found'" in refused(tmp_path, "test")


@pytest.mark.parametrize("first, second, message", (
  ("train.csv", "train_labels.csv", "are both of the split 'train'"),
  ("train.csv", "data/train.csv", "are both of the split 'train'"),
  ("valid/a.csv", "valid/b.csv", "valid has 2 files of boxes (a.csv, b.csv)"),
))  # fmt: skip
def test_of_two_files_of_a_split_none_is_left_out(tmp_path, first, second, message):
  write(tmp_path, f"{HEADER}\n{ROW}\n", "test/_annotations.csv")
  for file in (first, second):
    write(tmp_path, f"{HEADER}\n{ROW}\n", file)
  with pytest.raises(UserError) as error:
    csv.splits(tmp_path)
  assert message in str(error.value) and first[-5:] in str(error.value) and second[-5:] in str(error.value)


@pytest.mark.parametrize("file", ("data/val.csv", "val/_annotations.csv", "labels/val_labels.csv"))
def test_splits_of_several_places(tmp_path, file):
  write(tmp_path, f"{HEADER}\n{ROW}\n")
  write(tmp_path, f"{HEADER}\n{ROW}\n", file, images="val")
  write(tmp_path, f"{HEADER}\n{ROW}\n", "data/spare.csv")
  assert csv.splits(tmp_path) == ["train", "val"]
  assert only(tmp_path, "val")[0].image == picture(40, 60, 0)


def test_pictures_of_a_split_without_a_file_are_not_left_out(tmp_path):
  write(tmp_path, f"{HEADER}\n{ROW}\n", "train/_annotations.csv")
  write(tmp_path, "", "val/readme.txt", images="val")
  with pytest.raises(UserError, match="val has 2 pictures, but there is no CSV file for them"):
    csv.splits(tmp_path)


def test_names_with_a_zero_byte_and_endless_fields_are_refused(tmp_path):
  write(tmp_path, f"{HEADER}\n{ROW}\nx\0/b.jpg,60,40,dog,3,4,12,14\n")
  assert "its name has a zero byte" in refused(tmp_path)
  write(tmp_path, f"{HEADER}\n{ROW}\na.jpg,60,40,d\0g,3,4,12,14\n")
  assert "a category has the name 'd\\x00g'" in refused(tmp_path)
  write(tmp_path, f"{HEADER}\n{ROW}\n")
  (tmp_path / "classes.csv").write_text("dog," + "9" * 200_000)
  assert only(tmp_path).annotations.bbox.tolist() == [BOX]
