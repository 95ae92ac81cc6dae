"""Detects objects in your own images, or in a split of the data, and draws them.

  iou-det predict --workdir=runs/demo --out=pictures photo.jpg more/*.png folder/
  iou-det predict --workdir=runs/demo --out=pictures --split=val --limit=12

Writes one picture per image (boxes with class and score; ground truth dashed where --split has it), a contact
sheet and detections.json: file, class name, original category id, score, and x, y, w, h in the image's pixels
as stored (EXIF rotation is not applied).
"""

import collections
from pathlib import Path

import cv2
import numpy as np
from absl import flags

from iou_det.commands import flags as common
from iou_det.commands.drawing import contact_sheet, draw_detections
from iou_det.data import open_dataset
from iou_det.data.images import image_files
from iou_det.data.pipeline import decode_image
from iou_det.detector import load_run
from iou_det.errors import UserError
from iou_det.evaluation.overlap import as_boxes
from iou_det.workdir import write_json

WORKDIR = common.trained_workdir()
BATCH_SIZE = common.batch_size()
STEP = common.step()
IMAGES = flags.DEFINE_multi_string("images", [], "JPEG or PNG file, or folder; more may follow as arguments.")
SPLIT = flags.DEFINE_string("split", None, "Instead of files: a split of the config's data.")
LIMIT = flags.DEFINE_integer("limit", 0, "With --split: only the first images; 0: all.", lower_bound=0)
OUT = flags.DEFINE_string("out", None, "Folder for pictures and detections.json.", required=True)
SCORE = flags.DEFINE_float("score", 0.3, "Boxes below this are not drawn.", lower_bound=0, upper_bound=1)
SHEET = 12  # pictures on the contact sheet


def write_image(path: Path, picture: np.ndarray) -> None:
  if not cv2.imwrite(str(path), picture[..., ::-1]):  # it raises nothing
    raise UserError(f"{path} cannot be written; is --out a folder with room in it?")


def main(arguments: list[str]) -> None:
  run = load_run(WORKDIR.value, STEP.value, BATCH_SIZE.value)
  detector = run.detector
  given = [*IMAGES.value, *arguments]
  if bool(given) == (SPLIT.value is not None):
    raise UserError("give either image files (or folders), or --split=NAME of the config's data")
  if SPLIT.value is None:
    if LIMIT.value:
      raise UserError("--limit goes with --split; to draw fewer files, name fewer")
    source = image_files(given, detector.categories)
  else:
    source = open_dataset(detector.config.data.path, SPLIT.value)
    source = source.first(LIMIT.value or len(source))
  if BATCH_SIZE.value is None:  # a single photo does not fill a batch of 16
    devices, e = detector.mesh.size, detector.config.eval
    e.batch_size = min(e.batch_size, -(-len(source) // devices) * devices)
  out = Path(OUT.value)
  out.mkdir(parents=True, exist_ok=True)

  by_image = collections.defaultdict(list)
  for result in detector.detect(run.variables, source):
    by_image[result["image_id"]].append(result)
  names = [c.name for c in detector.categories]
  label_of = {c.id: k for k, c in enumerate(detector.categories)}

  rows: list[dict] = []
  pictures: list[np.ndarray] = []
  for index in range(len(source)):
    record = source[index]
    found = by_image[record.image_id]
    for r in found:
      row = {"file": record.file_name, "class": names[label_of[r["category_id"]]]}
      rows.append(row | {name: r[name] for name in ("category_id", "score", "bbox")})
    drawn = as_boxes([r for r in found if r["score"] >= SCORE.value])
    picture = draw_detections(
      decode_image(record),
      drawn.box,
      np.array([label_of[k] for k in drawn.category_id], np.int32),
      drawn.score,
      names,
      ground_truth=record.boxes if SPLIT.value else None,
    )
    write_image(out / f"{index + 1:05d}_{Path(record.file_name).stem}.png", picture)
    if len(pictures) < SHEET:
      pictures.append(picture)
  write_image(out / "contact_sheet.png", contact_sheet(pictures))
  write_json(out / "detections.json", rows)
  counts = f"{len(source)} images, {len(rows)} detections (drawn: score >= {SCORE.value})"
  print(f"{counts}; pictures and detections.json in {out}")
