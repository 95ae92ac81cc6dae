"""TFDS ArrayRecord datasets: written from any source, one image at a time, and read; no TensorFlow.

A dataset is the folder DATA_DIR/NAME/1.0.0, which holds any number of splits. A split is written in a folder
of its own, and counts as there only once the dataset's `dataset_info.json` lists it: that is replaced last.
Beside its records a split has its annotations as columns, so that a scan need not read the images. TFDS takes
seconds to import: it is imported where it is used.
"""

import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from iou_det.data.divide import how_to
from iou_det.data.images import read_header
from iou_det.data.source import Annotations, Category, Source, describe_difference, from_rows
from iou_det.errors import UserError
from iou_det.storage import read_json

NAME = "tfds"
WHAT = "a prepared dataset"
SIGN = "dataset_info.json in it or below"
VERSION = "1.0.0"  # of the features that `write_split` writes
SHARD_IMAGES = 2048
PREPARE_AGAIN = "move the dataset away and prepare it again"


def recognises(path: str | Path) -> bool:
  return find_version(Path(path)) is not None


def splits(path: str | Path) -> list[str]:
  version = find_version(Path(path))
  return [split["name"] for split in read_info(version)["splits"]] if version else []


def open_split(path: str | Path, split: str) -> Source:
  """A split of a dataset of `iou-det prepare`, or of TFDS's own coco/2014 and coco/2017.

  Those keep neither category ids nor image sizes, and hold boxes as float32 fractions and areas cut to whole
  numbers: the ids are those of COCO's table, the sizes come from the image headers; score against the
  original annotation file where there is one. Of a folder above versions the newest is taken.
  """
  import tensorflow_datasets as tfds

  version = find_version(Path(path)) or Path(path)
  read_info(version)  # a UserError if it cannot be read
  builder = tfds.builder_from_directory(version)
  file_format, there = builder.info.file_format, builder.info.splits
  if file_format != tfds.core.FileFormat.ARRAY_RECORD:
    why = f"stored as {file_format.value}, which has no random access"
    raise UserError(f"{version} is {why}; prepare it with file_format=array_record")
  if split not in there or not there[split].num_examples:
    known = ", ".join(f"{name} ({there[name].num_examples})" for name in there) or "none"
    what = "is empty" if split in there else "does not exist"
    raise UserError(f"{version}: split {split!r} {what}; there are: {known}{how_to(list(there))}")
  missing = [p.name for p in there[split].filepaths if not Path(p).is_file()]
  if missing:
    raise UserError(f"{version}: split {split!r} lacks the files {', '.join(missing)}; prepare it again")
  name = f"{builder.info.name}/{split}"
  rows = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
  read = partial(read_image, rows)
  if "bbox_xywh" in box_features(builder):
    annotations, exif = load_index(version, split, len(rows))
    return Source(name, read_categories(version), annotations, read, exif)
  return Source(name, tfds_coco_categories(builder), read_rows(name, rows), read, "ignore")


def read_image(rows: Any, i: int) -> bytes:
  return rows[i]["image"]


def find_version(folder: Path) -> Path | None:
  """The TFDS dataset in `folder`, or the newest version up to two levels below it; None if there is none."""
  if (folder / "dataset_info.json").is_file():
    return folder
  for pattern in ("*", "*/*"):
    infos = folder.glob(f"{pattern}/dataset_info.json")
    found = [p.parent for p in infos if re.fullmatch(r"\d+\.\d+\.\d+", p.parent.name)]
    if len({p.parent for p in found}) > 1:
      datasets = ", ".join(sorted({str(p.parent) for p in found}))
      raise UserError(f"data path {folder} holds more than one dataset ({datasets}); name one of them")
    if found:
      return max(found, key=lambda p: [int(n) for n in p.name.split(".")])
  return None


