"""Converts a clone of github.com/tangsanli5201/DeepPCB to a COCO-format folder.

Usage: python launch/deeppcb.py CLONE DEST   (launch/get_deeppcb.sh makes the clone and calls this)

PCBData/trainval.txt and test.txt list `groupG/G/ID.jpg groupG/G_not/ID.txt`; the image to inspect is
groupG/G/ID_test.jpg, and each line of the text file is `x1 y1 x2 y2 class` in pixels.
"""

import itertools
import shutil
import sys
from pathlib import Path

from iou_det.data.coco import write_annotations
from iou_det.data.images import read_header
from iou_det.data.source import Category, from_rows
from iou_det.errors import UserError

CLASSES = ("open", "short", "mousebite", "spur", "copper", "pin-hole")  # classes 1 to 6
CATEGORIES = tuple(Category(i, name) for i, name in enumerate(CLASSES, 1))
SPLITS = {"train": "trainval.txt", "test": "test.txt"}


def convert(clone: str | Path, destination: str | Path) -> dict[str, tuple[int, int]]:
  """Copies the images and writes the annotations of both splits.

  Args:
    clone: the repository's folder.
    destination: gets annotations/instances_{train,test}.json, train/ and test/; must not exist.

  Returns:
    split -> (images, boxes).

  Raises:
    UserError: if the clone is not one, a file is missing or a line is not as above; nothing is left behind.
  """
  data, destination = Path(clone) / "PCBData", Path(destination)
  if destination.exists():
    raise UserError(f"{destination} exists already; give another destination")
  part = destination.with_name(destination.name + ".part")
  shutil.rmtree(part, ignore_errors=True)
  try:
    counts = write_splits(data, part)
  except BaseException:
    shutil.rmtree(part, ignore_errors=True)
    raise
  part.rename(destination)
  return counts


def write_splits(data: Path, part: Path) -> dict[str, tuple[int, int]]:
  """Writes both splits into the folder `part`; returns their numbers of images and boxes."""
  counts = {}
  annotation_ids = itertools.count(1)
  for split, listing in SPLITS.items():
    (part / split).mkdir(parents=True)
    images, boxes = [], []
    for number, line in enumerate(read(data / listing).splitlines(), 1):
      names = line.split()
      if not names:
        continue
      if len(names) != 2 or not Path(names[0]).stem.isdigit():
        where = f"{data / listing}, line {number}"
        raise UserError(f"{where}: {line!r} is not 'groupG/G/ID.jpg groupG/G_not/ID.txt'")
      template = data / names[0]
      image = template.with_name(f"{template.stem}_test.jpg")
      images.append((int(template.stem), image.name, *copy_image(image, part / split)))
      boxes.append(
        [
          (x1, y1, x2 - x1, y2 - y1, label - 1, 0, (x2 - x1) * (y2 - y1), next(annotation_ids))
          for x1, y1, x2, y2, label in read_boxes(data / names[1])
        ]
      )
    annotations = from_rows(images, boxes)
    write_annotations(part, split, CATEGORIES, annotations)
    counts[split] = (len(annotations), len(annotations.bbox))
  return counts


def read(path: Path) -> str:
  if not path.is_file():
    raise UserError(f"{path} does not exist; give a complete clone of github.com/tangsanli5201/DeepPCB")
  return path.read_text(encoding="utf-8")


def copy_image(path: Path, folder: Path) -> tuple[int, int]:
  """Copies an image; returns its height and width in pixels."""
  header = read_header(path.read_bytes()) if path.is_file() else None
  if header is None:
    raise UserError(f"{path} does not exist or is not a JPEG; clone the repository again")
  shutil.copyfile(path, folder / path.name)
  return header.height, header.width


def read_boxes(path: Path) -> list[tuple[int, int, int, int, int]]:
  """The boxes (x1, y1, x2, y2, class) of one image."""
  boxes = []
  for number, line in enumerate(read(path).splitlines(), 1):
    fields = line.split()
    if not fields:
      continue
    whole = len(fields) == 5 and all(f.isdigit() for f in fields)
    x1, y1, x2, y2, label = map(int, fields if whole else "00000")
    if not (x1 < x2 and y1 < y2 and 1 <= label <= len(CLASSES)):
      raise UserError(f"{path}, line {number}: {line!r} is not 'x1 y1 x2 y2 class' with a class from 1 to 6")
    boxes.append((x1, y1, x2, y2, label))
  return boxes


def main(argv: list[str]) -> None:
  if len(argv) != 2:
    sys.exit("usage: python launch/deeppcb.py CLONE DEST")
  try:
    for split, (images, boxes) in convert(*argv).items():
      print(f"{split}: {images} images, {boxes} boxes")
  except UserError as error:
    print(f"deeppcb: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main(sys.argv[1:])
