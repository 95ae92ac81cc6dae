"""Checks a data set and writes it as a TFDS ArrayRecord dataset.

  iou-det prepare --data=FOLDER --name=mine --data_dir=datasets
  iou-det prepare --images=DIR --annotations=FILE --split=train --name=mine --data_dir=datasets

With --data every split of a folder of any known format (docs/data.md), or the one of --split; otherwise one
split whose images and annotations are given, run once for each. The dataset is the folder DATA_DIR/NAME, for
--config.data.path. Every picture is decoded and every annotation checked; a report is printed. Bad records
(images that are missing, truncated or of another size than annotated; boxes with unknown categories or
numbers that are not finite; ...) are listed and nothing is written, unless --skip_bad. Boxes of no area or
outside their image are counted and kept.
"""

from pathlib import Path

from absl import flags

from iou_det.data import EXIF, FILE_FORMATS, Reading, format_of, read_labels
from iou_det.data.checks import check_all, report
from iou_det.data.divide import divide, how_to
from iou_det.data.labels import Labels
from iou_det.data.oddities import Contents, across, of_remarks
from iou_det.data.tfds import check_target, existing_categories, prepare_dataset
from iou_det.errors import UserError
from iou_det.storage import local_path

DATA = flags.DEFINE_string("data", None, "Folder of a whole data set, in place of --images, --annotations.")
IMAGES = flags.DEFINE_string("images", None, "Folder of the images of one split.")
ANNOTATIONS = flags.DEFINE_string(
  "annotations", None, "Its annotations: a COCO file, a CSV file, a folder of VOC or YOLO files."
)
NAME = flags.DEFINE_string("name", None, "Name of the dataset: a-z, 0-9 and _.", required=True)
SPLIT = flags.DEFINE_string("split", None, "Name of the split, such as train; with --data: only this one.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder that holds the datasets.", required=True)
NAMES = [f.NAME for f in FILE_FORMATS]
FORMAT = flags.DEFINE_enum("format", "auto", ["auto", *NAMES], "Of the annotations; auto: by looking.")
EXIF_HELP = "Whether pictures are turned as EXIF says; auto: unless annotated sizes are those as stored."
EXIF_FLAG = flags.DEFINE_enum("exif", "auto", EXIF, EXIF_HELP)
FRACTION_HELP = "Of a data set with one split: this share of it becomes the split val, the rest is train."
FRACTION = flags.DEFINE_float("val_fraction", None, FRACTION_HELP)
SEED = flags.DEFINE_integer("seed", 0, "Of --val_fraction: which images become val.", lower_bound=0)
SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "Drop bad records, and list them, instead of stopping.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace splits that are there.")


def main() -> None:
  data_dir = local_path(DATA_DIR.value, "--data_dir")
  names = wanted_splits()
  target = lambda split, categories=None: check_target(
    NAME.value, split, data_dir, categories, overwrite=OVERWRITE.value
  )
  # First what needs no look at the data: a mistake shows at once.
  for split in ("train", "val") if FRACTION.value else names:
    version = target(split)
  parts: dict[str, Labels] = {}
  every: dict[str, Contents] = {}
  for split in names:
    try:
      labels = read(split)
      every[split] = contents = check_all(labels, EXIF_FLAG.value, SKIP_BAD.value)
    except UserError as error:
      if len(names) == 1:
        raise
      raise UserError(f"{split}: {error}; --split=NAME prepares one of {', '.join(names)}") from None
    print(report(labels, f"{NAME.value}/{split}"))
    grave = [finding for finding in of_remarks({split: labels}) if finding.level == "error"]
    print(*(f"  {finding}\n" for finding in grave), sep="", end="")
    if FRACTION.value:
      parts = divide(labels, contents, FRACTION.value, SEED.value)
      print("\n".join(f"{NAME.value}/{s}: {len(p.annotations)} of them" for s, p in parts.items()))
    else:
      parts[split] = labels
  sources = {}
  for split, labels in parts.items():
    source = labels.source(f"{NAME.value}/{split}", EXIF_FLAG.value)
    table = existing_categories(version, split) or next(iter(parts.values())).categories
    sources[split] = source.adopt(table)
    target(split, sources[split].categories)
  odd = across(parts, {} if FRACTION.value else every)
  print(*(f"{finding}\n" for finding in odd), sep="", end="")
  for split, source in sources.items():
    prepare_dataset(source, name=NAME.value, split=split, data_dir=data_dir, overwrite=OVERWRITE.value)
  undivided = how_to(list(parts)) if "train" not in parts else ""
  print(f"wrote {version} ({', '.join(parts)}); use it with --config.data.path={version.parent}{undivided}")


def wanted_splits() -> list[str]:
  """The splits to read; refuses flags that do not go together."""
  pair = [f.value for f in (IMAGES, ANNOTATIONS)]
  if FRACTION.value is not None and not 0 < FRACTION.value < 1:
    raise UserError(f"--val_fraction={FRACTION.value:g}: must be above 0 and below 1")
  if bool(DATA.value) == any(pair) or (any(pair) and not (all(pair) and SPLIT.value)):
    raise UserError("give either --data=FOLDER, or all of --images, --annotations and --split")
  if not DATA.value:
    return [str(SPLIT.value)]
  known = format_of(local_path(DATA.value, "--data"), FORMAT.value)
  there = known.splits(DATA.value)
  if known not in FILE_FORMATS:
    raise UserError(f"--data={DATA.value} is {known.WHAT} already; give it to --config.data.path")
  if SPLIT.value and SPLIT.value not in there:
    raise UserError(f"{DATA.value} has no split {SPLIT.value!r}; there are: {', '.join(there) or 'none'}")
  if FRACTION.value and len(there) > 1 and not SPLIT.value:
    raise UserError(
      f"--val_fraction is for data with one split, {DATA.value} has {', '.join(there)}; leave it out, or "
      "name the split to divide with --split"
    )
  print(f"{DATA.value} is {known.WHAT} with {', '.join(there)}")
  return [SPLIT.value] if SPLIT.value else there


def read(split: str) -> Labels:
  """The records of a split."""
  if DATA.value:
    return read_labels(DATA.value, split, Reading(FORMAT.value, EXIF_FLAG.value))
  images, annotations = (local_path(str(f.value), f"--{f.name}") for f in (IMAGES, ANNOTATIONS))
  labels = format_of_pair(annotations).read_pair(images, annotations)
  labels.find_sizes(EXIF_FLAG.value)
  return labels


def format_of_pair(annotations: Path):
  """The format of what was given as --annotations."""
  if not annotations.exists() and FORMAT.value == "auto" and not annotations.suffix:
    raise UserError(f"--annotations={annotations} does not exist")
  for known in FILE_FORMATS:
    if FORMAT.value == known.NAME or (FORMAT.value == "auto" and known.takes(annotations)):
      return known
  what = ", ".join(f.WHAT_PAIR for f in FILE_FORMATS)
  raise UserError(f"--annotations={annotations} is none of: {what}; or say which with --format")
