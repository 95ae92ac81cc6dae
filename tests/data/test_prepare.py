"""What `prepare` writes equals the original, whatever happens on the way; what it refuses is named."""

import dataclasses
import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from iou_det.data import open_dataset, tfds
from iou_det.data.checks import check_all, report
from iou_det.data.coco import read_pair
from iou_det.data.plan import TrainingFilter, scan
from iou_det.data.shapes import Shapes
from iou_det.data.source import Category, Source, from_rows
from iou_det.data.tfds import prepare_dataset
from iou_det.errors import UserError
from tests.data.coco_files import assert_same_records, content, open_pair, picture, write


def files(folder):
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def cli(images, annotations, data_dir, *more, name="set", split="train"):
  code = "import sys; from iou_det.cli import main; main(['prepare', *sys.argv[1:]])"
  arguments = [
    f"--images={images}",
    f"--annotations={annotations}",
    f"--name={name}",
    f"--split={split}",
    f"--data_dir={data_dir}",
    *more,
  ]
  return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


def checked(images, file, skip_bad=False):
  """What `prepare` makes of a split."""
  labels = read_pair(images, file)
  check_all(labels, "auto", skip_bad)
  return labels


def assert_refused(done, message):
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith("iou-det prepare: ") and done.stderr.count("\n") == 1, done.stderr
  assert message in done.stderr


def test_records_come_back_to_the_last_bit(tmp_path, monkeypatch):
  monkeypatch.setattr(tfds, "SHARD_IMAGES", 3)  # more than one shard
  write(tmp_path)
  source = open_dataset(tmp_path, "train")
  version = prepare_dataset(source, name="set", split="train", data_dir=tmp_path / "out")
  assert version == tmp_path / "out" / "set" / "1.0.0" and len(list(version.glob("*array_record*"))) == 2
  back = open_dataset(version, "train")
  assert back.name == "set/train"
  assert_same_records(source, back)
  for column in dataclasses.fields(source.annotations):
    a, b = (getattr(s.annotations, column.name) for s in (source, back))
    np.testing.assert_array_equal(a, b)
  assert back.annotations.image_id.tolist() == [40, 7, 1000000000007, 3]
  for one, other in zip(scan(source, TrainingFilter()), scan(back, TrainingFilter()), strict=True):
    np.testing.assert_array_equal(one, other)
  assert "tensorflow" not in sys.modules


def test_splits_are_added_and_replaced_one_by_one(tmp_path):
  write(tmp_path, "train")
  coco = content()
  coco["annotations"] = coco["annotations"][1:]
  write(tmp_path, "val", coco)
  train, val = (open_dataset(tmp_path, split) for split in ("train", "val"))
  out = tmp_path / "out"
  version = prepare_dataset(train, name="set", split="train", data_dir=out)
  prepare_dataset(val, name="set", split="val", data_dir=out)
  assert_same_records(open_dataset(out / "set", "train"), train)
  assert_same_records(open_dataset(out / "set", "val"), val)

  before = files(out)
  with pytest.raises(UserError, match=r"has the split 'val' \(there are: train, val\); .*--overwrite"):
    prepare_dataset(val, name="set", split="val", data_dir=out)
  assert files(out) == before
  prepare_dataset(train, name="set", split="val", data_dir=out, overwrite=True)
  assert_same_records(open_dataset(out / "set", "val"), train)
  assert_same_records(open_dataset(out / "set", "train"), train)
  assert os.listdir(out) == ["set"] and os.listdir(version.parent) == ["1.0.0"]


def test_a_replaced_split_leaves_no_files(tmp_path, monkeypatch):
  write(tmp_path)
  source, out = open_dataset(tmp_path, "train"), tmp_path / "out"
  prepare_dataset(source, name="set", split="train", data_dir=out)
  version = prepare_dataset(source, name="set", split="val", data_dir=out)
  names = sorted(os.listdir(version))
  monkeypatch.setattr(tfds, "SHARD_IMAGES", 3)
  prepare_dataset(source, name="set", split="val", data_dir=out, overwrite=True)
  assert len(os.listdir(version)) == len(names) + 1
  monkeypatch.undo()
  prepare_dataset(source, name="set", split="val", data_dir=out, overwrite=True)
  assert sorted(os.listdir(version)) == names


def test_the_only_split_is_replaced_with_other_categories(tmp_path):
  write(tmp_path)
  source = open_dataset(tmp_path, "train")
  prepare_dataset(source, name="set", split="train", data_dir=tmp_path / "out")
  categories = tuple(Category(c.id, c.name + "s") for c in source.categories)
  source = dataclasses.replace(source, categories=categories)
  prepare_dataset(source, name="set", split="train", data_dir=tmp_path / "out", overwrite=True)
  assert_same_records(open_dataset(tmp_path / "out" / "set", "train"), source)