def write_split(folder: Path, name: str, split: str, source: Source) -> None:
  """Writes a dataset of one split, in the source's order."""
  import tensorflow_datasets as tfds

  f = tfds.features
  # Numbers of type float64 are stored as bytes: a TFDS record would round them to float32.
  boxes = {
    "bbox_xywh": f.Tensor(shape=(None, 4), dtype=np.float64, encoding="bytes"),  # pixels
    "area": f.Tensor(shape=(None,), dtype=np.float64, encoding="bytes"),
    "id": f.Tensor(shape=(None,), dtype=np.int64),
    "label": f.Sequence(f.ClassLabel(names=[c.name for c in source.categories])),
    "is_crowd": f.Tensor(shape=(None,), dtype=np.bool_),
  }
  sizes = {"image/id": np.int64, "image/height": np.int32, "image/width": np.int32}
  image = {"image": f.Image(), "image/filename": f.Text()}
  features = f.FeaturesDict(image | sizes | {"objects": f.FeaturesDict(boxes)})
  metadata = tfds.core.MetadataDict(categories=[asdict(c) for c in source.categories])
  identity = tfds.core.dataset_info.DatasetIdentity(name, tfds.core.Version(VERSION), str(folder), "")
  info = tfds.core.DatasetInfo(builder=identity, features=features, metadata=metadata)
  # Not a builder: those gather a split in memory and, beyond 1 GB, in files that they open with TensorFlow.
  writer = tfds.core.SequentialWriter(info, SHARD_IMAGES, file_format="array_record")
  writer.initialize_splits([split])
  writer.add_examples({split: examples(source, f"write {split}")})
  writer.close_all()
  names = "\0".join(source.annotations.file_name).encode("utf-8", "surrogatepass")
  columns = vars(source.annotations) | {"file_name": np.frombuffer(names, np.uint8), "exif": source.exif}
  np.savez(index_path(folder, split), **columns)  # not compressed: millions of boxes are read in a second


def examples(source: Source, title: str) -> Iterator[dict[str, Any]]:
  """The records with the features of `write_split`."""
  a = source.annotations
  boxes = {"bbox_xywh": a.bbox, "area": a.area, "id": a.annotation_id, "label": a.label.astype(np.int64)}
  boxes["is_crowd"] = a.crowd
  for i in tqdm(range(len(a)), desc=title, unit="img", delay=5):
    rows = a.rows(i)
    as_utf8 = a.file_name[i].encode("utf-8", "backslashreplace").decode()  # the index has it as it is
    yield {
      "image": io.BytesIO(source.read(i)),
      "image/filename": as_utf8,
      "image/id": a.image_id[i],
      "image/height": a.height[i],
      "image/width": a.width[i],
      "objects": {name: column[rows] for name, column in boxes.items()},
    }


def check_target(
  name: str, split: str, data_dir: str | Path, categories: Sequence[Category] | None, *, overwrite: bool
) -> Path:
  """The folder of the dataset that a split is to be written to, after all checks that need no data.

  Refused are a name that TFDS cannot take, a split that is there already (unless overwrite), a dataset with
  other categories (None: not known yet), a folder that is a file.
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
      raise UserError(f"{version} has files but no dataset_info.json; move them away or give another --name")
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
      difference = describe_difference({repr(split): categories, "the others": table})
      raise UserError(
        f"the categories of {split!r} and those of the splits already in {version} differ ({difference}); "
        "all splits of a dataset share one table: give another --name, or mend the annotations"
      )
  return version


def existing_categories(version: Path, but: str) -> tuple[Category, ...] | None:
  """The category table of a dataset's splits other than `but`; None if there are none."""
  if not (version / "dataset_info.json").is_file():
    return None
  return read_categories(version) if {s["name"] for s in read_info(version)["splits"]} - {but} else None


