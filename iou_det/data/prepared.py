"""Reads TFDS ArrayRecord datasets: those of `iou-det prepare`, and TFDS's own prepared `coco/*`."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from iou_det.data.annotations import Annotations, Category, from_rows
from iou_det.data.builder import index_path, load_index, read_categories, read_info
from iou_det.data.image_files import read_header
from iou_det.data.records import Record, corners
from iou_det.errors import UserError


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