def test_splits_of_a_dataset_share_their_categories(tmp_path):
  write(tmp_path)
  source = open_dataset(tmp_path, "train")
  prepare_dataset(source, name="set", split="train", data_dir=tmp_path / "out")
  source = dataclasses.replace(source, categories=(*source.categories[:2], Category(9, "puma")))
  with pytest.raises(UserError, match=r"\(only in 'val': 9: puma; only in the others: 9: cat\)"):
    prepare_dataset(source, name="set", split="val", data_dir=tmp_path / "out")


@pytest.mark.parametrize(
  "name, split", [("Set", "train"), ("", "train"), ("set", "a-b"), ("set", "all"), ("set", "")]
)
def test_names_that_tfds_cannot_take_are_refused(tmp_path, name, split):
  write(tmp_path)
  with pytest.raises(UserError, match="must be"):
    prepare_dataset(open_dataset(tmp_path, "train"), name=name, split=split, data_dir=tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_a_target_that_is_a_file_or_foreign_is_refused(tmp_path):
  write(tmp_path)
  source = open_dataset(tmp_path, "train")
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="file is a file; datasets are written to folders"):
    prepare_dataset(source, name="set", split="train", data_dir=tmp_path / "file")
  (tmp_path / "out" / "set" / "1.0.0").mkdir(parents=True)
  (tmp_path / "out" / "set" / "1.0.0" / "thesis.doc").write_text("")
  with pytest.raises(UserError, match=r"1.0.0 has files but no dataset_info.json; move them away"):
    prepare_dataset(source, name="set", split="train", data_dir=tmp_path / "out")


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_shapes_go_through_the_same_builder(tmp_path, encoding):
  source = Shapes("val", images=5, height=40, width=48, encoding=encoding).source()
  version = prepare_dataset(source, name="shapes", split="val", data_dir=tmp_path)
  assert_same_records(open_dataset(version, "val"), source)


def dies(i):
  """Reads images up to the third one."""
  if i == 2:
    raise KeyboardInterrupt
  return picture(48, 64)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_run_leaves_nothing_that_a_rerun_trusts(tmp_path, overwrite):
  write(tmp_path)
  out = tmp_path / "out"
  good = open_dataset(tmp_path, "train")
  prepare_dataset(good, name="set", split="train" if overwrite else "other", data_dir=out)
  before = files(out / "set")
  with pytest.raises(KeyboardInterrupt):
    breaks = dataclasses.replace(good, read=dies)
    prepare_dataset(breaks, name="set", split="train", data_dir=out, overwrite=overwrite)
  assert files(out / "set") == before
  prepare_dataset(good, name="set", split="train", data_dir=out, overwrite=overwrite)
  assert_same_records(open_dataset(out / "set", "train"), good)


def test_a_kill_during_the_last_moves_leaves_the_split_out(tmp_path, monkeypatch):
  write(tmp_path)
  good, out = open_dataset(tmp_path, "train"), tmp_path / "out"
  prepare_dataset(good, name="set", split="train", data_dir=out)
  prepare_dataset(good, name="set", split="val", data_dir=out)
  moves = []

  def replace(a, b):
    moves.append(b)
    if len(moves) == 3:
      raise KeyboardInterrupt
    os.rename(a, b)

  monkeypatch.setattr(tfds.os, "replace", replace)
  with pytest.raises(KeyboardInterrupt):
    prepare_dataset(good, name="set", split="val", data_dir=out, overwrite=True)
  monkeypatch.undo()
  assert_same_records(open_dataset(out / "set", "train"), good)
  with pytest.raises(UserError, match=r"split 'val' does not exist; there are: train \(4\)"):
    open_dataset(out / "set", "val")
  prepare_dataset(good, name="set", split="val", data_dir=out)
  assert_same_records(open_dataset(out / "set", "val"), good)


def large_record(i):
  return bytes(400_000)