def prepare_dataset(
  source: Source, *, name: str, split: str, data_dir: str | Path, overwrite: bool = False
) -> Path:
  """Writes a source as one split of DATA_DIR/NAME/1.0.0; returns that folder.

  Memory holds the annotations and one image. If it is interrupted, the dataset is what it was before (or,
  late in an overwrite, lacks the split), and a rerun starts anew. See `check_target` for what is refused.
  """
  version = check_target(name, split, data_dir, source.categories, overwrite=overwrite)
  staging = Path(data_dir) / f".{name}-{split}.part"
  if staging.exists():  # of a run that was interrupted
    shutil.rmtree(staging)
  written = staging / name / VERSION
  written.mkdir(parents=True)
  write_split(written, name, split, source)
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
  info = read_json(version / "dataset_info.json", PREPARE_AGAIN)
  if not isinstance(info, dict) or "splits" not in info or not (version / "features.json").is_file():
    raise UserError(f"{version} is not a whole TFDS dataset; {PREPARE_AGAIN}")
  read_json(version / "features.json", PREPARE_AGAIN)  # of which TFDS would show a traceback
  return info


def write_info(version: Path, info: dict[str, Any]) -> None:
  part = version / "dataset_info.json.part"
  part.write_text(json.dumps(info, indent=2), encoding="utf-8")
  os.replace(part, version / "dataset_info.json")


def read_categories(version: Path) -> tuple[Category, ...]:
  metadata = read_json(version / "metadata.json", PREPARE_AGAIN)
  return tuple(Category(**c) for c in metadata["categories"])


def index_path(version: Path, split: str) -> Path:
  return version / f"index-{split}.npz"


def load_index(version: Path, split: str, number: int) -> tuple[Annotations, str]:
  """The annotations of a split of so many images, and how EXIF is to be taken."""
  path, again = index_path(version, split), "prepare the split again with --overwrite"
  if not path.is_file():
    raise UserError(f"{path} is missing; {again}")
  try:
    with np.load(path) as columns:
      named = {f.name: columns[f.name] for f in fields(Annotations)}
      exif = str(columns["exif"]) if "exif" in columns else "ignore"  # older ones
  except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f"{path} is damaged ({error}); {again}") from error
  names = named["file_name"]
  if names.dtype == np.uint8:
    named["file_name"] = names.tobytes().decode("utf-8", "surrogatepass").split("\0")
  else:  # older ones: an array of texts, each as long as the longest
    named["file_name"] = names.tolist()
  annotations = Annotations(**named)
  if len(annotations) != number:
    raise UserError(f"{path} lists {len(annotations)} images, the split has {number}; {again}")
  return annotations, exif


def read_rows(name: str, rows: Any) -> Annotations:
  """The annotations of one of TFDS's own COCO datasets, by reading every record (not decoding it)."""
  logging.info("%s: reading all %d records for their sizes and boxes", name, len(rows))
  images, boxes = [], []
  for i in tqdm(range(len(rows)), desc=f"read {name}", unit="img", delay=5):
    row = rows[i]
    image_id, file_name = int(row["image/id"]), row["image/filename"].decode()
    header = read_header(row["image"])
    if header is None:
      where = f"image id {image_id} ({file_name})"
      raise UserError(f"{where} is no readable picture; prepare the dataset again")
    images.append((image_id, file_name, header.height, header.width))
    sides = np.array([header.width, header.height] * 2)
    objects = row["objects"]
    corners = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]] * sides
    bbox = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    others = (objects[key] for key in ("label", "is_crowd", "area", "id"))
    boxes.append([(*box, *rest) for box, *rest in zip(bbox, *others, strict=True)])
  return from_rows(images, boxes)


# The detection classes of MS COCO 2014 and 2017: ids 1 to 90 without ten that are not in use.
COCO_IDS = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
COCO_NAMES = """
  person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
  parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
  handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove,
  skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple,
  sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
  dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink,
  refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush""".split(",")
COCO_CATEGORIES = tuple(Category(i, name.strip()) for i, name in zip(COCO_IDS, COCO_NAMES, strict=True))


def box_features(builder: Any) -> dict[str, Any]:
  """The features of a dataset's boxes by name; empty if it has none."""
  features = builder.info.features
  objects = features["objects"] if "objects" in features else {}
  return dict(getattr(objects, "feature", objects).items())  # TFDS's own are a Sequence of features


def tfds_coco_categories(builder: Any) -> tuple[Category, ...]:
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
