"""What annotation files say, read slowly and strictly, and whether what came in is that."""

import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from tests.mutations import folders
from tests.mutations.judge import reason, rules
from tests.mutations.record import BAD, GOOD, MAY, ODD, Box, Expected, worst
from tests.mutations.ways import Came, Outcome


def size_of(path: Path) -> tuple[int, int] | None:
  try:
    with Image.open(io.BytesIO(path.read_bytes())) as image:
      return image.size
  except (OSError, ValueError, SyntaxError):
    return None


def is_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def whole(value: Any) -> tuple[str, Any]:
  """A number that has to be whole, as tools write it, with its status."""
  if is_int(value):
    return (GOOD if abs(value) < 2**63 else MAY), value
  if isinstance(value, float) and math.isfinite(value) and value == int(value):
    return MAY, int(value)
  if isinstance(value, str) and value:
    return MAY, int(value) if re.fullmatch(r"-?[0-9]{1,18}", value) else value
  return BAD, None


def parse_json(data: bytes) -> tuple[Any, str]:
  status = GOOD

  def pairs(items: list[tuple[str, Any]]) -> dict:
    nonlocal status
    if len({k for k, _ in items}) < len(items):
      status = MAY
    return dict(items)

  def constant(name: str) -> float:
    nonlocal status
    status = MAY  # not JSON by the letter
    return float(name.replace("Infinity", "inf"))

  name = json.detect_encoding(data)
  text, status = data.decode(name, "surrogatepass"), GOOD if name == "utf-8" else MAY
  if text.startswith("\ufeff"):
    text, status = text[1:], MAY
  content = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
  if re.search(r"\\u[dD][89a-fA-F]", text) or "\\u0000" in text:
    status = MAY
  return content, status


def coco(folder: Path, split: str) -> Expected:
  try:
    content, status = parse_json((folder / "annotations" / f"instances_{split}.json").read_bytes())
  except json.JSONDecodeError:
    return Expected(BAD)
  except (UnicodeError, RecursionError, ValueError):
    return Expected("unknown")
  lists = (
    [content.get(k) for k in ("images", "annotations", "categories")] if isinstance(content, dict) else [None]
  )
  if not all(isinstance(v, list) for v in lists):
    return Expected(BAD)
  images, annotations, categories = lists
  if not images or not categories:
    return Expected(BAD)
  if not annotations:
    return Expected(MAY)
  labels, odd = coco_categories(categories)
  if odd == "unknown":
    return Expected("unknown")
  status = worst(status, odd)
  pictures, by_id = [], {}
  for row in images:
    picture, key = coco_image(folder / split, row)
    if key is not None and key in by_id:
      first = images[by_id[key]]
      pictures[by_id[key]] = (worst(MAY, pictures[by_id[key]][0]), *pictures[by_id[key]][1:])
      picture = (ODD if row == first else BAD, *picture[1:])
    elif key is not None:
      by_id[key] = len(pictures)
    pictures.append(picture)
  boxes = [coco_box(row, {k: pictures[i] for k, i in by_id.items()}, labels) for row in annotations]
  try:
    identity = [
      {whole(r["id"])[1]: Path(r["file_name"]).name for r in images},
      {whole(r["id"])[1]: r["name"] for r in categories},
    ]
  except (KeyError, TypeError):
    identity = None
  return Expected(status, pictures, boxes, identity)


def coco_categories(rows: list) -> tuple[dict[Any, tuple[str, str]], str]:
  labels: dict[Any, tuple[str, str]] = {}
  status, names = GOOD, set()
  for row in rows:
    if not isinstance(row, dict) or not {"id", "name"} <= row.keys():
      return {}, "unknown"
    how, key = whole(row["id"])
    name = row["name"]
    if how == BAD or not isinstance(name, str) or not name.strip():
      return {}, "unknown"
    if len(name.splitlines()) != 1 or not name.isprintable() or len(name) > 200:
      how = MAY
    if key in labels or name in names:
      return {}, "unknown"  # which of them is meant
    status = worst(status, how)
    names.add(name)
    labels[key] = (how, name)
  return labels, status


