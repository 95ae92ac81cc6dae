"""Pascal VOC folders in the layouts and with the oddities that their tools give them."""

import numpy as np
import pytest

from iou_det.data import Reading, format_of, open_dataset, read_labels, voc
from iou_det.errors import UserError
from tests.data.coco_files import picture

CORNERS = "<xmin>3</xmin><ymin>4</ymin><xmax>12</xmax><ymax>14</ymax>"
DOG = f"<object><name>dog</name><bndbox>{CORNERS}</bndbox></object>"


def text(objects=DOG, name="a.jpg", size="<size><width>60</width><height>40</height></size>"):
  return f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"


def write(root, files, images="JPEGImages", annotations="Annotations", suffix=".jpg"):
  """XML files by their names without suffix, each with a picture."""
  for folder in (images, annotations):
    (root / folder).mkdir(parents=True, exist_ok=True)
  for i, (name, content) in enumerate(files.items()):
    content = content if isinstance(content, bytes) else content.encode()
    (root / annotations / f"{name}.xml").write_bytes(content)
    (root / images / f"{name}{suffix}").write_bytes(picture(40, 60, i, suffix))
  return root


def only(root, split="default", **reading):
  return open_dataset(root, split, Reading(**reading))


def refused(root, split="default"):
  with pytest.raises(UserError) as error:
    only(root, split)
  assert "\n" not in str(error.value)
  return str(error.value)


def test_corners_are_pixels_from_1_that_the_box_has(tmp_path):
  source = only(write(tmp_path, {"a": text()}))
  np.testing.assert_array_equal(source.annotations.bbox, [[2, 3, 10, 11]])
  assert source.annotations.area.tolist() == [110]
  remarks = read_labels(tmp_path, "default").remarks
  assert [r.number for trait, r in remarks.items() if "counted from 1, both inside" in trait] == [1]


@pytest.mark.parametrize("corner", ("xmin", "ymin"))
def test_one_0_in_any_split_says_that_all_count_from_0(tmp_path, corner):
  number = {"xmin": 3, "ymin": 4}[corner]
  write(tmp_path, {"a": text()}, "train", "train")
  write(tmp_path, {"b": text(DOG.replace(f"<{corner}>{number}", f"<{corner}>0"))}, "val", "val")
  np.testing.assert_array_equal(only(tmp_path, "train").annotations.bbox, [[3, 4, 9, 10]])
  labels = read_labels(tmp_path, "train")
  assert [r.number for trait, r in labels.remarks.items() if "start at 0" in trait] == [1]
  assert not [trait for trait in labels.remarks if "counted from 1" in trait]


def test_spaces_floats_and_names_of_any_script(tmp_path):
  odd = DOG.replace("dog", "\n  犬 \n").replace(">3<", "> 3.0 <").replace(">14<", ">14.5<")
  source = only(write(tmp_path, {"a": text(odd)}))
  assert source.categories[0].name == "犬"
  np.testing.assert_array_equal(source.annotations.bbox, [[2, 3, 10, 11.5]])


def test_difficult_boxes_are_neither_trained_on_nor_counted(tmp_path):
  objects = "".join(
    DOG.replace("</name>", f"</name><difficult>{d}</difficult>") for d in ("0", "1", "True", "")
  )
  assert only(write(tmp_path, {"a": text(objects)})).annotations.crowd.tolist() == [False, True, True, False]


def test_parts_are_no_objects(tmp_path):
  part = (
    "<part><name>head</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>6</xmax><ymax>6</ymax></bndbox></part>"
  )
  source = only(write(tmp_path, {"a": text(DOG.replace("</object>", f"{part}</object>"))}))
  assert [c.name for c in source.categories] == ["dog"] and len(source.annotations.bbox) == 1


@pytest.mark.parametrize("size", ("", "<size><width>0</width><height>0</height></size>", "<size/>"))
def test_sizes_that_are_not_said_are_the_files(tmp_path, size):
  a = only(write(tmp_path, {"a": text(size=size)})).annotations
  assert (a.height[0], a.width[0]) == (40, 60)


