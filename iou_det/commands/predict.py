"""Detects objects in your own images, or in a split of the data, and draws them.

  iou-det predict --workdir=runs/demo --out=pictures photo.jpg more/*.png folder/
  iou-det predict --workdir=runs/demo --out=pictures --split=val --limit=12

Writes one picture per image (boxes with class and score; ground truth dashed where --split has it), a contact
sheet and detections.json: file, class name, original category id, score, and x, y, w, h in the image's pixels
as stored (EXIF rotation is not applied).
"""

from collections.abc import Iterable
from pathlib import PurePath

import cv2
import numpy as np
from absl import flags

from iou_det.commands import flags as common
from iou_det.commands.drawing import contact_sheet, draw_detections, drawable_names
from iou_det.data import Reading, open_dataset
from iou_det.data.images import Image, image_files
from iou_det.data.pipeline import decode_image
from iou_det.data.source import corners
from iou_det.errors import UserError
from iou_det.fonts import check_font
from iou_det.storage import AnyPath, user_path, write_json, write_whole
from iou_det.weights.load import load_detector

WORKDIR = common.trained_workdir()
BATCH_SIZE = common.batch_size()
TEST_TIME = common.test_time()
STEP = common.step()
IMAGES = flags.DEFINE_multi_string("images", [], "JPEG or PNG file, or folder; more may follow as arguments.")
SPLIT = flags.DEFINE_string("split", None, "Instead of files: a split of the config's data.")
LIMIT = flags.DEFINE_integer("limit", 0, "With --split: only the first images; 0: all.", lower_bound=0)
OUT = flags.DEFINE_string("out", None, "Folder for pictures and detections.json.", required=True)
SCORE = flags.DEFINE_float("score", 0.3, "Boxes below this are not drawn.", lower_bound=0, upper_bound=1)
FONT_HELP = (
  "Font file for class names; default: DejaVu Sans, then fonts of this machine that have the letters."
)
FONT = flags.DEFINE_string("font", None, FONT_HELP)
SHEET = 12  # pictures on the contact sheet


def write_image(path: AnyPath, picture: np.ndarray) -> None:
  _, png = cv2.imencode(".png", picture[..., ::-1])
  write_whole(path, png.tobytes())


def main(arguments: list[str]) -> None:
  out = user_path(OUT.value, write=True)
  if FONT.value:
    check_font(FONT.value, "font")
  detector = load_detector(WORKDIR.value, STEP.value, batch_size=BATCH_SIZE.value)
  TEST_TIME(detector.config)
  given = [*IMAGES.value, *arguments]
  if bool(given) == (SPLIT.value is not None):
    raise UserError("give either image files (or folders), or --split=NAME of the config's data")
  images: Iterable[Image]
  truth: list[np.ndarray | None]
  if SPLIT.value is None:
    if LIMIT.value:
      raise UserError("--limit goes with --split; to draw fewer files, name fewer")
    images = image_files(given)
    names, truth = [str(path) for path in images], [None] * len(images)
  else:
    if not detector.config.data.path:
      raise UserError(f"{WORKDIR.value} names no data, so no --split; give image files or folders")
    source = open_dataset(detector.config.data.path, SPLIT.value, Reading.of(detector.config.data))
    source = source.first(LIMIT.value or len(source))
    images = (decode_image(source[i]) for i in range(len(source)))
    a = source.annotations
    names, truth = list(a.file_name), [corners(a.bbox[a.rows(i)]) for i in range(len(a))]
  drawn_names = drawable_names(detector.categories, FONT.value)
  out.mkdir(parents=True, exist_ok=True)

  rows: list[dict] = []
  pictures: list[np.ndarray] = []
  several = zip(names, truth, detector.stream(images, len(names)), strict=True)
  for i, (name, boxes, (pixels, found)) in enumerate(several, 1):
    for class_name, row in zip(found.names, found.to_coco(0), strict=True):
      rows.append({"file": name, "class": class_name} | {k: row[k] for k in ("category_id", "score", "bbox")})
    drawn = found.scores >= SCORE.value
    picture = draw_detections(
      pixels,
      found.boxes[drawn],
      found.labels[drawn],
      found.scores[drawn],
      drawn_names,
      ground_truth=boxes,
      font=FONT.value,
    )
    write_image(out / f"{i:05d}_{PurePath(name).stem}.png", picture)
    if len(pictures) < SHEET:
      pictures.append(picture)
  write_image(out / "contact_sheet.png", contact_sheet(pictures))
  write_json(out / "detections.json", rows)
  counts = f"{len(names)} images, {len(rows)} detections (drawn: score >= {SCORE.value})"
  print(f"{counts}; pictures and detections.json in {out}")