def coco_image(folder: Path, row: Any) -> tuple[tuple[str, str, int, int], Any]:
  """The picture that a record names, and its id."""
  if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or not row["file_name"]:
    return (BAD, "", 0, 0), row.get("id") if isinstance(row, dict) and is_int(row.get("id")) else None
  status, key = whole(row.get("id"))
  name, base = row["file_name"], re.split(r"[/\\]", row["file_name"])[-1].strip()
  size = None
  if "\x00" not in name and len(name) < 250 and name.isprintable():
    size = size_of(folder / name)
  if size is None:
    alike = [p for p in folder.parent.rglob("*.png") if p.name.lower() == base.lower()]
    size, base, found = (size_of(alike[0]), alike[0].name, MAY) if alike else ((0, 0), base, BAD)
    status = worst(status, found)
  elif name != base:
    status = worst(status, MAY)
  for key_of_size, right in zip(("width", "height"), size, strict=True):
    value = row.get(key_of_size)
    if is_int(value) and value == right:
      continue
    lax = value is None or value in (-1, 0, right, str(right), f"{right}.0")
    status = worst(status, MAY if lax and not isinstance(value, bool) else BAD)
  return (status, base, *size), key


def coco_box(row: Any, images: dict[Any, tuple[str, str, int, int]], labels: dict) -> Box:
  if not isinstance(row, dict) or not {"image_id", "category_id"} <= row.keys():
    return Box(BAD)
  statuses, keys = zip(*(whole(row[k]) for k in ("image_id", "category_id")), strict=True)
  image, label = images.get(keys[0]), labels.get(keys[1])
  if image is None or label is None or BAD in statuses:
    return Box(BAD)
  if image[0] == BAD:
    return Box(ODD)  # goes with its image
  status = worst(*statuses, image[0], label[0])
  box = row.get("bbox")
  if box is None:
    return Box(ODD if "bbox" in row else BAD)
  if not isinstance(box, list) or len(box) != 4:
    return Box(BAD)
  values = []
  for v in box:
    try:
      values.append(float(v) if not isinstance(v, bool) else math.nan)
    except (TypeError, ValueError, OverflowError):
      values.append(math.nan)
    status = worst(status, GOOD if isinstance(v, (int, float)) and abs(values[-1]) < 1e7 else MAY)
  x, y, w, h = values
  if not all(map(math.isfinite, values)) or w < 0 or h < 0:
    return Box(BAD)
  if x + w <= 0 or y + h <= 0 or x >= image[2] or y >= image[3] or w == 0 or h == 0:
    status = worst(status, MAY)
  how, crowd = crowd_of(row.get("iscrowd", 0))
  area: tuple[float, ...] = (w * h,)
  given = row.get("area", w * h)
  if isinstance(given, (int, float)) and not isinstance(given, bool) and abs(given) < 1e300 and given >= 0:
    area = (w * h, float(given))
  else:
    how, area = worst(how, MAY), ()
  if "id" in row and whole(row["id"])[0] != GOOD:
    how = worst(how, MAY)
  return Box(worst(status, how), image[1], label[1], tuple(values), crowd, area)


def crowd_of(value: Any) -> tuple[str, bool | None]:
  if is_int(value) and value in (0, 1):
    return GOOD, bool(value)
  if value is None or value in (0, 1, "0", "1", "", "true", "false"):
    return MAY, {None: None, "0": False, "1": True}.get(
      value, None if isinstance(value, str) else bool(value)
    )
  return BAD, None


def expected(kind: str, folder: Path) -> dict[str, Expected]:
  if kind == "coco":
    return {split: coco(folder, split) for split in ("train", "val")}
  if kind in ("voc", "yolo"):
    return {"voc": folders.voc, "yolo": folders.yolo}[kind](folder)
  return folders.rows_of_csv(kind, folder)


def judge_labels(kind: str, folder: Path, outcomes: list[Outcome]) -> Iterator[tuple[str, str]]:
  """Faults, each with its way."""
  right = expected(kind, folder)
  for o in outcomes:
    yield from ((o.way, fault) for fault in rules(o))
    # Of a COCO folder all but reading in place see the training split alone.
    seen = right if kind != "coco" or o.way == "place" else {"train": right["train"]}
    if o.code == 0 and not o.hang:
      if not o.came.keys() >= seen.keys() and not any(e.whole == "unknown" for e in seen.values()):
        yield o.way, f"done, but there are only the splits {', '.join(o.came) or 'none'}"
      for split, came in o.came.items():
        yield from ((o.way, f) for f in compare(came, seen.get(split, Expected("unknown")), o.way))
      if o.way == "skip_bad" and "dropped" not in o.out:
        yield o.way, "nothing is said of what was dropped"
    elif o.code == 2:
      if all(e.statuses() == {GOOD} for e in seen.values()) and o.way != "truth":
        yield o.way, f"refused, though nothing is wrong: {reason(o.errors)}"
      fit = all(e.whole == GOOD and any(b.status == GOOD for b in e.boxes) for e in seen.values())
      if o.way == "skip_bad" and fit:
        yield o.way, f"refused: {reason(o.errors)}"
  yield from together({o.way: o for o in outcomes if o.code in (0, 2) and not o.hang}, right)
  if (folder / "PWNED").exists() or Path("PWNED").exists():
    yield "all", "a file's content was executed"