BAD = {
  "exchanged": (DOG.replace(">14<", ">1<"), "xmin 3, ymin 4, xmax 12, ymax 1: min is above max"),
  "inside out by two": (DOG.replace(">12<", ">1<"), "object 2 (dog)"),
  "polygon only": ("<object><name>dog</name><polygon><x1>1</x1></polygon></object>", "only a <polygon>"),
  "no name": (DOG.replace("dog", " "), "object 2: has no <name>"),
  "no number": (DOG.replace(">12<", ">twelve<"), "<xmax> is 'twelve', must be a number"),
  "nothing": (DOG.replace("<xmax>12</xmax>", ""), "has no <xmax>"),
  "NaN": (DOG.replace(">12<", ">nan<"), "<xmax> is 'nan'"),
  "Python's number": (DOG.replace(">12<", ">1_2<"), "<xmax> is '1_2', must be a number"),
  "endless": (DOG.replace(">12<", ">1e999<"), "<xmax> is '1e999'"),
  "difficult": (DOG.replace("</name>", "</name><difficult>maybe</difficult>"), "<difficult> is 'maybe'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_objects_are_refused_or_dropped(tmp_path, name):
  objects, message = BAD[name]
  write(tmp_path, {"a": text(DOG + objects), "b": text()})
  assert "1 bad record of 5" in refused(tmp_path)
  assert message in refused(tmp_path) and "a.xml" in refused(tmp_path)
  assert len(only(tmp_path, skip_bad=True).annotations.bbox) == 2


def test_a_box_of_no_width_ends_before_it_starts(tmp_path):
  source = only(write(tmp_path, {"a": text(DOG.replace(">12<", ">2<"))}))
  assert source.annotations.bbox[0, 0] == 2 and source.annotations.bbox[0, 2] == 0


BOMB = '<!DOCTYPE a [<!ENTITY x "' + "y" * 1000 + '">' + "".join(
  f'<!ENTITY x{i} "{("&x%s;" % (i - 1 if i else "")) * 100}">' for i in range(9)) + "]>"  # fmt: skip
FILES = {
  "cut off": (text()[:60], "is no XML that can be read"),
  "empty": ("", "is no XML that can be read"),
  "bomb": (BOMB + text("&x8;"), "has a DOCTYPE"),
  "outside": ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + text("&x;"), "has a DOCTYPE"),
  "bomb in 16 bits": (('<?xml version="1.0"?>' + BOMB + text("&x8;")).encode("utf-16"), "has a DOCTYPE"),
  "another root": ("<annotations/>", "is <annotations>, must be <annotation>"),
  "encoding": (b'<?xml version="1.0" encoding="nothing"?>' + text().encode(), "is no XML that can be read"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files_are_one_record(tmp_path, name):
  content, message = FILES[name]
  write(tmp_path, {"a": text(), "b": content})
  assert "1 bad record of 3" in refused(tmp_path)
  assert message in refused(tmp_path) and "b.xml" in refused(tmp_path)
  assert only(tmp_path, skip_bad=True).annotations.file_name == ["a.jpg"]


@pytest.mark.parametrize("encoding", ("utf-8-sig", "utf-16", "gb2312", "iso-8859-1", "shift_jis"))
def test_encodings(tmp_path, encoding):
  name = "é" if encoding == "iso-8859-1" else "犬"
  stated = encoding if encoding not in ("utf-8-sig", "utf-16") else "utf-8" if "8" in encoding else "UTF-16"
  content = f'<?xml version="1.0" encoding="{stated}"?>{text(DOG.replace("dog", name))}'.encode(encoding)
  assert only(write(tmp_path, {"a": content})).categories[0].name == name


def test_the_picture_is_that_of_the_files_own_name(tmp_path):
  write(tmp_path, {"a": text(), "b": text(name="a.jpg"), "c": text(name="C:\\photos\\c.png")})
  labels = read_labels(tmp_path, "default")
  assert labels.annotations.file_name == ["a.jpg", "b.jpg", "c.jpg"]
  assert [(r.number, r.examples) for trait, r in labels.remarks.items() if "<filename>" in trait] == [
    (2, ["b.xml: a.jpg", "c.xml: c.png"])
  ]


def test_else_that_of_the_filename(tmp_path):
  write(tmp_path, {"1": text(name="x/photo one.JPG")})
  (tmp_path / "JPEGImages" / "1.jpg").rename(tmp_path / "JPEGImages" / "photo one.jpg")
  assert only(tmp_path)[0].image == picture(40, 60, 0)


def test_pictures_that_are_not_there_are_named_and_others_counted(tmp_path):
  write(tmp_path, {"a": text(), "b": text()})
  (tmp_path / "JPEGImages" / "b.jpg").rename(tmp_path / "JPEGImages" / "c.jpg")
  (tmp_path / "Annotations" / "b.xml").write_text(text(name="b.jpg"))
  assert "b.jpg (image id 2): the file does not exist" in refused(tmp_path)
  remarks = read_labels(tmp_path, "default").remarks
  assert [str(r) for trait, r in remarks.items() if "without an XML" in trait] == ["1 (c.jpg)"]


def test_image_sets_are_the_splits(tmp_path):
  write(tmp_path / "VOC2007", {"a": text(), "b": text(), "c d": text(DOG.replace("dog", "ant"))})
  sets = tmp_path / "VOC2007" / "ImageSets" / "Main"
  sets.mkdir(parents=True)
  (sets / "train.txt").write_text("b\r\na.jpg\r\n\r\n")
  (sets / "val.txt").write_text("c d\n")
  (sets / "dog_train.txt").write_text("a  1\nb -1\n")
  for root in (tmp_path, tmp_path / "VOC2007"):
    assert voc.splits(root) == ["train", "val"]
    assert only(root, "train").annotations.file_name == ["b.jpg", "a.jpg"]
    assert only(root, "val").categories == only(root, "train").categories
  (sets / "train.txt").write_text("b\na\nb\n")
  assert only(tmp_path, "train").annotations.file_name == ["b.jpg", "a.jpg"]
  assert [r.number for t, r in read_labels(tmp_path, "train").remarks.items() if "twice" in t] == [1]
  (sets / "val.txt").write_text("c d\ne\n")
  assert "e.xml: the XML file does not exist" in refused(tmp_path, "val")
  (sets / "val.txt").write_text("c d\nv\0\x0be\n")
  assert "v\\x00.xml: " in refused(tmp_path, "val") and "e.xml: the XML" in refused(tmp_path, "val")


def test_xml_files_in_upper_case_and_those_that_no_list_has(tmp_path):
  write(tmp_path, {"a": text(), "b": text(), "c": text()})
  (tmp_path / "Annotations/a.xml").rename(tmp_path / "Annotations/a.XML")
  assert only(tmp_path).annotations.file_name == ["a.jpg", "b.jpg", "c.jpg"]
  (tmp_path / "ImageSets/Main").mkdir(parents=True)
  (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
  (tmp_path / "JPEGImages/d.jpg").write_bytes(picture(40, 60, 3))
  remarks = {t: str(r) for t, r in read_labels(tmp_path, "train").remarks.items() if "left out" in t}
  assert remarks == {
    "pictures whose XML file no list in ImageSets has (left out)": "2 (b.jpg, c.jpg)",
    "pictures without an XML file (left out)": "1 (d.jpg)",
  }


@pytest.mark.parametrize(
  "layout", (("images/{}", "Annotations/{}"), ("{}", "{}"), ("{}/images", "{}/Annotations"))
)
def test_pictures_of_other_splits_are_not_taken(tmp_path, layout):
  for split, files in (("train", {"a": text(), "b": text(name="b.jpg")}), ("val", {"b": text(name="b.jpg")})):
    write(tmp_path, files, *(folder.format(split) for folder in layout))
  (tmp_path / layout[0].format("train") / "b.jpg").unlink()
  assert "b.jpg (image id 2): the file does not exist" in refused(tmp_path, "train")
  assert len(only(tmp_path, "val")) == 1


@pytest.mark.parametrize("images, annotations", (("images/{}", "Annotations/{}"), ("{}", "{}")))
def test_a_split_without_xml_files_is_not_left_out(tmp_path, images, annotations):
  for split in ("train", "val"):
    write(tmp_path, {"a": text()}, images.format(split), annotations.format(split))
  (tmp_path / annotations.format("val") / "a.xml").unlink()
  with pytest.raises(UserError, match="val has 1 pictures, but there is no <annotation> file"):
    voc.splits(tmp_path)


def test_an_empty_list_of_a_split_is_not_left_out(tmp_path):
  write(tmp_path, {"a": text()})
  (tmp_path / "ImageSets").mkdir()
  (tmp_path / "ImageSets/train.txt").write_text("a\n")
  (tmp_path / "ImageSets/val.txt").write_text("\n")
  with pytest.raises(UserError, match=r"val\.txt lists no pictures"):
    voc.splits(tmp_path)


def test_several_years_are_one_data_set(tmp_path):
  for year, name in (("VOC2007", "a"), ("VOC2012", "b")):
    write(tmp_path / year, {name: text()})
    sets = tmp_path / year / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "trainval.txt").write_text(name)
  (sets.parent.parent.parent / "VOC2007" / "ImageSets" / "Main" / "test.txt").write_text("a")
  assert voc.splits(tmp_path) == ["test", "trainval"]
  source = only(tmp_path, "trainval")
  assert source.annotations.file_name == ["VOC2007/JPEGImages/a.jpg", "VOC2012/JPEGImages/b.jpg"]
  assert [source[i].image for i in range(2)] == [picture(40, 60, 0)] * 2


LAYOUTS = {  # pictures, XML files, splits
  "kaggle": ("images", "annotations", ["default"]),
  "beside each other": ("", "", ["default"]),
  "pets": ("images", "annotations/xmls", ["default"]),
  "folders": ("images/train", "Annotations/train", ["train"]),
  "roboflow": ("train", "train", ["train"]),
  "of a split": ("train/JPEGImages", "train/Annotations", ["train"]),
  "pictures apart": ("images/train", "train", ["train"]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
  images, annotations, there = LAYOUTS[name]
  write(tmp_path, {"a": text(), "b": text()}, images, annotations, ".png")
  assert format_of(tmp_path).NAME == "voc" and voc.splits(tmp_path) == there
  source = only(tmp_path, there[0])
  assert source.annotations.file_name == ["a.png", "b.png"] and source[1].image == picture(40, 60, 1, ".png")


def test_other_xml_is_not_taken(tmp_path):
  write(tmp_path, {"a": "<annotations><image/></annotations>"})
  assert not voc.recognises(tmp_path)
  assert "a Pascal VOC folder (no Annotations/*.xml" in refused(tmp_path)


def test_a_pair_of_folders(tmp_path):
  write(tmp_path, {"a": text()}, "pictures", "texts")
  assert voc.takes(tmp_path / "texts") and not voc.takes(tmp_path / "pictures")
  labels = voc.read_pair(tmp_path / "pictures", tmp_path / "texts")
  assert not labels.problems and labels.annotations.bbox.tolist() == [[2, 3, 10, 11]] and not labels.own_ids


def test_texts_of_16_bits_need_no_mark(tmp_path):
  for encoding in ("utf-16-le", "utf-16-be"):
    assert only(write(tmp_path, {"a": text().encode(encoding)})).annotations.file_name == ["a.jpg"]


def test_a_message_has_an_end(tmp_path):
  write(tmp_path, {"a": text(DOG.replace(">12<", ">1<").replace("dog", "d" * 9000))})
  assert len(refused(tmp_path)) < 1000
