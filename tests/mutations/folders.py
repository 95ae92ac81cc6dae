"""What VOC, YOLO and CSV folders say, read slowly and strictly; see `oracle`.

Conventions (docs/data.md): VOC's corners count from 1 and are both inside, unless a box of the data set
starts at 0; CSV's second corner is outside; YOLO's numbers are shares. A file that is strange as a whole says
nothing certain: then anything but a fault of the program is right.
"""

import csv
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import yaml

from tests.mutations.labels import NAMES, SPLITS, files_of, scenes
from tests.mutations.record import BAD, GOOD, MAY, ODD, Box, Expected, worst

UNKNOWN = Expected("unknown")
KNOWN_TAGS = {"folder", "filename", "path", "source", "size", "segmented", "object"}


def number(text: str | None) -> tuple[str, float]:
  """As anybody writes it, or in a way that some readers take."""
  plain = re.fullmatch(r"\s*-?[0-9]+(\.[0-9]+)?(e-?[0-9]{1,2})?\s*", text or "")
  try:
    value = float(text or "")
  except ValueError:
    return BAD, 0.0
  return (GOOD if plain and abs(value) < 1e7 else MAY if abs(value) < 2**31 else BAD), value


def voc(folder: Path) -> dict[str, Expected]:
  boxes: dict[str, list[tuple[str, str, list[float], bool | None]]] = {}
  images: dict[str, str] = {}
  stems = {name[:-4] for split in SPLITS for name in scenes()[split]}
  for stem in stems:
    images[stem], boxes[stem] = xml(folder / "Annotations" / f"{stem}.xml")
  every = [(status, corners) for of in boxes.values() for status, _, corners, _ in of if corners]
  zero = {status != GOOD for status, c in every if any(0 <= v < 1 for v in c[:2])}
  found = {}
  for split in SPLITS:
    listed = (folder / "ImageSets" / "Main" / f"{split}.txt").read_bytes().decode("utf-8", "replace").split()
    if not listed or len(set(listed)) < len(listed) or not set(listed) <= stems:
      return dict.fromkeys(SPLITS, UNKNOWN)
    rows = [
      Box(MAY if True in zero else status, f"{stem}.png", label, in_pixels(corners, zero), crowd)
      if status in (GOOD, MAY)
      else Box(status)
      for stem in listed
      for status, label, corners, crowd in boxes[stem]
    ]
    if any(row.status == MAY and not row.box for row in rows) or True in zero:
      rows = [row._replace(box=()) if row.status == MAY else row for row in rows]
    found[split] = Expected(GOOD, [(images[stem], f"{stem}.png", 64, 48) for stem in listed], rows)
  return found


def in_pixels(corners: list[float], zero: set[bool]) -> tuple[float, ...]:
  if not corners:
    return ()
  x1, y1, x2, y2 = corners
  return (x1, y1, x2 - x1, y2 - y1) if zero else (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1)


