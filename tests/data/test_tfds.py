"""Prepared datasets are found by any of their folders; TFDS's own COCO datasets read like the original."""

import json
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from iou_det.data import open_dataset
from iou_det.data.pipeline import decode_image
from iou_det.data.plan import TrainingFilter, scan
from iou_det.data.tfds import COCO_CATEGORIES, find_version, prepare_dataset
from iou_det.errors import UserError
from tests.data.coco_files import assert_same_records, content, open_pair, picture, write


class Coco(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The features of TFDS's coco/2017, written from a COCO file as TFDS does it."""

  VERSION = tfds.core.Version("1.1.0")
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2017", version=VERSION)]  # noqa: RUF012
  name = "coco"

  def __init__(self, root, names, **kwargs):
    self.root, self.names = root, names
    super().__init__(**kwargs)

  def _info(self):
    f = tfds.features
    objects = {
      "id": np.int64,
      "area": np.int64,
      "bbox": f.BBoxFeature(),
      "label": f.ClassLabel(names=self.names),
      "is_crowd": np.bool_,
    }
    return tfds.core.DatasetInfo(
      builder=self,
      features=f.FeaturesDict(
        {
          "image": f.Image(encoding_format="jpeg"),
          "image/filename": f.Text(),
          "image/id": np.int64,
          "objects": f.Sequence(objects),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples("train"), "test": self._generate_examples("test")}

  def _generate_examples(self, split):
    coco = json.loads((self.root / "annotations" / "instances_train.json").read_text())
    names = {c["id"]: c["name"] for c in coco["categories"]}
    for image in coco["images"]:
      rows = [a for a in coco["annotations"] if a["image_id"] == image["id"] and split == "train"]
      boxes = [
        tfds.features.BBox(
          ymin=y / image["height"],
          xmin=x / image["width"],
          ymax=(y + h) / image["height"],
          xmax=(x + w) / image["width"],
        )
        for x, y, w, h in (a["bbox"] for a in rows)
      ]
      objects = [
        {
          "id": a["id"],
          "area": int(a["area"]),
          "bbox": box,
          "label": names[a["category_id"]],
          "is_crowd": a["iscrowd"] == 1,
        }
        for a, box in zip(rows, boxes, strict=True)
      ]
      yield (
        image["file_name"],
        {
          "image": self.root / "train" / image["file_name"],
          "image/filename": image["file_name"],
          "image/id": image["id"],
          "objects": objects,
        },
      )


@pytest.fixture(autouse=True)
def temporary_folders(tmp_path_factory, monkeypatch):
  """TFDS makes one for each builder and leaves it behind."""
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("tfds")))


def tfds_coco(root, data_dir, names=None, file_format="array_record"):
  """Prepares the dataset as `tfds build coco/2017` would."""
  names = names or [c.name for c in COCO_CATEGORIES]
  Coco(root, names, data_dir=data_dir).download_and_prepare(file_format=file_format)
  return data_dir / "coco"


@pytest.fixture
def coco_folder(tmp_path):
  """A COCO folder with COCO's own categories, all boxes inside their images."""
  coco = content()
  coco["categories"] = [{"id": c.id, "name": c.name} for c in COCO_CATEGORIES]
  coco["annotations"][4]["bbox"] = [30.25, 20.5, 30, 10]
  for a, category in zip(coco["annotations"], (90, 1, 13, 44, 67, 1, 90, 27), strict=True):
    a["category_id"] = category
  write(tmp_path, coco=coco)
  return tmp_path


@pytest.fixture
def prepared(tmp_path):
  write(tmp_path)
  source = open_dataset(tmp_path, "train")
  prepare_dataset(source, name="set", split="train", data_dir=tmp_path / "out")
  return source, tmp_path / "out" / "set"


def test_tfds_coco_reads_like_the_original(coco_folder, tmp_path):
  path = tfds_coco(coco_folder, tmp_path / "tfds")
  original = open_dataset(coco_folder, "train")
  for folder in (path, path / "2017", path / "2017" / "1.1.0"):
    source = open_dataset(folder, "train")
    assert source.categories == COCO_CATEGORIES and len(source) == 4
  by_name = {r.file_name: r for r in map(original.__getitem__, range(4))}
  for i in range(4):  # TFDS shuffles
    r = source[i]
    o = by_name[r.file_name]
    assert source.annotations.image_id[i] == r.image_id == o.image_id
    assert (r.image, r.height, r.width) == (o.image, o.height, o.width)
    np.testing.assert_allclose(r.boxes, o.boxes, atol=1e-4)
    np.testing.assert_array_equal(r.labels, o.labels)
    np.testing.assert_array_equal(r.crowd, o.crowd)
    np.testing.assert_array_equal(r.annotation_id, o.annotation_id)
    np.testing.assert_array_equal(r.area, np.trunc(o.area))
  index = scan(source, TrainingFilter())
  assert sorted(zip(index.heights, index.widths, index.num_boxes, index.usable, strict=True)) == [
    (31, 90, 1, False),
    (33, 35, 0, False),
    (48, 64, 3, True),
    (60, 40, 1, True),
  ]
  assert len(open_dataset(path, "test")) == 4 and not len(open_dataset(path, "test")[0].boxes)


def test_the_table_of_coco_ids():
  ids = [c.id for c in COCO_CATEGORIES]
  unused = sorted(set(range(1, 91)) - set(ids))
  assert len(ids) == len(set(ids)) == len({c.name for c in COCO_CATEGORIES}) == 80 and ids == sorted(ids)
  assert unused == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]


