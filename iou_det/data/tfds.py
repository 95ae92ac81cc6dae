"""TFDS ArrayRecord datasets: written from any source, one image at a time, and read; no TensorFlow.

A dataset is the folder DATA_DIR/NAME/1.0.0, which holds any number of splits. A split is written in a folder
of its own, and counts as there only once the dataset's `dataset_info.json` lists it: that is replaced last.
"""

import contextlib
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from iou_det.data.images import read_header
from iou_det.data.source import Annotations, Category, Record, Source, corners, from_rows
from iou_det.errors import UserError

VERSION = "1.0.0"  # of the features below
SHARD_IMAGES = 2048


class LazyImage:
  """The image of a record as a file object that reads its source only when it is read."""

  def __init__(self, source: Source, i: int):
    self.source, self.i = source, i

  def read(self) -> bytes:
    return self.source[self.i].image


class Builder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """One split of a source, in the source's order.

  Not a `GeneratorBasedBuilder`: that one gathers a split in memory and, beyond 1 GB, in temporary files that
  it opens with TensorFlow. This one writes shard by shard.
  """

  VERSION = tfds.core.Version(VERSION)

  def __init__(self, name: str, source: Source, split: str, **kwargs: Any):
    self.name = name
    self._source = source
    self._split = split
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    f = tfds.features
    # Numbers of type float64 are stored as bytes: a TFDS record would round them to float32.
    features = f.FeaturesDict({
      "image": f.Image(),
      "image/filename": f.Text(),
      "image/id": np.int64,
      "image/height": np.int32,
      "image/width": np.int32,
      "objects": f.FeaturesDict({
        "bbox_xywh": f.Tensor(shape=(None, 4), dtype=np.float64, encoding="bytes"),  # pixels
        "area": f.Tensor(shape=(None,), dtype=np.float64, encoding="bytes"),
        "id": f.Tensor(shape=(None,), dtype=np.int64),
        "label": f.Sequence(f.ClassLabel(names=[c.name for c in self._source.categories])),
        "is_crowd": f.Tensor(shape=(None,), dtype=np.bool_),
      }),
    })
    categories = tfds.core.MetadataDict(categories=[asdict(c) for c in self._source.categories])
    return tfds.core.DatasetInfo(builder=self, features=features, metadata=categories)

  def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, Sequence[Callable[[], Iterator]]]:
    del dl_manager
    source, split = self._source, self._split
    a = source.annotations()

    def shard(start: int) -> Callable[[], Iterator[tuple[int, dict[str, Any]]]]:
      def examples():
        stop = min(start + SHARD_IMAGES, len(a))
        for i in tqdm(range(start, stop), desc=f"write {split} {start}-{stop} of {len(a)}", delay=5):
          yield i, example(source, a, i)

      return examples

    return {split: [shard(start) for start in range(0, len(a), SHARD_IMAGES)]}


def example(source: Source, a: Annotations, i: int) -> dict[str, Any]:
  """Record `i` as the features above; the image is not read yet."""
  rows = a.rows(i)
  return {
    "image": LazyImage(source, i),
    "image/filename": a.file_name[i],
    "image/id": a.image_id[i],
    "image/height": a.height[i],
    "image/width": a.width[i],
    "objects": {
      "bbox_xywh": a.bbox[rows],
      "area": a.area[rows],
      "id": a.annotation_id[rows],
      "label": a.label[rows].astype(np.int64),
      "is_crowd": a.crowd[rows],
    },
  }


