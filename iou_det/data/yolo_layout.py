"""YOLO folders: which pictures the splits have, where their label files are, what the classes are called."""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from iou_det.data.files import LARGEST_TEXT, USUAL, is_picture, listing, refuse_left_out, subfolders, walk
from iou_det.errors import UserError

YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
CLASSES = (
  "obj.names",
  "classes.txt",
  "classes.names",
  "_darknet.labels",
  "labels.txt",
  "predefined_classes.txt",
)
LARGEST_YAML = 1 << 18  # bytes: ten thousand names of classes
IMAGES = ("images", "jpegimages")  # in a path: where `labels` stands in that of a label file
LABEL_LINE = rb"\s*\d+(\.0*)?(\s+[-+.\deE]+){4,}\s*\Z"


class Split(NamedTuple):
  """Names of pictures, and folders that they are relative to."""

  names: list[str]
  folders: list[Path]


class Described(NamedTuple):
  """A data.yaml. All its values are texts: `no` is a class's name, not False."""

  file: Path | None
  content: dict[str, Any]


def root_of(path: str | Path) -> Path:
  """The folder of a data set, which may also be given by its data.yaml."""
  return Path(path).parent if Path(path).suffix in (".yaml", ".yml") else Path(path)


def yaml_of(path: Path) -> Path | None:
  """The file that describes a folder (or is given), by its name, or else the only one with names."""
  if path.suffix in (".yaml", ".yml") and path.is_file():
    return path
  there = listing(path)
  if known := [path / name for name in YAMLS if name in there]:
    return known[0]
  others = [
    path / n for n in sorted(there) if n.endswith((".yaml", ".yml")) and (path / n).stat().st_size < 1 << 20
  ]
  others = [file for file in others if re.search(rb"(?m)^[\"']?names[\"']?\s*:", file.read_bytes())]
  return others[0] if len(others) == 1 else None


def describe(path: Path) -> Described:
  """Reads a folder's data.yaml if there is one; a UserError if it is none that can be read."""
  file = yaml_of(path)
  if file is None:
    return Described(None, {})
  remedy = "give one with names: [first, second] and train:, val:, as YOLO's"
  with file.open("rb") as opened:
    content = opened.read(LARGEST_YAML + 1)
  if len(content) > LARGEST_YAML:
    raise UserError(f"{file} has more than {LARGEST_YAML >> 10} kB; {remedy}")
  try:
    node = yaml.compose(content, yaml.BaseLoader)
  except (yaml.YAMLError, ValueError, RecursionError) as error:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark else ""
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    raise UserError(f"{file}{where}: is no YAML that can be read ({what}); {remedy}") from None
  value = plain(file, node, set())
  if not isinstance(value, dict):
    raise UserError(f"{file} is no mapping; {remedy}")
  return Described(file, value)


def plain(file: Path, node: yaml.Node | None, seen: set[int]) -> Any:
  """Texts, lists and mappings. Refused are a key that stands twice in a mapping, of which YAML's readers take
  the last in silence, and what is used twice by an alias, as that may grow without end."""
  if id(node) in seen:
    raise UserError(f"{file} has aliases (*NAME); write out what they stand for")
  seen.add(id(node))
  if isinstance(node, yaml.SequenceNode):
    return [plain(file, value, seen) for value in node.value]
  if not isinstance(node, yaml.MappingNode):
    return node.value if node else None
  found: dict[str, Any] = {}
  for key, value in node.value:
    if str(key.value) in found:
      raise UserError(
        f"{file}, line {key.start_mark.line + 1}: {str(key.value)[:40]!r} stands here a second time"
      )
    found[str(key.value)] = plain(file, value, seen)
  return found