def compare(came: Came, right: Expected, way: str) -> Iterator[str]:
  if right.whole == "unknown":
    return
  if right.whole == BAD:
    yield "taken, though the file as a whole cannot be read"
    return
  if way != "skip_bad" and BAD in right.statuses():
    yield "taken, though a record of it is bad"
  left = sorted(right.boxes, key=lambda b: b.status != GOOD)
  for row in came.boxes:
    found = next((b for b in left if b.status in (GOOD, MAY) and b.is_(row)), None)
    if found is None:
      yield f"a box that is not in the file: {row}"
    else:
      left.remove(found)
  for box in left:
    if box.status == GOOD:
      yield f"a box is lost: {box[1:]}"
  pictures = [(base, w, h) for status, base, w, h in right.images if status in (GOOD, MAY)]
  if way == "truth":  # sizes do not count there
    pictures, came = (
      [(base, 0, 0) for base, _, _ in pictures],
      came._replace(images=[(i[0], 0, 0) for i in came.images]),
    )
  for image in came.images:
    if image in pictures:
      pictures.remove(image)
    else:
      yield f"an image that is not in the file: {image}"
  for status, *image in right.images:
    if status == GOOD and image[0] not in {i[0] for i in came.images}:
      yield f"an image is lost: {image}"


def together(done: dict[str, Outcome], right: dict[str, Expected]) -> Iterator[tuple[str, str]]:
  """What the ways say of one another."""
  prepare, place, truth = (done.get(way) for way in ("prepare", "place", "truth"))
  if prepare and place and prepare.code != place.code:
    said = [f"{o.way} {'takes' if o.code == 0 else 'refuses'} it" for o in (place, prepare)]
    yield "all", f"{'; '.join(said)}: {reason(place.errors if place.code else prepare.errors)}"
  for one, other in ((prepare, place), (place, truth)):
    if not one or not other:
      continue
    if one.code == other.code == 0:
      for split in one.came.keys() & other.came.keys():
        if sorted(one.came[split].boxes) != sorted(other.came[split].boxes):
          yield "all", f"other boxes by {one.way} than by {other.way}"
        images = [sorted(i[0] for i in o.came[split].images) for o in (one, other)]
        if images[0] != images[1]:
          yield "all", f"other images by {one.way} than by {other.way}"
    if one.code == other.code == 2:
      here, there = complaints(one.errors), complaints(other.errors)
      of_picture = re.search(r"image \S+ \(id -?\d+\)", other.errors)  # found when it is decoded, in place
      if not here & there and not of_picture and one is prepare:
        yield "all", f"other words by prepare than by place: {reason(other.errors)}"
  if truth and right["train"].identity:
    yield from (("truth", fault) for fault in of_truth(truth, right["train"], place))


def of_truth(truth: Outcome, right: Expected, place: Outcome | None) -> Iterator[str]:
  from tests.mutations.labels import NAMES, scenes

  clean = [dict(enumerate(scenes()["train"], 1)), dict(enumerate(NAMES, 1))]
  differ = [
    any(there.get(key, name) != name for key, name in ours.items())
    for ours, there in zip(clean, right.identity, strict=True)
  ]
  lacking = clean[0].keys() - right.identity[0].keys()
  if truth.code == 0 and (any(differ) or lacking):
    yield f"taken, though of other {'images' if differ[0] or lacking else 'categories'}"
  if truth.code == 2 and right.identity == clean and place and place.code == 0:
    yield f"refused, though in place it is taken: {reason(truth.errors)}"


def complaints(errors: str) -> set[str]:
  """The single problems that a refusal lists."""
  line = (errors.strip().splitlines() or [""])[-1]
  line = re.sub(r"^iou-det \w+: (\w+: )?(\d+ bad records?( of \d+)?: )?", "", line)
  return set(re.split(r"; (?:mend|drop|and \d+ more|give)", line)[0].split("; "))
