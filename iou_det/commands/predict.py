"""Detects objects in your own pictures and videos, or in a split of the data, and draws them.

  iou-det predict --workdir=runs/demo --out=pictures photo.jpg more/*.png folder/
  iou-det predict --workdir=runs/demo --out=videos clip.mp4
  iou-det predict --workdir=runs/demo --out=pictures --tile=640,overlap=0.2 aerial.tif
  iou-det predict --workdir=runs/demo --out=pictures --split=val --limit=12

Writes one picture per image (boxes with class and score; ground truth dashed where --split has it), a contact
sheet and detections.json: file, class name, original category id, score, and x, y, w, h in pixels of the
image as it is drawn: a photo is turned as EXIF says, unless --exif=ignore; one of a split as its data say.
Of a video: an MP4 video, and a .jsonl file with a line a frame (needs the extra `video`).

Files are known by their content: docs/data.md has the kinds of pictures, docs/predict.md the rest. In a
folder, other files, folders and names that begin with a dot are passed over. What cannot be read is named at
the end, with exit code 2, when all others are done.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import cv2
import numpy as np
from absl import flags

from iou_det import tiles
from iou_det.commands import flags as common
from iou_det.commands import video
from iou_det.commands.drawing import contact_sheet, drawable_names
from iou_det.commands.found import Pen, See, Seen, Tally
from iou_det.commands.found import rows as found_rows
from iou_det.data import Reading, open_dataset
from iou_det.data.given import given_files
from iou_det.data.headers import VIDEO_SUFFIXES
from iou_det.data.images import depth_of, printable, read_picture
from iou_det.data.pipeline import decode_image
from iou_det.data.source import corners
from iou_det.detector import Detector, Pixels
from iou_det.errors import UserError
from iou_det.fonts import check_font
from iou_det.storage import AnyPath, user_path, write_json, write_whole
from iou_det.weights.load import load_detector

WORKDIR = common.trained_workdir()
BATCH_SIZE = common.batch_size()
TEST_TIME = common.test_time()
STEP = common.step()
IMAGES = flags.DEFINE_multi_string(
  "images", [], "Image or video file, or folder; more may follow as arguments."
)
SPLIT = flags.DEFINE_string("split", None, "Instead of files: a split of the config's data.")
LIMIT = flags.DEFINE_integer("limit", 0, "With --split: only the first images; 0: all.", lower_bound=0)
OUT = flags.DEFINE_string("out", None, "Folder for pictures, videos and detections.", required=True)
SCORE = flags.DEFINE_float("score", 0.3, "Boxes below this are not drawn.", lower_bound=0, upper_bound=1)
EXIF = flags.DEFINE_enum(
  "exif",
  "apply",
  ("apply", "ignore"),
  "Whether files are turned by their EXIF orientation (videos: by their rotation), or as stored.",
)
SKIP_BAD = flags.DEFINE_bool(
  "skip_bad", False, "Exit code 0 if some files, not all, cannot be read, or in parts."
)
TILE = flags.DEFINE_string(
  "tile",
  None,
  f"Images larger than SIZE are seen as a whole and in squares, merged by one NMS: {tiles.ALLOWED}.",
)
FONT_HELP = (
  "Font file for class names; default: DejaVu Sans, then fonts of this machine that have the letters."
)
FONT = flags.DEFINE_string("font", None, FONT_HELP)
SHEET = 12  # pictures on the contact sheet
SHOWN = 20  # bad files that are named


def write_image(path: AnyPath, picture: np.ndarray) -> None:
  _, png = cv2.imencode(".png", picture[..., ::-1])
  write_whole(path, png.tobytes())


def drawn_name(number: int, name: str) -> str:
  """Of what is drawn, without a suffix; the file's own name in it, as far as any file system can have it."""
  stem = re.sub(r"[^\w .()+,@=~-]", "_", PurePath(name).stem)
  return f"{number:05d}_{stem.encode()[:200].decode(errors='ignore')}"


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


class Images(NamedTuple):
  """Those to be seen: what `read` takes of each, its name and its ground truth."""

  items: Sequence[Any]
  names: list[str]
  truth: Sequence[np.ndarray | None]
  read: Callable[[Any, str], Pixels]


def images_of_split(detector: Detector, split: str) -> Images:
  if not detector.config.data.path:
    raise UserError(f"{WORKDIR.value} names no data, so no --split; give image files or folders")
  if EXIF.present:
    raise UserError("--exif is for image files; those of a split are read as the data say")
  source = open_dataset(detector.config.data.path, split, Reading.of(detector.config.data))
  source = source.first(LIMIT.value or len(source))
  a = source.annotations
  truth = [corners(a.bbox[a.rows(i)]) for i in range(len(a))]
  return Images(range(len(source)), list(a.file_name), truth, lambda i, name: decode_image(source[i]))