def check_target(
  name: str, split: str, data_dir: str | Path, categories: Sequence[Category] | None, *, overwrite: bool
) -> Path:
  """The folder of the dataset that a split is to be written to, after all checks that need no data.

  Args:
    categories: None if they are not known yet.

  Raises:
    UserError: for a name TFDS cannot take, a split that is there already (unless overwrite), a dataset with
      other categories, a folder that is a file.
  """
  if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
    raise UserError(f"name {name!r} must be lower-case letters, digits and _, beginning with a letter")
  if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", split) or split.lower() == "all":
    raise UserError(f"split {split!r} must be letters, digits and _, beginning with a letter, and not 'all'")
  version = Path(data_dir) / name / VERSION
  for folder in (version, *version.parents):
    if folder.exists() and not folder.is_dir():
      raise UserError(f"{folder} is a file; datasets are written to folders: give another --data_dir")
  if not (version / "dataset_info.json").is_file():
    if version.is_dir() and any(version.iterdir()):
      raise UserError(f"{version} has files but no dataset_info.json; remove it or give another --name")
    return version
  there = [s["name"] for s in read_info(version)["splits"]]
  if split in there and not overwrite:
    raise UserError(
      f"{version} already has the split {split!r} (there are: {', '.join(there)}); replace it with "
      "--overwrite, or give another --split or --name"
    )
  if categories is not None and there != [split]:
    table = read_categories(version)
    if table != tuple(categories):
      raise UserError(
        f"the categories {table_text(categories)} differ from those of the splits already in {version} "
        f"({table_text(table)}); all splits of a dataset share one table: give another --name"
      )
  return version


def prepare_dataset(
  source: Source, *, name: str, split: str, data_dir: str | Path, overwrite: bool = False
) -> Path:
  """Writes a source as one split of DATA_DIR/NAME/1.0.0; returns that folder.

  Memory holds the annotations and one image. If it is interrupted, the dataset is what it was before (or,
  late in an overwrite, lacks the split), and a rerun starts anew.

  Raises:
    UserError: see `check_target`.
  """
  version = check_target(name, split, data_dir, source.categories, overwrite=overwrite)
  staging = Path(data_dir) / f".{name}-{split}.part"
  if staging.exists():  # of a run that was interrupted
    shutil.rmtree(staging)
  staging.mkdir(parents=True)
  builder = Builder(name, source, split, data_dir=staging)
  with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of downloads
    builder.download_and_prepare(file_format="array_record")
  written = staging / name / VERSION
  save_index(written, split, source.annotations())
  if (version / "dataset_info.json").is_file():
    add_split(written, version, split)
  else:
    version.parent.mkdir(parents=True, exist_ok=True)
    os.replace(written, version)
  shutil.rmtree(staging)
  return version


def add_split(written: Path, version: Path, split: str) -> None:
  """Moves a split from its own dataset folder into that of others; replaces it if it is there."""
  info, new = read_info(version), read_info(written)
  others = [s for s in info["splits"] if s["name"] != split]
  if len(others) < len(info["splits"]):
    if not others:
      os.replace(version, written.parent / "replaced")
      os.replace(written, version)
      return
    write_info(version, info | {"splits": others})
    for path in [*version.glob(f"*-{split}.array_record-*"), index_path(version, split)]:
      path.unlink(missing_ok=True)
  for path in [*written.glob(f"*-{split}.array_record-*"), index_path(written, split)]:
    os.replace(path, version / path.name)
  write_info(version, info | {"splits": others + new["splits"]})


def read_info(version: Path) -> dict[str, Any]:
  """The content of a dataset's `dataset_info.json`."""
  path = version / "dataset_info.json"
  try:
    info = json.loads(path.read_text())
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise UserError(f"{path} is not JSON ({error}); remove the dataset and prepare it again") from None
  if not isinstance(info, dict) or "splits" not in info or not (version / "features.json").is_file():
    raise UserError(f"{version} is not a whole TFDS dataset; remove it and prepare it again")
  return info


def write_info(version: Path, info: dict[str, Any]) -> None:
  part = version / "dataset_info.json.part"
  part.write_text(json.dumps(info, indent=2))
  os.replace(part, version / "dataset_info.json")


