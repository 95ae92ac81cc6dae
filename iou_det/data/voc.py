"""Pascal VOC: an XML file for each picture, in the layouts of `find_splits`.

Corners are pixels counted from 1, and both are inside the box: x = xmin - 1, w = xmax - xmin + 1. Where any
box of the data set starts at 0, its tool counts from 0, with exclusive ends: x = xmin, w = xmax - xmin.
"""

import codecs
import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from iou_det.data.files import USUAL, listing, pictures, read_text_file, refuse_left_out, subfolders
from iou_det.data.labels import FAR, Boxes, Images, Labels, Problem, alphabet, exchanged, make_labels
from iou_det.errors import UserError

NAME = "voc"
WHAT = "a Pascal VOC folder"
WHAT_PAIR = "a folder of Pascal VOC's XML files"
SIGN = "Annotations/*.xml, SPLIT/*.xml or other <annotation> files"
ANNOTATIONS = ("annotations", "annotation", "xmls", "xml")
IMAGES = ("jpegimages", "images", "image", "imgs", "img")
NUMBERS = ("xmin", "ymin", "xmax", "ymax")
# Of several bytes a character, which the XML parser does not know.
ENCODINGS = (
  "gb2312",
  "gbk",
  "gb18030",
  "big5",
  "big5hkscs",
  "shift_jis",
  "cp932",
  "euc_jp",
  "euc_kr",
  "cp949",
)


DIFFICULT = {"": False, "0": False, "false": False, "unspecified": False, "1": True, "true": True}


class Group(NamedTuple):
  """XML files of a folder, by their names without suffix, and where their pictures may be."""

  folder: Path
  stems: list[str]
  images: list[Path]


def recognises(path: str | Path) -> bool:
  return bool(find_splits(Path(path)))


def splits(path: str | Path) -> list[str]:
  return sorted(find_splits(Path(path)))


def read_split(path: str | Path, split: str) -> Labels:
  """A split of a folder with its image files; the categories are those of all splits."""
  root, there = Path(path), find_splits(Path(path))
  return read_groups(root, there[split], [group for groups in there.values() for group in groups])


def takes(annotations: Path) -> bool:
  """Whether an annotation file, or a folder of such, is of this format."""
  return bool(xml_stems(annotations))


def read_pair(images: Path, annotations: Path) -> Labels:
  """A split whose annotations and images are given."""
  group = Group(annotations, xml_stems(annotations), [images])
  if not group.stems:
    raise UserError(f"--annotations={annotations} has no <annotation> files (*.xml)")
  return read_groups(annotations, [group], [group])


def find_splits(root: Path) -> dict[str, list[Group]]:
  """The XML files of a folder by the names of their splits.

  Annotations/*.xml           with ImageSets/Main/SPLIT.txt, else default; several such folders (VOC2007/ and
                              VOC2012/): each split of all of them
  Annotations/SPLIT/*.xml
  *.xml                       default
  SPLIT/*.xml, or SPLIT/Annotations/*.xml

  Pictures lie beside them, or in JPEGImages/ or images/, or in such a folder's folder of the split.
  """
  found: dict[str, list[Group]] = {}
  folders = False  # of splits
  years = [f for f in subfolders(root) if (f / "ImageSets").is_dir() and annotated(f)]
  for base in [root] if annotated(root) or not years else years:
    for folder in annotated(base):
      images = [*named(base, IMAGES), base, folder]
      if stems := xml_stems(folder):
        sets = image_sets(base) or {"default": stems}
        for split, chosen in sets.items():
          found.setdefault(split, []).append(Group(folder, chosen, images))
        continue
      for inside in subfolders(folder):
        split = "default" if inside.name.lower() in ANNOTATIONS else inside.name
        near = [image / inside.name for image in images]
        if stems := xml_stems(inside):
          folders = folders or split != "default"
          found.setdefault(split, []).append(Group(inside, stems, [*near, inside, *images]))
  if not found and (stems := xml_stems(root)):
    found["default"] = [Group(root, stems, [root, *named(root, IMAGES)])]
  if not found:
    for inside in subfolders(root):
      for folder in [inside, *named(inside, ANNOTATIONS)]:
        if stems := xml_stems(folder):
          near = [image / inside.name for image in named(root, IMAGES)]
          images = [folder, *named(inside, IMAGES), inside, *near, *named(root, IMAGES)]
          found[inside.name] = [Group(folder, stems, images)]
          folders = True
          break
  if folders:
    within = [f for image in named(root, IMAGES) for f in subfolders(image)]
    refuse_left_out([*subfolders(root), *within], found, "<annotation> file (*.xml)", root)
  return found