@pytest.mark.real_data
def test_the_table_of_coco_ids_is_that_of_the_original(real_data):
  assert open_dataset(real_data / "coco_mini", "val2017").categories == COCO_CATEGORIES


def test_labels_that_are_not_cocos_are_refused(coco_folder, tmp_path):
  names = [c.name for c in COCO_CATEGORIES[::-1]]
  path = tfds_coco(coco_folder, tmp_path / "tfds", names)
  with pytest.raises(UserError, match=r"its 80 labels \(toothbrush, .* are not COCO's 80"):
    open_dataset(path, "train")


def test_other_tfds_datasets_are_refused(tmp_path):
  class Digits(tfds.core.ShardBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    name = "digits"

    def _info(self):
      features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": np.int64})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _shard_iterators_per_split(self, dl_manager):
      return {"train": [lambda: iter([(0, {"image": picture(9, 9), "label": 1})])]}

  Digits(data_dir=tmp_path).download_and_prepare(file_format="array_record")
  with pytest.raises(UserError, match=r"nor one of TFDS's coco/.* \(its features are image, label\)"):
    open_dataset(tmp_path / "digits", "train")


def test_other_file_formats_are_refused(prepared):
  _, path = prepared
  info = path / "1.0.0" / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(UserError, match="is stored as tfrecord, which has no random access"):
    open_dataset(path, "train")


def test_a_dataset_is_found_by_any_of_its_folders(prepared):
  source, path = prepared
  for folder in (path, path / "1.0.0", str(path), path.parent):
    assert_same_records(open_dataset(folder, "train"), source)
  # The newest version counts, as numbers and not as text.
  shutil.copytree(path / "1.0.0", path / "9.0.0")
  shutil.copytree(path / "1.0.0", path / "10.0.0")
  (path / "incomplete.1234_11.0.0").mkdir()
  shutil.copy(path / "1.0.0" / "dataset_info.json", path / "incomplete.1234_11.0.0")
  assert find_version(path) == path / "10.0.0"
  shutil.copytree(path, path.parent / "other")
  with pytest.raises(UserError, match=r"holds more than one dataset \(.*other, .*set\); name one"):
    open_dataset(path.parent, "train")


def test_datasets_with_the_former_names_of_files_read_the_same(prepared):
  source, path = prepared
  (shard,) = (path / "1.0.0").glob("*.array_record-*")
  shard.rename(f"{shard}-of-00001")
  info = path / "1.0.0" / "dataset_info.json"
  info.write_text(info.read_text().replace("{SHARD_INDEX}", "{SHARD_X_OF_Y}"))
  assert_same_records(open_dataset(path, "train"), source)
  prepare_dataset(source, name="set", split="val", data_dir=path.parent)
  for split in ("train", "val"):
    assert_same_records(open_dataset(path, split), source)


def test_splits_that_are_not_there_or_not_whole_are_refused(prepared):
  _, path = prepared
  with pytest.raises(
    UserError, match=r"split 'trian' does not exist; there are: train \(4\); .*val_fraction"
  ):
    open_dataset(path, "trian")
  info = path / "1.0.0" / "dataset_info.json"
  whole = info.read_text()
  info.write_text(whole.replace('"4"', '"0"'))
  with pytest.raises(UserError, match=r"split 'train' is empty; there are: train \(0\)"):
    open_dataset(path, "train")
  info.write_text(whole)
  (path / "1.0.0" / "index-train.npz").unlink()
  with pytest.raises(UserError, match=r"index-train.npz is missing; prepare the split again"):
    scan(open_dataset(path, "train"), TrainingFilter())
  (shard,) = (path / "1.0.0").glob("*.array_record-*")
  shard.unlink()
  with pytest.raises(UserError, match=f"split 'train' lacks the files {shard.name}; prepare it again"):
    open_dataset(path, "train")


def test_broken_dataset_folders_are_refused(prepared):
  source, path = prepared
  info = path / "1.0.0" / "dataset_info.json"
  whole = info.read_text()
  for text, message in ((whole[:50], "is not JSON"), ("[]", "is not a whole TFDS dataset")):
    info.write_text(text)
    with pytest.raises(UserError, match=message):
      open_dataset(path, "train")
    with pytest.raises(UserError, match=message):
      prepare_dataset(source, name="set", split="val", data_dir=path.parent)
  info.write_text(whole)
  for name in ("metadata.json", "features.json"):
    file = path / "1.0.0" / name
    whole = file.read_text()
    for text in (whole[:50], ""):
      file.write_text(text)
      with pytest.raises(UserError, match=f"{name} is not JSON, or not whole"):
        open_dataset(path, "train")
    file.write_text(whole)
  (path / "1.0.0" / "features.json").unlink()
  with pytest.raises(UserError, match="is not a whole TFDS dataset"):
    open_dataset(path, "train")


def test_an_index_of_another_split_is_refused(prepared, tmp_path):
  source, path = prepared
  prepare_dataset(source.first(2), name="few", split="train", data_dir=tmp_path / "out")
  shutil.copy(tmp_path / "out" / "few" / "1.0.0" / "index-train.npz", path / "1.0.0")
  with pytest.raises(UserError, match="lists 2 images, the split has 4"):
    scan(open_dataset(path, "train"), TrainingFilter())


def test_pickling_and_reading_from_threads(prepared):
  from concurrent.futures import ThreadPoolExecutor

  source, path = prepared
  back = pickle.loads(pickle.dumps(open_dataset(path / "1.0.0", "train")))
  assert_same_records(back, source)
  assert back[-1].image_id == 3
  with pytest.raises(IndexError):
    back[4]
  with ThreadPoolExecutor(8) as pool:
    ids = list(pool.map(lambda i: back[i % 4].image_id, range(64)))
  assert ids == [40, 7, 1000000000007, 3] * 16


def test_pictures_of_any_kind_are_stored_as_they_are(tmp_path):
  coco = content()
  for image, suffix in zip(coco["images"], (".bmp", ".tiff", ".webp", ".ppm"), strict=True):
    image["file_name"] = str(Path(image["file_name"]).with_suffix(suffix))
  images, file = write(tmp_path, coco=coco)
  prepare_dataset(open_pair(images, file), name="kinds", split="train", data_dir=tmp_path / "out")
  source = open_dataset(tmp_path / "out" / "kinds", "train")
  for i in range(4):
    path = images / source[i].file_name
    assert source[i].image == path.read_bytes()
    with Image.open(path) as other:
      np.testing.assert_allclose(
        decode_image(source[i]).astype(int), np.asarray(other.convert("RGB")), atol=2
      )