def xml(path: Path) -> tuple[str, list[tuple[str, str, list[float], bool | None]]]:
  """The status of the image, and of each box status, class, corners and whether it is difficult."""
  data = path.read_bytes()
  try:
    root = ElementTree.fromstring(data)
  except (ElementTree.ParseError, ValueError, LookupError):
    strange = b"\0" in data or b"encoding=" in data[:200]
    return MAY if strange else BAD, [(MAY, "", [], None)] * 2 if strange else []
  if root.tag != "annotation":
    return BAD, []
  status = MAY if b"<!" in data or b"encoding=" in data[:200] or {n.tag for n in root} - KNOWN_TAGS else GOOD
  if [n.tag for n in root].count("filename") != 1 or (root.findtext("filename") or "") != f"{path.stem}.png":
    status = worst(status, MAY)
  sizes = [[n.text for n in root.iter(side)] for side in ("width", "height")]
  for texts, right in zip(sizes, (64, 48), strict=True):
    said = [number(text)[1] if number(text)[0] in (GOOD, MAY) else 0 for text in texts]
    said = [value if value % 1 == 0 else 0 for value in said]
    exact = len(texts) == 1 and (texts[0] or "").strip() == str(right)
    status = worst(status, GOOD if exact else MAY if len(said) != 1 or not 1 <= said[0] != right else BAD)
  found = []
  for node in root.findall("object"):
    how, label = status, " ".join((node.findtext("name") or "").split())
    places = [node.iter(tag) for tag in ("name", "xmin", "ymin", "xmax", "ymax", "bndbox", "difficult")]
    if any(len(list(place)) > 1 for place in places):
      found.append((MAY, "", [], None))
      continue
    numbers = [number(node.findtext(f"bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax")]
    corners = [value for _, value in numbers]
    how = worst(how, *(s for s, _ in numbers))
    if status == BAD:
      found.append((ODD, "", [], None))
      continue
    turned = max(corners[0] - corners[2], corners[1] - corners[3])
    if not label or turned > 1:
      how = BAD
    if 0 < turned <= 1:  # of no width, if both corners are inside
      how = worst(how, MAY)
    if corners[0] < 0 or corners[1] < 0 or corners[2] > 64 or corners[3] > 48 or len(label) > 100:
      how = worst(how, MAY)
    difficult = (node.findtext("difficult") or "").strip()
    if difficult not in ("0", "1"):
      how = worst(how, MAY)
    found.append((how, label, corners, {"0": False, "1": True}.get(difficult)))
  return status, found


def yolo(folder: Path) -> dict[str, Expected]:
  names = list(NAMES)
  if (data := (folder / "data.yaml").read_bytes()) != (right := files_of("yolo")["data.yaml"]):
    try:
      said, before = yaml.safe_load(data), yaml.safe_load(right)
      if {**said, "names": 0} != {**before, "names": 0} or b"\xef\xbb\xbf" in data or b"&" in data:
        raise ValueError
      keys = [line.split(":")[0] for line in yaml.safe_dump(said).splitlines()]
      if data.decode("utf-8", "replace").count(":") > len(
        keys
      ):  # one stands twice: YAML's reader takes the last
        raise ValueError
      names = [said["names"][i] for i in range(3)]
      if len(said["names"]) != 3 or len(set(names)) < 3 or not all(isinstance(n, str) and n for n in names):
        raise ValueError
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError, IndexError):
      return dict.fromkeys(SPLITS, UNKNOWN)
  found = {}
  for split, images in scenes().items():
    rows: list[Box] = []
    for name in images:
      try:
        text = (folder / "labels" / split / f"{name[:-4]}.txt").read_bytes().decode("utf-8")
      except UnicodeDecodeError:
        return dict.fromkeys(SPLITS, UNKNOWN)
      if not text.isascii() or "\0" in text or "\x0b" in text:
        return dict.fromkeys(SPLITS, UNKNOWN)
      lines = [tuple(line.split()) for line in text.splitlines() if line.strip()]
      once = dict.fromkeys(lines)
      boxes = [yolo_row(name, cells, names) for cells in once]
      for cells, box in zip(once, boxes, strict=True):  # what is there again may be left out
        rows += [box] + [box._replace(status=worst(MAY, box.status))] * (lines.count(cells) - 1)
    found[split] = Expected(GOOD, [(GOOD, name, 64, 48) for name in images], rows)
  return found