def named(folder: Path, names: tuple[str, ...]) -> list[Path]:
  return [inside for inside in subfolders(folder) if inside.name.lower() in names]


def annotated(base: Path) -> list[Path]:
  """Folders of annotations with XML files, or with folders of such."""
  return [f for f in named(base, ANNOTATIONS) if xml_stems(f) or any(map(xml_stems, subfolders(f)))][:1]


def xml_names(folder: Path) -> list[str]:
  return sorted(n for n in listing(folder) if n.lower().endswith(".xml") and not n.startswith("."))


def xml_stems(folder: Path) -> list[str]:
  """Names without suffix of the XML files in a folder, if the first that can be read is VOC's."""
  names = xml_names(folder)
  for name in names[:10]:
    with (folder / name).open("rb") as file:
      start = file.read(4096).replace(b"\0", b"")  # UTF-16
    if re.search(rb"<annotation[\s>]", start):
      return [n[:-4] for n in names]
  return []


def image_sets(base: Path) -> dict[str, list[str]]:
  """What the text files in ImageSets/Main list, but for those of one class (aeroplane_train.txt)."""
  found = {}
  for folder in (base / "ImageSets" / "Main", base / "ImageSets"):
    for name in sorted(n for n in listing(folder) if n.endswith(".txt")):
      text = (folder / name).read_bytes().decode("utf-8-sig", errors="surrogateescape")
      lines = [line.strip() for line in text.splitlines() if line.strip()]
      if not lines and name[:-4].lower() in USUAL:
        raise UserError(f"{folder / name} lists no pictures; fill it or take it away")
      of_class = all(re.search(r"\s-?[01]$", line) for line in lines)
      if lines and not (of_class and "_" in name):
        found[name[:-4]] = [re.sub(r"(?i)\.(xml|jpe?g|png|bmp|tiff?|webp)$", "", line) for line in lines]
    if found:
      break
  return found


class Object(NamedTuple):
  """A box with its class."""

  number: int  # of the file's objects, from 1
  name: str
  difficult: bool
  corners: list[float]  # as they are in the file


class Parsed(NamedTuple):
  """What an XML file says."""

  file_name: str
  height: int  # pixels; 0: not said
  width: int
  objects: list[Object]
  problems: list[Problem]
  whole: bool = True  # else it is so bad that nothing is known of its picture


