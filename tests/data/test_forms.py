"""From each form that people have their data in comes back what the COCO original says, box by box."""

import json
from pathlib import Path

import numpy as np
import pytest

from iou_det.data import FILE_FORMATS, Reading, format_of, open_dataset
from iou_det.errors import UserError
from tests.command import iou_det
from tests.data import forms
from tests.data.coco_files import assert_same_records, picture

# Of each form: its format, and what a corner may be off by (pixels; YOLO has eight digits of a share).
EXPECTED = {
  "voc": ("voc", 1e-9), "voc_from_0": ("voc", 1e-9), "roboflow_voc": ("voc", 1e-9),
  "yolo": ("yolo", 2e-5), "roboflow_yolo": ("yolo", 2e-5), "darknet": ("yolo", 2e-5),
  "tensorflow_csv": ("csv", 1e-9), "retinanet_csv": ("csv", 1e-9), "roboflow_csv": ("csv", 1e-9),
  "open_images": ("csv", 1e-9),
  "roboflow_coco": ("coco", 0), "cvat_coco": ("coco", 0), "label_studio_coco": ("coco", 0),
  "fiftyone_coco": ("coco", 0),
}  # fmt: skip
WITH_CROWD = ("voc", "voc_from_0", "roboflow_voc", "open_images")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
  """A COCO folder of two splits: classes that only one has, one without boxes, names in other scripts."""
  root = tmp_path_factory.mktemp("toy")
  rng = np.random.default_rng(0)
  categories = [{"id": 3, "name": "zebra & co"}, {"id": 5, "name": "ähre"}, {"id": 9, "name": "猫"}]
  (root / "annotations").mkdir()
  for split, used in (("train", (3, 9)), ("val", (5, 9))):
    images, annotations = [], []
    (root / split).mkdir()
    for i in range(5):
      height, width = int(rng.integers(40, 60)), int(rng.integers(60, 90))
      suffix = ".png" if i == 1 else ".jpg"
      name = f"{split} {i}{suffix}"
      (root / split / name).write_bytes(picture(height, width, i, suffix))
      images.append({"id": i + 1, "file_name": name, "height": height, "width": width})
      for k in range(0 if i == 2 else 3):
        x, y = (0, 0) if i == k == 0 else (int(rng.integers(0, 30)), int(rng.integers(0, 20)) + 0.25 * k)
        crowd = int(k == 2)
        w, h = int(rng.integers(1, 30)), int(rng.integers(1, 20))
        row = {"image_id": i + 1, "category_id": used[k % 2], "bbox": [x, y, w, h], "area": w * h}
        annotations.append({**row, "iscrowd": crowd, "id": len(annotations) + 1})
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
  return root


def expected(coco, with_crowd):
  """{name without suffix: (class, x, y, w, h, crowd) of each box} by the original."""
  return {
    Path(image["file_name"]).stem: [(*row[:5], row[5] * with_crowd) for row in rows]
    for image, rows in forms.boxes(coco)
  }


def stem(name):
  return Path(name.replace("\\", "/")).stem


def got(source):
  a, names = source.annotations, [c.name for c in source.categories]
  rows = {stem(name): [] for name in a.file_name}
  assert len(rows) == len(a)
  for i, name in enumerate(a.file_name):
    r = a.rows(i)
    found = zip(a.label[r], a.bbox[r].tolist(), a.crowd[r], strict=True)
    rows[stem(name)] = [(names[k], *box, int(crowd)) for k, box, crowd in found]
  return rows


def assert_same(form, root, out, splits):
  name, tolerance = EXPECTED[form]
  assert format_of(out).NAME == name
  there = format_of(out).splits(out)
  tables = set()
  for original, split in splits.items():
    if there == ["default"]:
      split = "default"
    source = open_dataset(out, split)
    coco = forms.load(root)[original]
    want, have = expected(coco, form in WITH_CROWD or name == "coco"), got(source)
    if form in ("tensorflow_csv", "roboflow_csv", "open_images"):  # they have no images without boxes
      want = {image: rows for image, rows in want.items() if rows}
    assert have.keys() == want.keys()
    files = {Path(image["file_name"]).stem: image for image in coco["images"]}
    for i, image in enumerate(source.annotations.file_name):
      record, key = source[i], stem(image)
      assert record.image == (root / original / files[key]["file_name"]).read_bytes()
      assert (record.height, record.width) == (files[key]["height"], files[key]["width"])
      assert len(have[key]) == len(want[key])
      for a, b in zip(have[key], want[key], strict=True):
        assert (a[0], a[5]) == (b[0], b[5])
        np.testing.assert_allclose(a[1:5], b[1:5], rtol=0, atol=tolerance)
    tables.add(source.categories)
    if there == ["default"]:
      break
  assert len(tables) == 1  # the same order for all splits
  return tables.pop()