def find_splits(path: Path) -> dict[str, Split]:
  """The pictures of a data set by the names of their splits.

  data.yaml                  USUAL names: a folder, a list of folders, a text file of pictures
  train.txt, val.txt, ...    lists of pictures (Darknet)
  images/SPLIT/              with labels/SPLIT/
  SPLIT/images/              with SPLIT/labels/
  images/                    with labels/: default
  SPLIT/, or the folder      pictures and label files beside each other: default for the folder
  """
  root, described = root_of(path), describe(path)
  found: dict[str, Split] = {}
  entries = {key: value for key, value in described.content.items() if key in USUAL}
  for split, entry in entries.items():
    several = entry if isinstance(entry, list) else [entry]
    places = [resolve(described, e) for e in several]
    there = [place for place in places if place]
    if there and len(there) < len(places):
      lacking = next(e for e, place in zip(several, places, strict=True) if not place)
      raise UserError(
        f"{described.file}: of {split}: there is no {str(lacking)[:200]!r}; mend it or take it out"
      )
    for place in there:
      if not place.is_dir() and is_no_text(place):
        what = f"{split}: {str(entry)[:200]!r} is neither a folder nor a text file that lists pictures"
        raise UserError(f"{described.file}: {what}; give the folder of the pictures")
    if there:
      found[split] = pictures_of(root, there)
  written = lambda split: os.path.normpath(str(entries[split]))
  for a in found:
    for b in found:
      if a < b and found[a] == found[b] and written(a) != written(b):
        raise UserError(
          f"{described.file}: {a}: {entries[a]!r} and {b}: {entries[b]!r} are one folder here; mend them"
        )
  if found:
    for split in entries:
      # `test` alone may lead nowhere: ultralytics' and Roboflow's files have it for data sets without one.
      if not found[split].names if split in found else split != "test":
        what = f"{split}: {entries[split]!r} leads to no pictures" if entries[split] else f"{split}: is empty"
        raise UserError(f"{described.file}: {what}; mend it or take it out")
    return found
  texts = [root / n for n in sorted(listing(root)) if n.endswith(".txt")]
  lists = [file for file in texts if is_list(file)]
  if lists:
    for file in texts:
      if file not in lists and file.stem.lower() in USUAL:
        raise UserError(f"{file} does not begin with the path of a picture; mend it or take it away")
    return {file.stem: pictures_of(root, [file]) for file in lists}
  inside = subfolders(root)
  images = [f for f in inside if f.name.lower() in IMAGES]
  layouts = (
    {f.name: f for image in images if not has_pictures(image) for f in subfolders(image)},
    {f.name: g for f in inside for g in subfolders(f) if g.name.lower() in IMAGES},
    {"default": images[0]} if images else {},
    {f.name: f for f in inside if has_pictures(f)},
    {"default": root} if has_pictures(root) else {},
  )
  for layout in layouts:
    if used := {split: place for split, place in layout.items() if labelled(place)}:
      others = [*inside, *(f for image in images for f in subfolders(image))]
      others = [f for f in others if not any(f.is_relative_to(place) for place in used.values())]
      refuse_left_out(others, used, "label file with a box", root)
      return {split: pictures_of(root, [place]) for split, place in used.items()}
  return {}


def resolve(described: Described, entry: Any) -> Path | None:
  """The file or folder of an entry of data.yaml.

  Relative to `path`, or to the file, also where a `../` too many leads out of its folder (Roboflow), or where
  the path is of another machine: then by its last parts.
  """
  if not isinstance(entry, str) or not entry.strip() or "\0" in entry or described.file is None:
    return None
  base, stated = described.file.parent, described.content.get("path")
  entry = entry.strip().replace("\\", "/")
  tries = [base / stated / entry] if isinstance(stated, str) and "\0" not in stated else []
  tries.append(base / entry)
  parts = [p for p in PurePosixPath(entry).parts if p not in ("..", ".", "/")]
  tries += [base.joinpath(*parts[i:]) for i in range(len(parts)) if i == 0 or parts[i:] != ["images"]]
  return next((place for place in tries if place.exists()), None)


def pictures_of(root: Path, places: list[Path]) -> Split:
  """The pictures below folders, or that text files list."""
  folders = [place for place in places if place.is_dir()]
  common = Path(os.path.commonpath(folders)) if folders else root
  names = [os.path.relpath(path, common) for folder in folders for path in walk(folder)]
  lists = [place for place in places if not place.is_dir()]
  for file in lists:
    with file.open("rb") as opened:
      text = opened.read(LARGEST_TEXT).decode("utf-8-sig", errors="surrogateescape")
    names += [line.strip().removeprefix("./") for line in text.splitlines() if line.strip()]
  return Split(names, list(dict.fromkeys([common, *(file.parent for file in lists), root])))