def read_groups(where: Path, chosen: list[Group], every: list[Group]) -> Labels:
  """The chosen groups, with the categories and the way to count pixels of all groups."""
  parsed = {file: parse(file) for file in dict.fromkeys(f for group in every for f in xml_files(group))}
  categories = alphabet(o.name for p in parsed.values() for o in p.objects)
  from_0 = sum(any(0 <= v < 1 for v in o.corners[:2]) for p in parsed.values() for o in p.objects)

  files = {file: group for group in chosen for file in xml_files(group)}
  good = {file: group for file, group in files.items() if parsed[file].whole}
  names = picture_names(good, parsed, chosen[0].images[0])
  sizes = np.array([(parsed[f].height, parsed[f].width) for f in good], np.int64).reshape(-1, 2)
  images = Images(np.arange(1, len(good) + 1), names.names, sizes[:, 0], sizes[:, 1])
  rows = [(f, o) for f in good for o in parsed[f].objects]
  box_at = lambda i: f"{rows[i][0]}, object {rows[i][1].number} ({rows[i][1].name})"
  corners = np.array([o.corners for _, o in rows], np.float64).reshape(-1, 4)
  low = corners[:, :2] - (0 if from_0 else 1)
  bbox = np.concatenate([low, corners[:, 2:] - low], axis=1)
  place = {c.name: i for i, c in enumerate(categories)}
  boxes = Boxes(
    np.repeat(np.arange(len(good)), [len(parsed[f].objects) for f in good]).astype(np.int64),
    np.array([place[o.name] for _, o in rows], np.int64),
    bbox,
    np.array([o.difficult for _, o in rows], bool),
    bbox[:, 2] * bbox[:, 3],
    np.arange(1, len(rows) + 1),
  )
  wrong = exchanged(corners, box_at, inside=not from_0)
  kept = np.flatnonzero((bbox[:, 2:] >= 0).all(axis=1))
  labels = make_labels(where, categories, images, boxes.select(kept), lambda i: box_at(int(kept[i])))
  labels.own_ids = False
  bad = [problem for file in files for problem in parsed[file].problems]
  labels.problems[:0] = [*bad, *wrong]
  labels.records = len(files) + len(rows) + sum(len(parsed[f].problems) for f in good)
  if from_0:
    what = "boxes that start at 0 (so all corners are taken as counted from 0, ends exclusive; else from 1)"
    labels.remark(what, from_0)
  else:
    labels.remark(
      "boxes whose corners are taken as counted from 1, both inside (none starts at 0)", len(rows)
    )
  if names.others:
    what = "XML files whose <filename> is another than the picture of their own name (which is taken)"
    labels.remark(what, len(names.others), names.others)
  if twice := sum(len(group.stems) for group in chosen) - len(files):
    labels.remark("names that a list of a split has twice (taken once)", twice)
  every_stem = {stem for group in every for stem in group.stems}
  unnamed = [
    n for stem, ns in names.there.items() if stem not in every_stem for n in ns if n not in names.used
  ]
  with_file = {stem for folder in {group.folder for group in every} for stem in xml_stems(folder)}
  unlisted = [n for n in unnamed if os.path.splitext(n)[0] in with_file]
  if unlisted:
    labels.remark("pictures whose XML file no list in ImageSets has (left out)", len(unlisted), unlisted)
  if alone := [n for n in unnamed if n not in unlisted]:
    labels.remark("pictures without an XML file (left out)", len(alone), alone)
  folders = list(dict.fromkeys(f for group in chosen for f in group.images))
  avoid = dict.fromkeys(f for group in every for f in group.images if f not in folders)
  labels.locate([names.folder, *folders], list(avoid))
  return labels


def xml_files(group: Group) -> list[Path]:
  there = {name[:-4]: name for name in xml_names(group.folder)}
  return [group.folder / there.get(stem, f"{stem}.xml") for stem in group.stems]


class Pictures(NamedTuple):
  """What pictures XML files are of."""

  folder: Path  # that the names are relative to
  names: list[str]  # of each file
  others: list[str]  # files whose <filename> is another
  there: dict[str, list[str]]  # all pictures in the folders where some were found, by name without suffix
  used: set[str]


def picture_names(files: dict[Path, Group], parsed: dict[Path, Parsed], default: Path) -> Pictures:
  """The picture of the file's own name, as the file's id in the devkit is, else the <filename>."""
  inside = cache(pictures)
  found: list[tuple[Path | None, str]] = []
  others = []
  for file, group in files.items():
    said = re.split(r"[\\/]", parsed[file].file_name)[-1]
    for folder in group.images:
      own = inside(folder).get(file.stem, [])
      if name := said if said in own else own[0] if len(own) == 1 else "":
        found.append((folder, name))
        if said and name != said:
          others.append(f"{file.name}: {said}")
        break
    else:
      found.append((None, parsed[file].file_name or f"{file.stem}.jpg"))
  folders = list(dict.fromkeys(folder for folder, _ in found if folder))
  common = Path(os.path.commonpath(folders)) if folders else default
  names = [str((folder / name).relative_to(common)) if folder else name for folder, name in found]
  there: dict[str, list[str]] = {}
  for folder in folders:
    for stem, some in inside(folder).items():
      there.setdefault(stem, []).extend(some)
  return Pictures(common, names, others, there, {os.path.basename(name) for name in names})