def read_categories(version: Path) -> tuple[Category, ...]:
  """The category table of a dataset that this module wrote."""
  metadata = json.loads((version / "metadata.json").read_text())
  return tuple(Category(**c) for c in metadata["categories"])


def table_text(categories: Sequence[Category]) -> str:
  shown = ", ".join("{}: {}".format(*astuple(c)) for c in categories[:5])
  return f"{shown}{', ...' if len(categories) > 5 else ''}; {len(categories)} in all"


def index_path(version: Path, split: str) -> Path:
  """Where the annotations of a split are repeated as columns, so that a scan need not read the images."""
  return version / f"index-{split}.npz"


def save_index(version: Path, split: str, annotations: Annotations) -> None:
  columns: dict[str, Any] = {f.name: getattr(annotations, f.name) for f in fields(annotations)}
  np.savez_compressed(index_path(version, split), **columns)


def load_index(path: Path) -> Annotations:
  try:
    with np.load(path) as columns:
      named = {f.name: columns[f.name] for f in fields(Annotations)}
  except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f"{path} is damaged ({error}); prepare the split again with --overwrite") from error
  return Annotations(**named | {"file_name": named["file_name"].tolist()})


class Prepared:
  """One split of a TFDS ArrayRecord dataset.

  TFDS's own COCO datasets keep neither category ids nor image sizes, and hold boxes as float32 fractions and
  areas cut to whole numbers: the ids are those of COCO's table, the sizes come from the image headers; score
  against the original annotation file where there is one.
  """

  name: str
  categories: tuple[Category, ...]

  def __init__(self, directory: str | Path, split: str):
    """Opens a version folder (with `dataset_info.json`); see `open_dataset` for others."""
    self._directory, self._split = Path(directory), split
    read_info(self._directory)  # a UserError if it cannot be read
    builder = tfds.builder_from_directory(directory)
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
      raise UserError(
        f"{directory} is stored as {builder.info.file_format.value}, which has no random access; prepare it "
        "with file_format=array_record"
      )
    splits = builder.info.splits
    if split not in splits or not splits[split].num_examples:
      known = ", ".join(f"{name} ({splits[name].num_examples})" for name in splits) or "none"
      what = "is empty" if split in splits else "does not exist"
      raise UserError(f"{directory}: split {split!r} {what}; there are: {known}")
    missing = [p.name for p in splits[split].filepaths if not Path(p).is_file()]
    if missing:
      raise UserError(f"{directory}: split {split!r} lacks the files {', '.join(missing)}; prepare it again")
    self.name = f"{builder.info.name}/{split}"
    self._own = "bbox_xywh" in box_features(builder)
    self.categories = read_categories(self._directory) if self._own else tfds_coco_categories(builder)
    self._data = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})

  def __reduce__(self) -> tuple:
    return Prepared, (self._directory, self._split)

  def __len__(self) -> int:
    return len(self._data)

  def __getitem__(self, i: int) -> Record:
    row = self._data[range(len(self))[i]]
    objects = row["objects"]
    if self._own:
      height, width = int(row["image/height"]), int(row["image/width"])
      boxes = corners(objects["bbox_xywh"])
    else:
      height, width = size_of(row)
      y1, x1, y2, x2 = np.asarray(objects["bbox"], np.float64).reshape(-1, 4).T
      boxes = np.stack([x1 * width, y1 * height, x2 * width, y2 * height], axis=1)
    return Record(
      image_id=int(row["image/id"]), file_name=row["image/filename"].decode(), image=row["image"],
      height=height, width=width, boxes=boxes, labels=np.asarray(objects["label"], np.int32),
      crowd=np.asarray(objects["is_crowd"], np.bool_), area=np.asarray(objects["area"], np.float64),
      annotation_id=np.asarray(objects["id"], np.int64),
    )  # fmt: skip

  def image_id(self, i: int) -> int:
    return int(self._columns.image_id[i])

  def annotations(self) -> Annotations:
    return self._columns

  @cached_property
  def _columns(self) -> Annotations:
    path = index_path(self._directory, self._split)
    if not self._own:
      return read_annotations(self)
    if not path.is_file():
      raise UserError(f"{path} is missing; prepare the split again with --overwrite")
    columns = load_index(path)
    if len(columns) != len(self):
      raise UserError(
        f"{path} lists {len(columns)} images, the split has {len(self)}; prepare it again with --overwrite"
      )
    return columns


