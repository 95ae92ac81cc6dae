"""Checks a COCO-format folder and writes it as a split of a TFDS ArrayRecord dataset.

The dataset is the folder DATA_DIR/NAME, for --config.data.path; run once for each split. Every image is
decoded and every annotation checked; a report is printed. Bad records (images that are missing, truncated or
of another size than annotated; boxes with unknown categories or numbers that are not finite; ...) are listed
and nothing is written, unless --skip_bad. Boxes of no area or outside their image are counted and kept.
"""

from absl import flags

from iou_det.data.checks import check_coco, report
from iou_det.data.source import from_files
from iou_det.data.tfds import check_target, prepare_dataset
from iou_det.storage import local_path

IMAGES = flags.DEFINE_string("images", None, "Folder of the images.", required=True)
ANNOTATIONS = flags.DEFINE_string("annotations", None, "COCO-format instances JSON.", required=True)
NAME = flags.DEFINE_string("name", None, "Name of the dataset: a-z, 0-9 and _.", required=True)
SPLIT = flags.DEFINE_string("split", None, "Name of the split, such as train.", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder that holds the datasets.", required=True)
SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "Drop bad records, and list them, instead of stopping.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the split if it is there.")


def main() -> None:
  given = (IMAGES, ANNOTATIONS, DATA_DIR)
  images, annotations, data_dir = (local_path(flag.value, f"--{flag.name}") for flag in given)
  name, split = NAME.value, SPLIT.value
  title, overwrite = f"{name}/{split}", OVERWRITE.value
  # First what needs no look at the data: a mistake shows at once.
  check_target(name, split, data_dir, None, overwrite=overwrite)
  coco = check_coco(images, annotations, skip_bad=SKIP_BAD.value)
  print(report(coco, title))
  source = from_files(title, coco.categories, coco.annotations, images)
  version = prepare_dataset(source, name=name, split=split, data_dir=data_dir, overwrite=overwrite)
  print(f"wrote {version}; use it with --config.data.path={version.parent}")