def draw_images(images: Images, see: See, pen: Pen, out: AnyPath) -> list[str]:
  """Writes the pictures, if there are any, and what belongs to them; returns what cannot be read."""
  rows: list[dict] = []
  pictures: list[np.ndarray] = []
  bad: list[str] = []
  tally = Tally(pen.score)
  for i, seen in enumerate(see(images.items, images.read)):
    if isinstance(seen, UserError):
      bad.append(str(seen))
      continue
    pixels, found = seen
    rows += [{"file": images.names[i]} | row for row in found_rows(found)]
    tally.add(found)
    picture = pen.draw(pixels, found, images.truth[i])
    if not pictures:
      out.mkdir(parents=True, exist_ok=True)
    write_image(out / f"{drawn_name(i + 1, images.names[i])}.png", picture)
    if len(pictures) < SHEET:
      pictures.append(picture)
  if pictures:
    write_image(out / "contact_sheet.png", contact_sheet(pictures))
    write_json(out / "detections.json", rows)
    number = len(images.names) - len(bad)
    print(f"{number} images, {tally}; pictures and detections.json in {out}")
  return bad


def draw_videos(
  paths: list[Path], targets: list[video.Target], see: See, pen: Pen
) -> tuple[list[str], list[str]]:
  """Writes what can be read; returns what cannot, and what is damaged."""
  bad: list[str] = []
  damaged: list[str] = []
  traits: list[str] = []
  for path, target in zip(paths, targets, strict=True):
    try:
      frames = video.Frames(path, turn=EXIF.value == "apply")
    except UserError as error:
      bad.append(str(error))
      continue
    with closing(frames.container):
      done, odd = video.annotate(frames, see, pen, target)
    print(f"{frames.name}: {done}; {target.video} and {target.lines.name}")
    traits += odd
    damaged += [f"{frames.name}: {frames.damage}"] if frames.damage else []
  for trait, number in sorted(Counter(traits).items()):
    print(f"{trait}: {number}")
  return bad, damaged


def listed(what: str, which: list[str]) -> str:
  more = f"; and {len(which) - SHOWN} more" if len(which) > SHOWN else ""
  return f"{what}: {'; '.join(which[:SHOWN])}{more}"


def main(arguments: list[str]) -> None:
  out = user_path(OUT.value, write=True)
  if out.suffix.lower() in VIDEO_SUFFIXES:
    raise UserError(f"--out={out}: what is written gets a folder; give a name without {out.suffix}")
  if FONT.value:
    check_font(FONT.value, "font")
  tiling = None if TILE.value is None else tiles.Tiling.parse(TILE.value)
  detector = load_detector(WORKDIR.value, STEP.value, batch_size=BATCH_SIZE.value)
  TEST_TIME(detector.config)
  if tiling and tiling.side > min(detector.config.data.canvas):
    canvas = tuple(detector.config.data.canvas)
    print(f"tiles of {tiling.side} px are shrunk to data.canvas={canvas}: --tile={min(canvas)} shows more")
  given = [*IMAGES.value, *arguments]
  if bool(given) == (SPLIT.value is not None):
    raise UserError("give either image files (or folders), or --split=NAME of the config's data")
  files, videos = Files(), list[Path]()
  if SPLIT.value is None:
    if LIMIT.value:
      raise UserError("--limit goes with --split; to draw fewer files, name fewer")
    pictures, videos, passed = given_files(given)
    names = [printable(path) for path in pictures]
    images = Images(pictures, names, [None] * len(names), files)
    if passed:
      print(f"{passed} names in folders passed over: no pictures or videos, folders, or beginning with a dot")
  else:
    images = images_of_split(detector, SPLIT.value)
  pen = Pen(drawable_names(detector.categories, FONT.value), SCORE.value, FONT.value)
  if videos and detector.call_size is None:  # it would be set by the pictures
    detector.call_size = detector.config.eval.batch_size

  def see(items: Iterable[Any], read: Callable[[Any, str], Pixels]) -> Seen:
    if tiling:
      return tiles.stream(detector, items, read, tiling)
    return detector.stream(items, len(images.names) or detector.config.eval.batch_size, read)

  total, what = len(images.names) + len(videos), "files" if videos else "images"
  stems = [drawn_name(n, printable(path)) for n, path in enumerate(videos, len(images.names) + 1)]
  targets = [video.outputs(out, stem) for stem in stems]
  bad = draw_images(images, see, pen, out)
  files.say()
  unread, damaged = draw_videos(videos, targets, see, pen)
  bad += unread
  unreadable = listed(f"{len(bad)} of {total} {what} cannot be read", bad)
  if len(bad) == total:
    raise UserError(f"{unreadable}; nothing was written")
  problems = [unreadable] if bad else []
  problems += [listed(f"{len(damaged)} videos are damaged", damaged)] if damaged else []
  if problems and not SKIP_BAD.value:
    raise UserError(f"{'; '.join(problems)}; the others are done (--skip_bad: then the exit code is 0)")
  if problems:
    print("; ".join(problems))
