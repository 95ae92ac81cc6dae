"""An annotation file to score against must belong to the data, and is read as `prepare` reads it."""

import json

import pytest

from iou_det.data import open_dataset
from iou_det.errors import UserError
from iou_det.evaluation.truth import ground_truth
from tests.data.coco_files import content, open_pair, write
from tests.data.test_sources import BAD


@pytest.fixture
def source(tmp_path):
  write(tmp_path)
  return open_dataset(tmp_path, "train")


def truth(tmp_path, source, coco, skip_bad=False):
  file = tmp_path / "truth.json"
  file.write_text(json.dumps(coco))
  return ground_truth(source, str(file), skip_bad)


def test_the_file_of_the_data_is_what_its_own_records_say(tmp_path, source):
  coco = content()
  for image in coco["images"]:  # where the files lie, and as what, does not matter
    image["file_name"] = "elsewhere/" + image["file_name"].replace(".jpg", ".png")
  key = lambda rows: sorted(json.dumps({k: v for k, v in r.items() if k != "file_name"}) for r in rows)
  ours, theirs = ground_truth(source, ""), truth(tmp_path, source, coco)
  assert key(ours["images"]) == key(theirs["images"]) and ours["categories"] == theirs["categories"]
  without_id = lambda rows: sorted(str((a["image_id"], a["category_id"], a["bbox"], a["area"])) for a in rows)
  assert without_id(ours["annotations"]) == without_id(theirs["annotations"])


def swap(a, b):
  return lambda value: {a: b, b: a}.get(value, value)


def other_names(coco):
  for c in coco["categories"]:
    c["name"] = swap("cat", "dog")(c["name"])


def other_numbers(coco):
  for image in coco["images"]:
    image["id"] = swap(40, 7)(image["id"])
  for a in coco["annotations"]:
    a["image_id"] = swap(40, 7)(a["image_id"])


def other_split(coco):
  for image in coco["images"]:
    image["file_name"] = image["file_name"].replace(".", "_of_val.")


def other_boxes(coco):  # of a split whose files have the same names and sizes
  for a in coco["annotations"]:
    a["bbox"] = [70, 70, 5, 5]


OTHER = {
  "names": (
    other_names,
    "other categories than .* (only in .*truth.json: 2: cat, 9: dog; only in .*: 2: dog, 9",
  ),
  "numbers": (
    other_numbers,
    "image id 40 is b.jpg (64x48) in .*, a.jpg (40x60) in .*truth.json; give the file",
  ),
  "split": (other_split, "image id 40 is b.jpg (64x48) in .*, b_of_val.jpg (64x48) in"),
  "size": (lambda c: c["images"][1].update(width=41), "image id 7 is a.jpg (40x60) in .*, a.jpg (41x60) in"),
  "class": (
    lambda c: c["categories"].append({"id": 1, "name": "owl"}),
    "only in .*truth.json: 1: owl; only in .*: none",
  ),
  "boxes": (
    other_boxes,
    "3 of 3 images have their boxes elsewhere than in .* (image ids 40, 7, 3); give the",
  ),
  "images": (lambda c: c["images"].pop(0), "does not know 1 of the 4 images of .* (ids 40)"),
}


@pytest.mark.parametrize("name", OTHER)
def test_a_file_of_other_data_is_refused(tmp_path, source, name):
  change, message = OTHER[name]
  coco = content()
  change(coco)
  if name == "images":
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] != 40]
  pattern = message.replace("(", r"\(").replace(")", r"\)")
  with pytest.raises(UserError, match=pattern):
    truth(tmp_path, source, coco)


def test_images_that_the_data_lack_are_not_scored(tmp_path, source):
  coco = content()
  coco["images"].append({"id": 99, "file_name": "dropped.jpg", "height": 9, "width": 9})
  coco["annotations"].append({"id": 99, "image_id": 99, "category_id": 9, "bbox": [1, 1, 5, 5]})
  got = truth(tmp_path, source, coco)
  assert len(got["images"]) == 4 and len(got["annotations"]) == 8


@pytest.mark.parametrize("name", [name for name in BAD if name != "file"])  # that is no annotation's
def test_bad_records_are_refused_and_dropped_as_prepare_does(tmp_path, source, name):
  coco = content()
  BAD[name][0](coco)
  with pytest.raises(UserError) as error:
    truth(tmp_path, source, coco)
  with pytest.raises(UserError) as as_data:
    open_pair(tmp_path / "train", tmp_path / "truth.json")
  assert BAD[name][1] in str(error.value) and str(error.value) == str(as_data.value)
  if not any(r != s for r, s in zip(coco["images"], content()["images"], strict=True)):
    dropped = truth(tmp_path, source, coco, skip_bad=True)
    assert len(dropped["annotations"]) == 7 and len(dropped["images"]) == 4
