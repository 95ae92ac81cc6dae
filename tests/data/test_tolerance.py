"""What tools write otherwise than COCO is taken for what it means, and said once."""

import json

import numpy as np
import pytest
from PIL import Image

from iou_det.data import Reading, open_dataset
from iou_det.data.coco import read_coco
from iou_det.data.files import find_files
from iou_det.errors import UserError
from tests.data.coco_files import content, picture, write


def read(tmp_path, coco):
  file = tmp_path / "labels.json"
  file.write_text(coco if isinstance(coco, str) else json.dumps(coco))
  return read_coco(file)


def rows(labels):
  """All columns, for comparison."""
  a = labels.annotations
  columns = (a.image_id, a.height, a.width, a.first, a.bbox, a.label, a.crowd, a.area, a.annotation_id)
  return [a.file_name, labels.categories, *(c.tolist() for c in columns)]


def said(labels):
  return {trait: remark.number for trait, remark in labels.remarks.items()}


def each(key, *names):
  """Changes a field of all entries of a list."""
  return lambda change: lambda c: [r.update({n: change(r[n]) for n in names}) for r in c[key]]


ids = each("images", "id")
CASES = {
  "float_sizes": (each("images", "height", "width")(float), {"whole numbers written as 640.0": 8}),
  "float_ids": (
    each("annotations", "image_id", "category_id")(float),
    {"whole numbers written as 640.0": 16},
  ),
  "text_numbers": (each("images", "id", "height")(str), {'numbers written as text ("640")': 8}),
  "text_decimals": (each("images", "width")(lambda v: f" {v}.0 "), {'numbers written as text ("640")': 4}),
  "bool_crowd": (each("annotations", "iscrowd")(bool), {}),
  "float_boxes": (each("annotations", "bbox")(lambda b: [float(v) for v in b]), {}),
  "images_twice": (
    lambda c: c["images"].append(dict(c["images"][0])),
    {"images listed twice (taken once)": 1},
  ),
  "classes_twice": (
    lambda c: c["categories"].append(dict(c["categories"][1])),
    {"categories listed twice (taken once)": 1},
  ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_comes_out(tmp_path, name):
  change, remarks = CASES[name]
  expected, coco = read(tmp_path, content()), content()
  change(coco)
  got = read(tmp_path, coco)
  assert rows(got) == rows(expected) and not got.problems and said(got) == remarks


def test_the_typed_and_the_tolerant_way_read_the_same(tmp_path):
  coco = content()
  for a in coco["annotations"][:3]:
    del a["area"], a["id"]
  coco["annotations"][4]["iscrowd"] = None
  coco["images"].reverse()
  fast = read(tmp_path, coco)
  slow = read(tmp_path, json.dumps(coco | {"info": float("nan")}))  # NaN is no JSON
  assert rows(fast) == rows(slow) and said(fast) == said(slow)
  bad = content()
  bad["annotations"][0].update(category_id=77)
  bad["annotations"][1].update(bbox=[1, 2, -3, 4])
  bad["images"][2].update(height=-7)
  fast, slow = read(tmp_path, bad), read(tmp_path, json.dumps(bad | {"info": float("nan")}))
  assert list(map(str, fast.problems)) == list(map(str, slow.problems)) and len(fast.problems) == 3
  assert rows(fast) == rows(slow)


def test_absent_values_may_be_null_or_text(tmp_path):
  coco = content()
  for i, a in enumerate(coco["annotations"]):
    a.update(area=None, iscrowd=None, id=f"a-{i}")
  labels = read(tmp_path, coco)
  assert not labels.problems and labels.annotations.annotation_id.tolist() == [2, 5, 6, 7, 1, 3, 4, 8]
  np.testing.assert_array_equal(labels.annotations.area, labels.annotations.bbox[:, 2:].prod(axis=1))
  assert said(labels) == {
    "annotations without 'area' (that of the box taken)": 8,
    "annotations without 'iscrowd' (0 taken)": 8,
    "annotation ids that are no whole numbers (their place taken)": 8,
  }


def test_ids_that_are_text_are_numbered(tmp_path):
  coco = content()
  for image in coco["images"]:
    image["id"] = f"f{image['id']}"
  for a in coco["annotations"]:
    a.update(image_id=f"f{a['image_id']}", category_id=f"c{a['category_id']}")
  for c in coco["categories"]:
    c["id"] = f"c{c['id']}"
  labels = read(tmp_path, coco)
  expected = read(tmp_path, content())
  assert not labels.problems and labels.annotations.image_id.tolist() == [1, 2, 3, 4]
  assert [(c.id, c.name) for c in labels.categories] == [(1, "dog"), (2, "a very big bird"), (3, "cat")]
  for name in ("first", "bbox", "label"):
    np.testing.assert_array_equal(getattr(labels.annotations, name), getattr(expected.annotations, name))
  assert list(said(labels).values()) == [4, 3]
  coco["annotations"][0]["image_id"] = "g7"
  assert "there is no image with the id 'g7'" in str(read(tmp_path, coco).problems[0])


def test_an_unused_root_of_all_classes_is_left_out(tmp_path):
  coco = content()
  for c in coco["categories"]:
    c["supercategory"] = "cat"
  root = {"id": 0, "name": "cat", "supercategory": "none"}
  labels = read(tmp_path, coco | {"categories": [root, *coco["categories"]]})
  assert rows(labels) == rows(read(tmp_path, coco)) and list(said(labels).values()) == [1]
  coco["annotations"][0]["category_id"] = 0  # used: then it is a class, and two have one name
  with pytest.raises(UserError, match="more than one category has the name cat"):
    read(tmp_path, coco | {"categories": [root, *coco["categories"]]})
  del coco["categories"][1]["supercategory"]  # not of all
  with pytest.raises(UserError, match="more than one category has the name cat"):
    read(tmp_path, coco | {"categories": [root, *coco["categories"]]})


def test_an_area_of_none_is_that_of_the_box(tmp_path):
  coco = content()
  for a, area in zip(coco["annotations"], (0, -1, 0, 0.0, 300.75, 600, 1e9, 100), strict=True):
    a["area"] = area
  a = read(tmp_path, coco).annotations
  by_id = dict(zip(a.annotation_id.tolist(), a.area.tolist(), strict=True))
  assert by_id == pytest.approx(
    {11: 10.3 * 20.9, 12: 600, 13: 0, 14: 400, 15: 300.75, 2**40: 600, 17: 1e9, 18: 100}
  )


@pytest.mark.parametrize(
  "text",
  [
    '{"images": ' + "[" * 100_000,
    '{"images": [' + "1" * 5000 + "]}",
    json.dumps(content()).encode("utf-16").decode("utf-16")[:-5],
    "",
    "\ufeff",
    '{"images": 1e999999}',
    json.dumps(content()).replace("dog", "d\\ud800g"),
    "[" * 50 + "]" * 50,
  ],
)
def test_garbage_is_one_line(tmp_path, text):
  with pytest.raises(UserError) as error:
    read(tmp_path, text)
  assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_other_encodings_of_json_are_read(tmp_path):
  expected, file = read(tmp_path, content()), tmp_path / "labels.json"
  for encoding in ("utf-8-sig", "utf-16", "utf-32"):
    file.write_bytes(json.dumps(content()).encode(encoding))
    assert rows(read_coco(file)) == rows(expected)


def test_sizes_that_are_not_said_are_the_files(tmp_path):
  coco = content()
  expected = open_dataset(write(tmp_path)[0].parent, "train")
  for image, size in zip(coco["images"], ({}, {"height": None}, {"width": -1}, {"height": 0}), strict=True):
    if not size:
      del image["height"], image["width"]
    image.update(size)
  write_file = tmp_path / "annotations" / "instances_train.json"
  write_file.write_text(json.dumps(coco))
  got = open_dataset(tmp_path, "train")
  for name in ("height", "width"):
    np.testing.assert_array_equal(getattr(got.annotations, name), getattr(expected.annotations, name))
  (tmp_path / "train" / "b.jpg").write_bytes(b"404 not found")
  with pytest.raises(UserError, match=r"b.jpg \(image id 40\): not a readable picture"):
    open_dataset(tmp_path, "train")
  left = open_dataset(tmp_path, "train", Reading(skip_bad=True))
  assert left.annotations.image_id.tolist() == [7, 1000000000007, 3]


def test_files_are_found_by_the_end_of_their_names(tmp_path):
  places = ("a/x.jpg", "a/deep/y.JPG", "a/1/z.png", "a/2/z.png", "a/na\u0308me.png", "b/only.jpg", "a/q.jpg")
  for place in places:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(place.encode())
  names = [
    "x.jpg",
    "C:\\photos\\y.jpg",
    "other/2/z.png",
    "z.png",
    "n\u00e4me.png",
    "wrong/only.jpg",
    "no.jpg",
  ]
  found = find_files(names, [tmp_path / "a", tmp_path], avoid=[tmp_path / "b"])
  read = [found.files.read(i).decode() if i not in found.missing else None for i in range(len(names))]
  assert read == ["a/x.jpg", "a/deep/y.JPG", "a/2/z.png", None, "a/na\u0308me.png", None, None]
  assert found.missing[3].startswith("there are 2 files of its name: ") and found.elsewhere == [1, 2, 4]
  assert found.missing[5] == found.missing[6] == "the file does not exist"


def test_a_file_of_another_split_is_not_taken(tmp_path):
  for split in ("train", "val"):
    write(tmp_path, split)
  (tmp_path / "train" / "b.jpg").unlink()
  with pytest.raises(UserError, match=r"train/b.jpg \(image id 40\): the file does not exist"):
    open_dataset(tmp_path, "train")


def test_bad_pictures_in_place_are_dropped_with_their_boxes(tmp_path):
  images, _ = write(tmp_path)
  whole = (images / "b.jpg").read_bytes()
  (images / "b.jpg").write_bytes(whole[: len(whole) // 2])
  assert len(open_dataset(tmp_path, "train")) == 4  # not looked at
  source = open_dataset(tmp_path, "train", Reading(skip_bad=True))
  assert len(source) == 3 and source.read(0) == (images / "a.jpg").read_bytes()
  assert len(source.annotations.bbox) == 4
  (images / "a.jpg").write_bytes(picture(50, 40))  # of another size than annotated
  assert len(open_dataset(tmp_path, "train", Reading(skip_bad=True))) == 2


def test_an_id_that_two_files_claim_is_of_neither(tmp_path):
  coco = content()
  coco["images"].append({"id": 7, "file_name": "another.jpg", "height": 48, "width": 64})
  labels = read(tmp_path, coco)
  assert [str(p).split(": ", 1)[1] for p in labels.problems] == [
    "a second image has this id (another.jpg); ids must differ",
    "a second image has this id (a.jpg); ids must differ",
  ]
  assert 7 not in labels.annotations.image_id and labels.dropped_boxes == 3
  coco["images"][1]["width"] = 40.5  # so that the typed way refuses the file, and this row
  assert 7 not in read(tmp_path, coco).annotations.image_id


def test_folders_of_other_splits_are_not_looked_into(tmp_path):
  for split, folder in (("train", "images/train2017"), ("val", "images/val2017"), ("test", "testing")):
    images, _ = write(tmp_path, split)
    (tmp_path / folder).parent.mkdir(exist_ok=True)
    images.rename(tmp_path / folder)
  assert len(open_dataset(tmp_path, "val")) == 4
  (tmp_path / "images/train2017/b.jpg").unlink()
  with pytest.raises(UserError, match=r"b.jpg \(image id 40\): the file does not exist"):
    open_dataset(tmp_path, "train")


def test_many_files_of_one_name_take_no_time(tmp_path):
  for k in range(300):
    (tmp_path / f"v{k}").mkdir()
    (tmp_path / f"v{k}" / "0001.jpg").write_bytes(b"")
  found = find_files([f"elsewhere/v{k}/0001.jpg" for k in range(300)], [tmp_path])
  assert found.files.names[7].endswith("/v7/0001.jpg") and not found.missing


def test_a_large_file_is_known_by_its_beginning_and_end(tmp_path):
  """Of whose lists the first and the last 64 KB show one alone."""
  images, file = write(tmp_path)
  coco = content()
  filler = [{"id": 5000 + i, "file_name": "b.jpg", "height": 48, "width": 64} for i in range(2000)]
  file.unlink()
  lists = {"images": [*coco["images"], *filler]} | {k: coco[k] for k in ("annotations", "categories")}
  (tmp_path / "result.json").write_text(json.dumps(lists | {"info": "x" * 70_000}))
  images.rename(tmp_path / "images")
  assert len(open_dataset(tmp_path, "default").annotations.bbox) == 8


def test_boxes_in_another_form_are_told_in_place(tmp_path, caplog):
  rng = np.random.default_rng(0)
  coco = content()
  corners = np.sort(rng.integers(0, 40, (40, 2, 2)), axis=1) + [[0, 0], [8, 8]]
  coco["annotations"] = [
    {"id": i, "image_id": 40, "category_id": 9, "bbox": [*map(int, c.reshape(-1))]}
    for i, c in enumerate(corners)
  ]
  write(tmp_path, coco=coco)
  open_dataset(tmp_path, "train")
  assert "boxes that seem to be x1 y1 x2 y2 given as x y w h: train 40" in caplog.text


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_size_that_is_not_said_is_as_shown_however_large_the_file(tmp_path, kind):
  """EXIF may stand behind the pixels, beyond what holds the size."""
  images, file = write(tmp_path)
  coco = content()
  coco["images"][0] |= {"file_name": f"turned.{kind.lower()}"}
  del coco["images"][0]["height"], coco["images"][0]["width"]
  file.write_text(json.dumps(coco))
  exif, sizes = Image.Exif(), []
  exif[0x0112] = 6
  for height, width in ((48, 64), (300, 400)):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = images / coco["images"][0]["file_name"]
    Image.fromarray(noise).save(path, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    a = open_dataset(tmp_path, "train").annotations
    sizes.append((int(a.height[0]), int(a.width[0]), path.stat().st_size > 1 << 16))
  assert sizes == [(64, 48, False), (400, 300, True)]