def folders_of(split: Split) -> set[Path]:
  """The folders of a split's pictures; by the last parts of paths that are of another machine."""
  found = set()
  for where in {os.path.dirname(name.replace("\\", "/")) for name in split.names}:
    parts = PurePosixPath(where).parts
    tries = [folder.joinpath(*parts[i:]) for i in range(len(parts)) for folder in split.folders]
    found.update([place for place in tries or split.folders[:1] if place.is_dir()][:1])
  return found


def has_pictures(folder: Path) -> bool:
  return any(map(is_picture, listing(folder)))


def is_list(file: Path) -> bool:
  """Whether a text file begins with the path of a picture."""
  with file.open("rb") as opened:
    return is_picture(opened.read(4096).lstrip().split(b"\n")[0].decode(errors="replace").strip())


def is_no_text(file: Path) -> bool:
  with file.open("rb") as opened:
    return is_picture(file.name) or b"\0" in opened.read(4096)


def label_folder(folder: Path) -> Path:
  """Where the label files of a folder's pictures are: `labels` for the path's last `images`, or there."""
  parts = folder.parts
  for i in reversed(range(len(parts))):
    if parts[i].lower() in IMAGES:
      tries = [Path(*parts[:i], name, *parts[i + 1 :]) for name in ("labels", "Labels")]
      return next((place for place in tries if place.is_dir()), folder)
  return folder


def labelled(folder: Path) -> bool:
  """Whether the pictures below a folder have label files, by the first that says something."""
  for path in walk(folder)[:1000]:
    where, name = os.path.split(path)
    file = label_folder(Path(where)) / (os.path.splitext(name)[0] + ".txt")
    if file.is_file() and is_label(file):
      return True
  return False


def is_label(file: Path) -> bool:
  """Whether the first line of a text file is that of a box."""
  with file.open("rb") as opened:
    start = opened.read(1 << 16).removeprefix(b"\xef\xbb\xbf").strip()
  return bool(re.match(LABEL_LINE, start.splitlines()[0] if start else b""))


def find_names(described: Described, folders: list[Path]) -> dict[int, str]:
  """The names of the classes by their numbers: of data.yaml, or of a text file in one of some folders."""
  names = described.content.get("names")
  if described.file and names:
    return yaml_names(described.file, names, described.content.get("nc"))
  found: dict[Path, list[str]] = {}
  for folder in folders:
    there = listing(folder)
    for name in [*CLASSES, *sorted(n for n in there if n.endswith(".names"))]:
      if name in there and (folder / name) not in found and not is_label(folder / name):
        text = (folder / name).read_bytes().decode("utf-8-sig", errors="replace")
        found[folder / name] = [line.strip() for line in text.splitlines() if line.strip()]
        break
  if not found:
    looked = f"names: in {described.file}" if described.file else "data.yaml"
    where = ", ".join(str(folder) for folder in folders[:4])
    raise UserError(
      f"no names of the classes: there is neither {looked} nor {', '.join(CLASSES[:2])} in {where}; write a "
      "classes.txt with one name a line, in the order of the class numbers"
    )
  first, *others = found
  for other in others:
    if found[other] != found[first]:
      raise UserError(f"{first} and {other} name other classes, or in another order: leave one that is right")
  return dict(enumerate(found[first]))


def yaml_names(file: Path, names: Any, count: Any) -> dict[int, str]:
  """The list or mapping `names` of a data.yaml."""
  if isinstance(names, list):
    names = {str(i): name for i, name in enumerate(names)}
  if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
    raise UserError(f"{file}: names must be a list of names, or number: name for each class")
  if wrong := [key for key in names if not re.fullmatch(r"\d{1,9}", key)]:
    raise UserError(
      f"{file}: names has the key {wrong[0][:40]!r}; must be the numbers of the classes, from 0"
    )
  numbers = [int(key) for key in names]
  if twice := [key for key in names if numbers.count(int(key)) > 1]:
    raise UserError(f"{file}: names has {' and '.join(twice[:3])}, which are one number; leave one of them")
  if isinstance(count, str) and count.strip() != str(len(names)):
    raise UserError(f"{file}: nc is {count[:40]}, but there are {len(names)} names; they must agree")
  return {int(key): name.strip() for key, name in names.items()}