def parse(file: Path) -> Parsed:
  """What an XML file says, with what is wrong with it."""
  try:
    root = parse_xml(read_text_file(file))
  except OSError as error:
    missing = isinstance(error, FileNotFoundError)
    return unusable(file, "the XML file does not exist" if missing else f"cannot be read: {error.strerror}")
  except (ElementTree.ParseError, ValueError, LookupError) as error:
    return unusable(file, f"is no XML that can be read: {error}", "xml")
  except Refused as error:
    return unusable(file, str(error))
  objects, problems = [], []
  for number, node in enumerate(root.findall("object"), 1):
    made = parse_object(number, node)
    if isinstance(made, Object):
      objects.append(made)
    else:
      problems.append(Problem(f"{file}, object {number}", *made))
  height, width = (pixels(root.findtext(f"size/{side}")) for side in ("height", "width"))
  name = (root.findtext("filename") or "").strip()
  return Parsed(name.replace("\0", ""), height, width, objects, problems)


def unusable(file: Path, what: str, kind: str = "") -> Parsed:
  return Parsed("", 0, 0, [], [Problem(str(file), what, kind)], whole=False)


def parse_xml(content: bytes) -> ElementTree.Element:
  """The root of an XML text in any encoding. One with a DOCTYPE, that may define what grows, is refused."""
  text: bytes | str = content
  if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in content[:4]:
    marked = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    text = content.decode("utf-16" if marked else "utf-16-be" if content[0] == 0 else "utf-16-le")
  elif match := re.match(rb"""\s*<\?xml[^>]*encoding=["']([\w-]+)["']""", content):
    name = match[1].decode(errors="replace").lower()
    if name.replace("-", "_") in ENCODINGS:
      text = content.decode(name)
  if ("<!DOCTYPE" in text) if isinstance(text, str) else (b"<!DOCTYPE" in text):
    raise Refused("has a DOCTYPE, which annotations have no use for; take it out (entities are not read)")
  root = ElementTree.fromstring(text)
  if root.tag != "annotation":
    raise Refused(f"is <{root.tag[:40]}>, must be <annotation>")
  return root


class Refused(Exception):
  """Of an XML file."""


def parse_object(number: int, node: ElementTree.Element) -> Object | tuple[str, str]:
  """An object, or what is wrong with it and of what kind that is."""
  name = " ".join((node.findtext("name") or "").split())
  if not name:
    return "has no <name>", ""
  box = node.find("bndbox")
  if box is None:
    polygon = node.find("polygon") is not None
    return "has no <bndbox>" + (", only a <polygon>" if polygon else ""), ""
  corners = []
  for key in NUMBERS:
    text = box.findtext(key)
    value = to_number(text)
    if value is None:
      return (f"<{key}> is {text.strip()[:40]!r}, must be a number" if text else f"has no <{key}>"), key
    corners.append(value)
  text = (node.findtext("difficult") or "").strip()
  difficult = DIFFICULT.get(text.lower())
  if difficult is None:
    return f"<difficult> is {text[:40]!r}, must be 0 or 1", "difficult"
  return Object(number, name, difficult, corners)


def to_number(text: str | None) -> float | None:
  try:
    value = float((text or "").replace("_", "?"))  # `1_0` is a number for Python alone
  except ValueError:
    return None
  return value if abs(value) < FAR else None


def pixels(text: str | None) -> int:
  """A side of a picture; 0, so that the file's is taken, unless it is a whole number above 0."""
  value = to_number(text) or 0
  return int(value) if value > 0 and value == int(value) else 0