@pytest.mark.parametrize("form", forms.FORMS)
def test_toy_folders_come_back(toy, tmp_path, form, monkeypatch):
  forms.FORMS[form](toy, tmp_path / "out")
  monkeypatch.chdir(tmp_path)
  table = assert_same(form, toy, Path("out"), {"train": "train", "val": "val"})
  of_names = {"voc": [1, 2, 3], "yolo": [0, 1, 2], "csv": [1, 2, 3], "coco": [3, 5, 9]}
  ids = of_names[EXPECTED[form][0]] if form != "retinanet_csv" else [0, 1, 2]
  assert [c.id for c in table] == ids


@pytest.mark.parametrize("form", forms.FORMS)
def test_no_format_takes_the_form_of_another(toy, tmp_path, form):
  forms.FORMS[form](toy, tmp_path / "out")
  assert [f.NAME for f in FILE_FORMATS if f.recognises(tmp_path / "out")] == [EXPECTED[form][0]]


@pytest.mark.parametrize("form", ("voc", "roboflow_yolo", "tensorflow_csv", "label_studio_coco"))
def test_prepare_writes_what_the_folder_says(toy, tmp_path, form):
  forms.FORMS[form](toy, tmp_path / "in")
  done = iou_det("prepare", f"--data={tmp_path / 'in'}", "--name=set", f"--data_dir={tmp_path}")
  assert done.returncode == 0, done.stderr
  known = format_of(tmp_path / "in")
  splits = known.splits(tmp_path / "in")
  assert f"{tmp_path / 'in'} is {known.WHAT} with {', '.join(splits)}" in done.stdout
  assert format_of(tmp_path / "set").splits(tmp_path / "set") == splits
  for split in splits:
    assert_same_records(open_dataset(tmp_path / "set", split), open_dataset(tmp_path / "in", split))


PAIRS = {
  "voc": ("{s}", "{s}", lambda out: None),
  "yolo": ("images/{s}", "labels/{s}", lambda out: (out / "data.yaml").unlink()),
  "csv": ("images/{s}", "data/{s}_labels.csv", lambda out: None),
}


@pytest.mark.parametrize("name", PAIRS)
def test_prepare_takes_pairs_and_refuses_a_second_split_with_another_class(toy, tmp_path, name):
  """The toy's val has the class ähre, which its train lacks."""
  images, annotations, change = PAIRS[name]
  forms.FORMS[{"voc": "roboflow_voc", "yolo": "yolo", "csv": "tensorflow_csv"}[name]](toy, tmp_path)
  change(tmp_path)
  if name == "yolo":
    for split, names in (("train", ["zebra", "?", "cat"]), ("val", ["zebra", "ähre", "cat"])):
      (tmp_path / "labels" / split / "classes.txt").write_text("\n".join(names), encoding="utf-8")
  pair = lambda s: (
    f"--images={tmp_path / images.format(s=s)}",
    f"--annotations={tmp_path / annotations.format(s=s)}",
  )
  common = ("--name=set", f"--data_dir={tmp_path / 'out'}")
  done = iou_det("prepare", *pair("train"), "--split=train", *common)
  assert done.returncode == 0, done.stderr
  assert len(open_dataset(tmp_path / "out/set", "train").annotations.bbox) == 12
  done = iou_det("prepare", *pair("val"), "--split=val", *common)
  assert done.returncode == 2 and done.stderr.count("\n") == 1 and "ähre" in done.stderr, done.stderr
  assert format_of(tmp_path / "out/set").splits(tmp_path / "out/set") == ["train"]


@pytest.mark.parametrize("name", ("coco", "voc", "yolo", "csv"))
def test_a_format_that_the_folder_has_not_is_refused(toy, tmp_path, name):
  forms.FORMS["retinanet_csv" if name != "csv" else "voc"](toy, tmp_path / "in")
  done = iou_det(
    "prepare", f"--data={tmp_path / 'in'}", f"--format={name}", "--name=set", f"--data_dir={tmp_path}"
  )
  assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
  assert f"{tmp_path / 'in'} is no" in done.stderr or "has no split" in done.stderr
  with pytest.raises(UserError, match=r"is not .*: there is no "):
    open_dataset(tmp_path / "in", "train", Reading(name))


@pytest.mark.real_data
@pytest.mark.parametrize("form", ("voc", "yolo", "tensorflow_csv", "retinanet_csv", "roboflow_coco"))
@pytest.mark.parametrize("name", ("bccd", "coco_mini", "deeppcb"))
def test_real_folders_come_back(real_data, tmp_path, name, form):
  root = real_data / name
  forms.FORMS[form](root, tmp_path)

  assert_same(form, root, tmp_path, {s: forms.short(s) if form == "yolo" else s for s in forms.load(root)})