def test_memory_does_not_hold_the_images(tmp_path):
  tracemalloc.start()
  box = (0, 0, 5, 5, 0, False, 25)
  annotations = from_rows([(i, str(i), 9, 9) for i in range(150)], [[(*box, i)] for i in range(150)])
  noise = Source("noise", (Category(1, "thing"),), annotations, large_record)
  prepare_dataset(noise, name="noise", split="train", data_dir=tmp_path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 10e6  # of 60 MB


def damaged(tmp_path):
  """A folder with a bad file or record of each kind among good ones; returns what must be named."""
  coco = content()
  add = lambda i, name, height=40, width=50: coco["images"].append(
    {"id": i, "file_name": name, "height": height, "width": width}
  )
  for i, name in enumerate(("truncated.jpg", "text.jpg", "missing.jpg", "turned.jpg", "twin.jpg"), 100):
    add(i, name)
    coco["annotations"].append(
      {"id": i, "image_id": i, "category_id": 5, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
    )
  coco["annotations"] += [
    {"id": 500, "image_id": 7, "category_id": 77, "bbox": [1, 2, 3, 4]},
    {"id": 501, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, float("nan")]},
    {"id": 502, "image_id": 7, "category_id": 2},
    {"id": 503, "image_id": 12345, "category_id": 2, "bbox": [1, 2, 3, 4]},
  ]
  images, file = write(tmp_path, coco=coco)
  whole = (images / "truncated.jpg").read_bytes()
  (images / "truncated.jpg").write_bytes(whole[: len(whole) * 2 // 3])
  (images / "text.jpg").write_text("404 not found")
  (images / "missing.jpg").unlink()
  (images / "turned.jpg").write_bytes(picture(50, 40))
  (images / "twin.jpg").write_bytes((images / "b.jpg").read_bytes())
  coco["images"][-1].update(height=48, width=64)
  file.write_text(json.dumps(coco))
  named = [
    "truncated.jpg (image id 100): truncated JPEG",
    "text.jpg (image id 101): no picture, but text",
    "missing.jpg (image id 102): the file does not exist",
    "turned.jpg (image id 103): has 40x50 pixels",
    "annotation id 500 (image id 7): unknown category_id 77",
    "annotation id 501 (image id 7): 'bbox'",
    "annotation id 502 (image id 7): has no 'bbox'",
    "annotation id 503 (image id 12345): there is no image",
  ]
  return images, file, named


def test_everything_bad_is_named_at_once_and_nothing_written(tmp_path):
  images, file, named = damaged(tmp_path)
  done = cli(images, file, tmp_path / "out")
  assert_refused(done, f"{len(named)} bad records of {9 + 17}: ")
  for text in named:
    assert text in done.stderr
  assert "--skip_bad" in done.stderr and not (tmp_path / "out").exists()


def test_skip_bad_drops_exactly_the_bad_records_and_lists_them(tmp_path):
  images, file, named = damaged(tmp_path)
  done = cli(images, file, tmp_path / "out", "--skip_bad")
  assert done.returncode == 0, done.stderr
  assert f"bad records dropped: {len(named)}, and 4 boxes of dropped images" in done.stdout
  for text in named:
    assert text in done.stdout
  good = content()
  good["images"].append({"id": 104, "file_name": "twin.jpg", "height": 48, "width": 64})
  good["annotations"].append({"id": 104, "image_id": 104, "category_id": 5, "bbox": [1, 2, 3, 4], "area": 12})
  file.write_text(json.dumps(good))
  expected = open_pair(images, file)
  assert_same_records(open_dataset(tmp_path / "out" / "set", "train"), expected)


def test_report_counts_what_is_out_of_the_ordinary(tmp_path):
  coco = content()
  coco["annotations"][-1]["id"] = 17
  coco["annotations"].append({"image_id": 3, "category_id": 9, "bbox": [1, 1, 5, 5], "id": 900})
  coco["images"].append(dict(coco["images"][3], id=4))  # the same file under another id
  images, file = write(tmp_path, coco=coco)
  (images / "sub" / "c.png").write_bytes(picture(33, 35, extension=".png"))
  text = report(checked(images, file), "set/train").splitlines()
  file_of = {image["id"]: image["file_name"] for image in coco["images"]}
  assert text[0] == "set/train: 5 images, 9 boxes"
  assert text[1] == "  boxes per class: dog 4, a very big bird 1, cat 4"
  for line in (
    "images without boxes: 2 (sub/c.png, small.jpg)",
    "crowd boxes (also VOC's difficult ones): neither trained on nor counted: 1 "
    f"(annotation 14 (image 7, {file_of[7]}))",
    f"zero-area boxes: 1 (annotation 13 (image 7, {file_of[7]}))",
    f"boxes that reach out of their image: 1 (annotation 15 (image 40, {file_of[40]}))",
    f"boxes given twice: 1 (annotation {2**40} (image 40, {file_of[40]}))",
    f"annotation ids given twice: 1 (annotation 17 (image 3, {file_of[3]}))",
    "file names given twice: 1 (small.jpg)",
    "annotations without 'area' (that of the box taken): 1",
    "annotations without 'iscrowd' (0 taken): 1",
  ):
    assert f"  {line}" in text, line


def test_images_of_equal_content_are_counted(tmp_path):
  images, file = write(tmp_path)
  coco = content()
  coco["images"][1].update(height=48, width=64)
  file.write_text(json.dumps(coco))
  (images / "a.jpg").write_bytes((images / "b.jpg").read_bytes())
  text = report(checked(images, file), "x")
  assert "images with the same content as another: 1 (a.jpg = b.jpg)" in text


def test_nothing_left_after_skipping_is_an_error(tmp_path):
  images, file = write(tmp_path)
  for path in images.rglob("*.*g"):
    path.write_bytes(b"")
  with pytest.raises(UserError, match="no image with a box is left after 4 bad records"):
    checked(images, file, skip_bad=True)


def test_the_command_refuses_in_one_line(tmp_path):
  images, file = write(tmp_path)
  out = tmp_path / "out"
  assert_refused(cli(images, file, out, "--skip_bat"), "no flag --skip_bat; did you mean --skip_bad?")
  assert_refused(cli(images, file.with_name("instances_trian.json"), out), "JSON files in")
  assert_refused(cli(tmp_path / "trian", file, out), "image folder")
  file.write_text(json.dumps(content() | {"annotations": []}))
  assert_refused(cli(images, file, out), "the list 'annotations' is empty")
  assert not out.exists()


def test_the_command_prepares_and_refuses_a_rerun_before_it_reads_anything(tmp_path):
  images, file = write(tmp_path)
  out = tmp_path / "out"
  done = cli(images, file, out)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("set/train: 4 images, 8 boxes\n")
  assert done.stdout.endswith(f"wrote {out}/set/1.0.0 (train); use it with --config.data.path={out}/set\n")
  file.unlink()
  assert_refused(cli(images, file, out), "already has the split 'train'")


@pytest.mark.real_data
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_coco_comes_back_to_the_last_bit(real_data, tmp_path, split):
  root = real_data / "coco_mini"
  labels = checked(root / split, root / "annotations" / f"instances_{split}.json")
  source = labels.source("coco", "auto")
  back = open_dataset(prepare_dataset(source, name="coco", split=split, data_dir=tmp_path), split)
  original = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
  rows = {a["id"]: a for a in original["annotations"]}
  ids = {c.id: c.name for c in back.categories}
  assert ids == {c["id"]: c["name"] for c in original["categories"]}
  seen = 0
  for i, image in enumerate(original["images"]):
    r = back[i]
    assert (r.image_id, r.file_name, r.height, r.width) == tuple(
      image[k] for k in ("id", "file_name", "height", "width")
    )
    assert r.image == (root / split / r.file_name).read_bytes()
    for box, label, crowd, area, n in zip(r.boxes, r.labels, r.crowd, r.area, r.annotation_id, strict=True):
      a = rows[n]
      x, y, w, h = a["bbox"]
      assert (a["image_id"], a["category_id"], a["iscrowd"], a["area"]) == (
        r.image_id,
        back.categories[label].id,
        crowd,
        area,
      )
      assert box.tolist() == [x, y, x + w, y + h]
      seen += 1
  assert seen == len(rows)
  crowds = sum(a["iscrowd"] for a in rows.values())
  assert f"neither trained on nor counted: {crowds} (" in report(labels, "x")


@pytest.mark.real_data
def test_real_bccd_has_its_two_zero_area_boxes(real_data):
  root = real_data / "bccd"
  for split, box, image in (("train", 2288, 343), ("val", 3692, 338)):
    where = f"{box} (image {image}, BloodImage_{image:05}.jpg)"
    labels = checked(root / split, root / "annotations" / f"instances_{split}.json")
    assert f"  zero-area boxes: 1 (annotation {where})" in report(labels, "x").splitlines()


def test_a_file_name_that_is_no_utf8_is_prepared(tmp_path):
  folders = [tmp_path / "in" / place / "train" for place in ("images", "labels")]
  for folder in folders:
    folder.mkdir(parents=True)
  name = os.fsdecode(b"caf\xe9")
  (folders[0] / f"{name}.jpg").write_bytes(picture(40, 60))
  (folders[1] / f"{name}.txt").write_text("0 0.5 0.5 0.25 0.25")
  (tmp_path / "in" / "data.yaml").write_text("train: images/train\nnames: [cell]\n")
  source = open_dataset(tmp_path / "in", "train")
  back = open_dataset(prepare_dataset(source, name="set", split="train", data_dir=tmp_path / "out"), "train")
  assert_same_records(back, source)