def read_annotations(source: Prepared) -> Annotations:
  """The columns of a dataset that has no index, by reading every record (not decoding it)."""
  logging.info("%s: reading all %d records for their sizes and boxes", source.name, len(source))
  images, boxes = [], []
  for i in tqdm(range(len(source)), desc=f"read {source.name}", unit="img", delay=5):
    r = source[i]
    images.append((r.image_id, r.file_name, r.height, r.width))
    bbox = np.concatenate([r.boxes[:, :2], r.boxes[:, 2:] - r.boxes[:, :2]], axis=1)
    rows = zip(bbox, r.labels, r.crowd, r.area, r.annotation_id, strict=True)
    boxes.append([(*box, *rest) for box, *rest in rows])
  return from_rows(images, boxes)


def size_of(row: dict[str, Any]) -> tuple[int, int]:
  header = read_header(row["image"])
  if header is None:
    where = f"image id {row['image/id']} ({row['image/filename'].decode()})"
    raise UserError(f"{where} is not a readable JPEG or PNG; prepare the dataset again")
  return header.height, header.width


# Ids and names of the detection classes of MS COCO 2014 and 2017 (ids 1 to 90, ten of them not in use).
COCO_CATEGORIES = tuple(
  Category(int(number), name.strip())
  for number, name in (
    entry.strip().split(" ", 1)
    for entry in """
    1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10 traffic light,
    11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep,
    21 cow, 22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack, 28 umbrella, 31 handbag, 32 tie,
    33 suitcase, 34 frisbee, 35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat,
    40 baseball glove, 41 skateboard, 42 surfboard, 43 tennis racket, 44 bottle, 46 wine glass, 47 cup,
    48 fork, 49 knife, 50 spoon, 51 bowl, 52 banana, 53 apple, 54 sandwich, 55 orange, 56 broccoli, 57 carrot,
    58 hot dog, 59 pizza, 60 donut, 61 cake, 62 chair, 63 couch, 64 potted plant, 65 bed, 67 dining table,
    70 toilet, 72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard, 77 cell phone, 78 microwave, 79 oven,
    80 toaster, 81 sink, 82 refrigerator, 84 book, 85 clock, 86 vase, 87 scissors, 88 teddy bear,
    89 hair drier, 90 toothbrush""".replace("\n", " ").split(",")
  )
)


def box_features(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
  """The features of a dataset's boxes by name; empty if it has none."""
  features = builder.info.features
  objects = features["objects"] if "objects" in features else {}
  return dict((objects.feature if isinstance(objects, tfds.features.Sequence) else objects).items())


def tfds_coco_categories(builder: tfds.core.DatasetBuilder) -> tuple[Category, ...]:
  """The category table of one of TFDS's own COCO datasets."""
  objects = box_features(builder)
  if not {"area", "bbox", "id", "is_crowd", "label"} <= objects.keys():
    raise UserError(
      f"{builder.data_path} is neither a dataset of `iou-det prepare` nor one of TFDS's coco/2014, coco/2017 "
      f"(its features are {', '.join(sorted(builder.info.features))})"
    )
  names = objects["label"].names
  if names != [c.name for c in COCO_CATEGORIES]:
    raise UserError(
      f"{builder.data_path}: its {len(names)} labels ({', '.join(names[:5])}, ...) are not COCO's 80, and "
      "TFDS does not keep their ids; make the dataset with `iou-det prepare`"
    )
  return COCO_CATEGORIES
