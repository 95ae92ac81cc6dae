"""Writes a source as a TFDS ArrayRecord dataset, without TensorFlow and one image at a time.

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
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from iou_det.data.annotations import Annotations, Category
from iou_det.data.records import Source
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
