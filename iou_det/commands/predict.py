"""Detects objects in your own images, or in a split of the data, and draws them.

  iou-det predict --workdir=runs/demo --out=pictures photo.jpg more/*.png folder/
  iou-det predict --workdir=runs/demo --out=pictures --split=val --limit=12

Writes one picture per image (boxes with class and score; ground truth dashed where --split has it), a contact
sheet and detections.json: file, class name, original category id, score, and x, y, w, h in pixels of the
image as it is drawn: a photo is turned as EXIF says, unless --exif=ignore; one of a split as its data say.

Image files are known by their content: docs/data.md has the kinds. In a folder, other files, folders and
names that begin with a dot are passed over. What cannot be read is named at the end, with exit code 2, when
all others are done.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import Any

import cv2
import numpy as np
from absl import flags

from iou_det.commands import flags as common
from iou_det.commands.drawing import contact_sheet, draw_detections, drawable_names
from iou_det.data import Reading, open_dataset
from iou_det.data.images import depth_of, image_files, printable, read_picture
from iou_det.data.pipeline import decode_image
from iou_det.data.source import corners
from iou_det.detector import Pixels
from iou_det.errors import UserError
from iou_det.fonts import check_font
from iou_det.storage import AnyPath, user_path, write_json, write_whole
from iou_det.weights.load import load_detector

WORKDIR = common.trained_workdir()
BATCH_SIZE = common.batch_size()
TEST_TIME = common.test_time()
STEP = common.step()
IMAGES = flags.DEFINE_multi_string("images", [], "Image file or folder; more may follow as arguments.")
SPLIT = flags.DEFINE_string("split", None, "Instead of files: a split of the config's data.")
LIMIT = flags.DEFINE_integer("limit", 0, "With --split: only the first images; 0: all.", lower_bound=0)
OUT = flags.DEFINE_string("out", None, "Folder for pictures and detections.json.", required=True)
SCORE = flags.DEFINE_float("score", 0.3, "Boxes below this are not drawn.", lower_bound=0, upper_bound=1)
EXIF = flags.DEFINE_enum(
  "exif",
  "apply",
  ("apply", "ignore"),
  "Whether image files are turned by their EXIF orientation, or as stored.",
)
SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "Exit code 0 if some images, not all, cannot be read.")
FONT_HELP = (
  "Font file for class names; default: DejaVu Sans, then fonts of this machine that have the letters."
)
FONT = flags.DEFINE_string("font", None, FONT_HELP)
SHEET = 12  # pictures on the contact sheet
SHOWN = 20  # bad images that are named


def write_image(path: AnyPath, picture: np.ndarray) -> None:
  _, png = cv2.imencode(".png", picture[..., ::-1])
  write_whole(path, png.tobytes())


def picture_name(number: int, name: str) -> str:
  """Of a drawn picture; the file's own name in it, as far as any file system can have it."""
  stem = re.sub(r"[^\w .()+,@=~-]", "_", PurePath(name).stem)
  return f"{number:05d}_{stem.encode()[:200].decode(errors='ignore')}.png"


class Files:
  """Reads image files, in threads, and counts what there is to say of them."""

  def __init__(self) -> None:
    self.seen: list[str] = []
    self.deep: list[int] = []  # the largest values where there are more than 8 bits

  def __call__(self, path: Path, name: str) -> Pixels:
    picture = read_picture(path, EXIF.value)
    traits = {
      "images turned by EXIF (--exif=ignore: as stored)": picture.turned,
      "images whose EXIF orientation is ignored": picture.header.orientation != 1 and not picture.turned,
      "images of more than one page (the first is taken)": picture.header.pages,
      "images with decoder warnings": bool(picture.warning),
    }
    self.seen += [trait for trait, holds in traits.items() if holds]
    self.deep += [picture.largest] if picture.largest else []
    return picture.pixels

  def say(self) -> None:
    for trait, number in sorted(Counter(self.seen).items()):
      print(f"{trait}: {number}")
    if self.deep:
      bits = " or ".join(map(str, sorted(set(map(depth_of, self.deep)))))
      print(f"16-bit images, taken as {bits} bits: {len(self.deep)} (largest value {max(self.deep)})")


def main(arguments: list[str]) -> None:
  out = user_path(OUT.value, write=True)
  if FONT.value:
    check_font(FONT.value, "font")
  detector = load_detector(WORKDIR.value, STEP.value, batch_size=BATCH_SIZE.value)
  TEST_TIME(detector.config)
  given = [*IMAGES.value, *arguments]
  if bool(given) == (SPLIT.value is not None):
    raise UserError("give either image files (or folders), or --split=NAME of the config's data")
  files = Files()
  images: Iterable[Any]
  read: Callable[[Any, str], Pixels]
  truth: list[np.ndarray | None]
  if SPLIT.value is None:
    if LIMIT.value:
      raise UserError("--limit goes with --split; to draw fewer files, name fewer")
    images, passed = image_files(given)
    read, names, truth = files, [printable(path) for path in images], [None] * len(images)
    if passed:
      print(f"{passed} names in folders passed over: no pictures, folders, or beginning with a dot")
  else:
    if not detector.config.data.path:
      raise UserError(f"{WORKDIR.value} names no data, so no --split; give image files or folders")
    if EXIF.present:
      raise UserError("--exif is for image files; those of a split are read as the data say")
    source = open_dataset(detector.config.data.path, SPLIT.value, Reading.of(detector.config.data))
    source = source.first(LIMIT.value or len(source))
    images, read = range(len(source)), lambda i, name: decode_image(source[i])
    a = source.annotations
    names, truth = list(a.file_name), [corners(a.bbox[a.rows(i)]) for i in range(len(a))]
  drawn_names = drawable_names(detector.categories, FONT.value)

  rows: list[dict] = []
  pictures: list[np.ndarray] = []
  bad: list[str] = []
  number_drawn, highest = 0, 0.0
  for i, seen in enumerate(detector.stream(images, len(names), read)):
    if isinstance(seen, UserError):
      bad.append(str(seen))
      continue
    pixels, found = seen
    for class_name, row in zip(found.names, found.to_coco(0), strict=True):
      values = {k: row[k] for k in ("category_id", "score", "bbox")}
      rows.append({"file": names[i], "class": class_name} | values)
    drawn = found.scores >= SCORE.value
    number_drawn += int(drawn.sum())
    highest = max(highest, found.scores.max(initial=0.0))
    picture = draw_detections(
      pixels,
      found.boxes[drawn],
      found.labels[drawn],
      found.scores[drawn],
      drawn_names,
      ground_truth=truth[i],
      font=FONT.value,
    )
    if not pictures:
      out.mkdir(parents=True, exist_ok=True)
    write_image(out / picture_name(i + 1, names[i]), picture)
    if len(pictures) < SHEET:
      pictures.append(picture)
  which = f"{len(bad)} of {len(names)} images cannot be read: {'; '.join(bad[:SHOWN])}"
  which += f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
  if not pictures:
    raise UserError(f"{which}; nothing was written")
  write_image(out / "contact_sheet.png", contact_sheet(pictures))
  write_json(out / "detections.json", rows)
  files.say()
  drawn_of = f"{number_drawn} drawn: score >= {SCORE.value:g}, the highest is {highest:.2f}"
  counts = f"{len(names) - len(bad)} images, {len(rows)} detections ({drawn_of})"
  print(f"{counts}; pictures and detections.json in {out}")
  if bad and not SKIP_BAD.value:
    raise UserError(f"{which}; the others are done (--skip_bad: then the exit code is 0)")
  if bad:
    print(which)