def yolo_row(image: str, cells: tuple[str, ...], names: list[str]) -> Box:
  if len(cells) < 5:
    return Box(BAD)
  if len(cells) > 5:
    return Box(MAY, image)  # a polygon, or with a score
  numbers = [number(cell) for cell in cells]
  kind, values = numbers[0][1], [v for _, v in numbers[1:]]
  status = worst(*(s for s, _ in numbers))
  if status == BAD or kind not in range(len(names)) or any(not -0.01 <= v <= 1.01 for v in values):
    return Box(BAD)
  cx, cy, w, h = values
  if not re.fullmatch(r"[0-9]+", cells[0]):
    status = worst(status, MAY)
  if any(not 0 <= v <= 1 for v in values) or w == 0 or h == 0:
    return Box(worst(status, MAY), image, names[int(kind)])
  if cx - w / 2 < -1e-6 or cy - h / 2 < -1e-6 or cx + w / 2 > 1 + 1e-6 or cy + h / 2 > 1 + 1e-6:
    return Box(worst(status, MAY), image, names[int(kind)])  # kept, or cut off
  box = ((cx - w / 2) * 64, (cy - h / 2) * 48, w * 64, h * 48)
  return Box(status, image, names[int(kind)], box)


def rows_of_csv(kind: str, folder: Path) -> dict[str, Expected]:
  found = {}
  head = "filename,width,height,class,xmin,ymin,xmax,ymax"
  if kind == "retinanet" and (folder / "classes.csv").read_bytes() != files_of(kind)["classes.csv"]:
    return dict.fromkeys(SPLITS, UNKNOWN)
  for split in SPLITS:
    data = (folder / (f"{split}_labels.csv" if kind == "csv" else f"{split}.csv")).read_bytes()
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    lines = text.split("\n")
    if not text.isascii() or re.search(r"[\0\r\x0b\"']", text) or (kind == "csv" and lines[0] != head):
      return dict.fromkeys(SPLITS, UNKNOWN)
    if len(max(lines, key=len)) > 1000:
      return dict.fromkeys(SPLITS, UNKNOWN)
    rows = [row for row in csv.reader(io.StringIO(text)) if row][kind == "csv" :]
    images: dict[str, str] = {}
    boxes = []
    for row in rows:
      base, status, box = csv_row(kind, row)
      boxes.append(box)
      if base:
        images[base] = worst(images.get(base, GOOD), status)
    if not rows or any(s == BAD for s in images.values()) or len({tuple(r) for r in rows}) < len(rows):
      return dict.fromkeys(SPLITS, UNKNOWN)
    boxes = [b._replace(status=worst(MAY, b.status)) if images.get(b.image) == MAY else b for b in boxes]
    pictures = [(status, base, 64, 48) for base, status in images.items()]
    # The same picture by another path, or in other letters, may be one more.
    names = {row[0] for row in rows if len(row) > 1}
    pictures += [(MAY, n.rsplit("/", 1)[-1], 64, 48) for n in names]
    found[split] = Expected(GOOD, pictures, boxes)
  return found


def csv_row(kind: str, row: list[str]) -> tuple[str, str, Box]:
  """The picture, its status, and the box."""
  if len(row) != (8 if kind == "csv" else 6):
    return "", GOOD, Box(MAY)
  name, size, label, cells = (
    (row[0], row[1:3], row[3], row[4:]) if kind == "csv" else (row[0], [], row[5], row[1:5])
  )
  base = name.rsplit("/", 1)[-1]
  right = {"csv": base, "retinanet": f"images/{base}"}[kind]
  if base not in {n for of in scenes().values() for n in of}:
    return "", GOOD, Box(MAY if re.search(r"im[0-5]\.png$", base.lower()) else BAD, base)
  status = GOOD if name == right and size in ([], ["64", "48"]) else MAY
  numbers = [number(cell) for cell in cells]
  x1, y1, x2, y2 = (v for _, v in numbers)
  how = worst(*(s for s, _ in numbers))
  if not any(cells) or not label.strip():
    return base, MAY, Box(MAY, base)
  if how == BAD or x1 > x2 or y1 > y2 or (kind == "retinanet" and label.strip() not in NAMES):
    return base, status, Box(BAD)
  if (
    label != label.strip()
    or min(x1, y1) < 0
    or x1 == x2
    or y1 == y2
    or max(x1, y1, x2, y2) <= 1
    or x2 > 64
    or y2 > 48
  ):
    how = worst(how, MAY)
  return base, status, Box(how, base, label, (x1, y1, x2 - x1, y2 - y1))
