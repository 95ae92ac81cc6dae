"""A small data set in each format, and what tools and disks make of its annotation files.

Six pictures in two splits, three classes, two boxes each. One file is mutated one to three times: first as
the tree it is (COCO), then as text, then as bytes.
"""

import copy
import functools
import importlib.util
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.mutations import pictures
from tests.mutations.texts import BYTES, OF_SUFFIX, TEXT

SPLITS = ["train", "val"]
NAMES = ("cat", "dog", "red bird")
KINDS = ("coco", "voc", "yolo", "csv", "retinanet")
RAW = "@raw@"  # texts that begin with it are written without quotes


def is_there(kind: str) -> bool:
  """Whether the package reads the format."""
  module = {"voc": "voc", "yolo": "yolo", "csv": "csv", "retinanet": "csv"}.get(kind, "coco")
  return importlib.util.find_spec(f"iou_det.data.{module}") is not None


@functools.cache
def png(seed: int) -> bytes:
  file = io.BytesIO()
  pictures.scene(seed).save(file, "PNG")
  return file.getvalue()


def scenes() -> dict[str, dict[str, list[tuple[str, int, int, int, int]]]]:
  """Of each split and picture the boxes: class, x1, y1, x2, y2."""
  rng = random.Random(7)
  found: dict = {"train": {}, "val": {}}
  for i in range(6):
    boxes = []
    for k in range(2):
      x, y, w, h = rng.randint(1, 30), rng.randint(1, 20), rng.randint(8, 30), rng.randint(8, 25)
      boxes.append((NAMES[(i + k) % 3], x, y, x + w, y + h))
    found["train" if i < 4 else "val"][f"im{i}.png"] = boxes
  return found


def put(folder: Path, files: dict[str, bytes]) -> None:
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def coco_content(split: str) -> dict[str, Any]:
  images, boxes = [], []
  for i, (name, of_image) in enumerate(scenes()[split].items(), 1):
    images.append({"id": i, "file_name": name, "width": 64, "height": 48})
    for label, x1, y1, x2, y2 in of_image:
      box = [x1 + 0.25, float(y1), x2 - x1 - 0.5, y2 - y1]
      boxes.append({
        "id": len(boxes) + 1, "image_id": i, "category_id": NAMES.index(label) + 1, "bbox": box,
        "area": box[2] * box[3], "iscrowd": 0, "segmentation": [[x1, y1, x2, y1, x2, y2]]})  # fmt: skip
  categories = [{"id": i, "name": n, "supercategory": "thing"} for i, n in enumerate(NAMES, 1)]
  return {"info": {"year": 2024}, "images": images, "annotations": boxes, "categories": categories}


def voc_text(name: str, boxes: list[tuple[str, int, int, int, int]]) -> str:
  objects = "".join(
    f"  <object>\n    <name>{label}</name>\n    <pose>Unspecified</pose>\n    <truncated>0</truncated>\n"
    f"    <difficult>0</difficult>\n    <bndbox>\n      <xmin>{x1 + 1}</xmin>\n      <ymin>{y1 + 1}</ymin>\n"
    f"      <xmax>{x2}</xmax>\n      <ymax>{y2}</ymax>\n    </bndbox>\n  </object>\n"
    for label, x1, y1, x2, y2 in boxes
  )
  size = "  <size>\n    <width>64</width>\n    <height>48</height>\n    <depth>3</depth>\n  </size>\n"
  return (
    f"<annotation>\n  <folder>JPEGImages</folder>\n  <filename>{name}</filename>\n{size}"
    f"  <segmented>0</segmented>\n{objects}</annotation>\n"
  )


def files_of(kind: str) -> dict[str, bytes]:
  """A data set that is in order, by path in its folder."""
  files: dict[str, bytes] = {}
  where = {"coco": "{s}/{n}", "voc": "JPEGImages/{n}", "yolo": "images/{s}/{n}"}.get(kind, "images/{n}")
  for split, images in scenes().items():
    for name in images:
      files[where.format(s=split, n=name)] = png(int(name[2]))
    stems = [name.removesuffix(".png") for name in images]
    if kind == "coco":
      files[f"annotations/instances_{split}.json"] = json.dumps(coco_content(split)).encode()
    elif kind == "voc":
      files |= {f"Annotations/{n[:-4]}.xml": voc_text(n, b).encode() for n, b in images.items()}
      files[f"ImageSets/Main/{split}.txt"] = "".join(f"{stem}\n" for stem in stems).encode()
    elif kind == "yolo":
      for name, boxes in images.items():
        rows = [
          f"{NAMES.index(n)} {(a + c) / 128} {(b + d) / 96} {(c - a) / 64} {(d - b) / 48}\n"
          for n, a, b, c, d in boxes
        ]
        files[f"labels/{split}/{name[:-4]}.txt"] = "".join(rows).encode()
      files["data.yaml"] = yaml_text().encode()
    else:
      rows = ["filename,width,height,class,xmin,ymin,xmax,ymax\n"] if kind == "csv" else []
      for name, boxes in images.items():
        for label, *box in boxes:
          corners = ",".join(map(str, box))
          rows.append(
            f"{name},64,48,{label},{corners}\n" if kind == "csv" else f"images/{name},{corners},{label}\n"
          )
      files[f"{split}_labels.csv" if kind == "csv" else f"{split}.csv"] = "".join(rows).encode()
  if kind == "retinanet":
    files["classes.csv"] = "".join(f"{name},{i}\n" for i, name in enumerate(NAMES)).encode()
  return files


def yaml_text() -> str:
  names = "".join(f"  {i}: {name}\n" for i, name in enumerate(NAMES))
  return f"path: .\ntrain: images/train\nval: images/val\nnc: 3\nnames:\n{names}"


def mutable(kind: str, path: str) -> bool:
  """The files that may be hit: of COCO the training split's, which all ways read."""
  if path.endswith(".png"):
    return False
  return kind != "coco" or "train" in path


def clean_source(folder: Path) -> Any:
  from iou_det.data import open_dataset

  put(folder, files_of("coco"))
  return open_dataset(folder, "train")


def write(folder: Path, kind: str, rng: random.Random) -> list[str]:
  """A data set with one mutated file; what was done to it."""
  files = files_of(kind)
  path = rng.choice([p for p in files if mutable(kind, p)])
  done = [path]
  number = rng.choice([1, 1, 1, 2, 3]) if rng.random() > 0.03 else 0
  levels = sorted(rng.choices([0, 1, 2], weights=[6, 3, 2] if kind == "coco" else [0, 6, 2], k=number))
  if 0 in levels:
    content = json.loads(files[path])
    for _ in range(levels.count(0)):
      mutation = rng.choice(TREE)
      done.append(mutation.__name__)
      with_luck(lambda mutation=mutation: mutation(content, rng))
    files[path] = in_json(content, rng).encode("utf-8", "surrogatepass")
  text = files[path].decode("utf-8", "surrogatepass")
  for _ in range(levels.count(1)):
    mutation = rng.choice(TEXT + OF_SUFFIX.get(Path(path).suffix, ()) * 2)
    done.append(mutation.__name__)
    text = mutation(text, rng) if text else text
  data = text.encode("utf-8", "surrogatepass")
  for _ in range(levels.count(2)):
    mutation = rng.choice(BYTES)
    done.append(mutation.__name__)
    data = mutation(data, rng) if data else data
  put(folder, files | {path: data})
  return done


def with_luck(change: Callable[[], Any]) -> None:
  """An earlier mutation may have taken away what this one changes."""
  try:
    change()
  except (KeyError, IndexError, TypeError, AttributeError, ValueError):
    pass


# Trees: a COCO file's content.

NUMBERS: tuple[Any, ...] = (
  0, -1, 1, 2, 3, 1.0, 2.0, 1.5, -0.0, 7.25, 63, 64, 65, 1e-9, 1e6, 1e15, 1e308, -1e308, 5e-324, 2**31,
  2**53 + 1,
  2**63, 2**64, -(2**63), float("nan"), float("inf"), float("-inf"), RAW + "1e999", RAW + "1" + "0" * 400,
  RAW + "9" * 5000, RAW + "-0", RAW + "0.1e-400", RAW + "1E2", RAW + "007", RAW + "0x10", RAW + "+5",
  RAW + ".5", RAW + "1_000", RAW + "१२")  # fmt: skip
TEXTS: tuple[str, ...] = (
  "", " ", "1", "2", "1.0", "NaN", "null", "abc", "im0.png", "im1.png", "IM0.PNG", "./im0.png",
  "train/im0.png", "x.png",
  "../val/im4.png", "../../../etc/passwd", "/etc/passwd", "C:\\data\\im0.png", "im0.png\n", "a\nb", "a\x00b",
  "\x1b[31mred",
  "é", "红细胞", "\U0001f600", "\u202egnp", "\ud800", "cat", " dog ", "http://localhost/im0.png", "a" * 5000,
  "%s{0}")  # fmt: skip
OTHERS: tuple[Any, ...] = (
  None, True, False, [], {}, [1], [[1, 2, 3, 4]], {"a": 1}, [None] * 4, ["1", "2", "3", "4"], {"x": 1,
  "y": 2},
  RAW + "[" * 200 + "]" * 200, RAW + "[" * 100000 + "]" * 100000, RAW + '{"a":' * 3000 + "1" + "}" * 3000,
  RAW + "[" * 100000, RAW + "[" + "0," * 50000 + "0]")  # fmt: skip
WEIRD = NUMBERS + TEXTS + OTHERS


def in_json(content: Any, rng: random.Random) -> str:
  text = json.dumps(content, indent=rng.choice([None, None, 1]), ensure_ascii=rng.random() < 0.7)
  return re.sub(f'"{RAW}((?:[^"\\\\]|\\\\.)*)"', lambda m: m[1].encode().decode("unicode_escape"), text)


def row_of(content: Any, rng: random.Random) -> dict:
  return rng.choice(content[rng.choice(["images", "annotations", "annotations", "categories"])])


def any_value(content: Any, rng: random.Random) -> None:
  row = row_of(content, rng)
  row[rng.choice(list(row))] = copy.deepcopy(rng.choice(WEIRD))


def number(content: Any, rng: random.Random) -> None:
  row = row_of(content, rng)
  row[rng.choice([k for k, v in row.items() if isinstance(v, (int, float))])] = rng.choice(NUMBERS)


def box_number(content: Any, rng: random.Random) -> None:
  plain = [rng.uniform(-10, 70), rng.randint(0, 40), round(rng.uniform(0, 40), 2)]
  box = rng.choice(content["annotations"])["bbox"]
  box[rng.randrange(len(box))] = rng.choice([*plain, *plain, *plain, rng.choice(WEIRD), rng.choice(NUMBERS)])


def box_shape(content: Any, rng: random.Random) -> None:
  row = rng.choice(content["annotations"])
  x, y, w, h = row["bbox"]
  shapes = [[], [x, y, w], [x, y, w, h, 0], [[x, y, w, h]], [x, y, x + w, y + h], [x, y, -w, h], [x, y, 0, 0],
            [x, y, 0, h], {"x": x, "y": y, "width": w, "height": h}, f"{x},{y},{w},{h}", [x, y, w, None],
            None,
            [str(v) for v in (x, y, w, h)], [True, False, True, True], [x, y, w, [h]], [0, 0, 64,
            48]]  # fmt: skip
  row["bbox"] = rng.choice(shapes)


def lose_key(content: Any, rng: random.Random) -> None:
  row = rng.choice([content, row_of(content, rng), row_of(content, rng), row_of(content, rng)])
  del row[rng.choice(list(row))]


def lose_key_everywhere(content: Any, rng: random.Random) -> None:
  rows = content[rng.choice(["images", "annotations", "categories"])]
  key = rng.choice(list(rows[0]))
  for row in rows:
    del row[key]


def convert_everywhere(content: Any, rng: random.Random) -> None:
  """As pandas, or a database, writes a column."""
  rows = content[rng.choice(["images", "annotations", "categories"])]
  key = rng.choice(
    ["id", "image_id", "category_id", "width", "height", "iscrowd", "area", "file_name", "name"]
  )
  convert = rng.choice(
    [float, str, lambda v: None, lambda v: [v], lambda v: -1, lambda v: f"f{v}", lambda v: v + 0.5]
  )
  for row in rows:
    row[key] = convert(row[key])
  if key == "id" and rows is content["images"] and rng.random() < 0.7:
    for row in content["annotations"]:
      row["image_id"] = convert(row["image_id"])


def swap_id(content: Any, rng: random.Random) -> None:
  """Of an image, a category or an annotation, given twice, unknown, or another that is known."""
  name, key = rng.choice([("images", "id"), ("annotations", "image_id"), ("annotations", "category_id"),
                          ("categories", "id"), ("annotations", "id"), ("images", "file_name"),
                          ("categories", "name")])  # fmt: skip
  one, other = rng.choices(content[name], k=2)
  one[key] = rng.choice([other[key], other[key], 99, 0, -7, 10**12])


def rows_again(content: Any, rng: random.Random) -> None:
  rows = content[rng.choice(["images", "annotations", "categories"])]
  rows.insert(rng.randrange(len(rows) + 1), copy.deepcopy(rng.choice(rows)))


def lose_row(content: Any, rng: random.Random) -> None:
  rows = content[rng.choice(["images", "annotations", "categories"])]
  del rows[rng.randrange(len(rows))]


def garbage_row(content: Any, rng: random.Random) -> None:
  rows = content[rng.choice(["images", "annotations", "categories"])]
  rows.insert(rng.randrange(len(rows) + 1), copy.deepcopy(rng.choice(WEIRD)))


def whole_list(content: Any, rng: random.Random) -> None:
  key = rng.choice(["images", "annotations", "categories", "info"])
  nested = {"0": content[key]}
  content[key] = rng.choice(
    [[], {}, None, nested, [content[key]], json.dumps(content[key])[:50], rng.choice(WEIRD)]
  )


def root_category(content: Any, rng: random.Random) -> None:
  """Roboflow's: nothing has it, and it may have the name of a class."""
  root = {"id": rng.choice([0, 0, 4]), "name": rng.choice(["things", "cat"]), "supercategory": "none"}
  for row in content["categories"]:
    row["supercategory"] = root["name"]
  content["categories"].insert(0, root)


def renumber(content: Any, rng: random.Random) -> None:
  name, key, other = rng.choice([("images", "id", "image_id"), ("categories", "id", "category_id")])
  change = rng.choice(
    [lambda i: i - 1, lambda i: 5 - i, lambda i: i + 2**40, lambda i: -i, lambda i: i * 1000]
  )
  for row in content[name]:
    row[key] = change(row[key])
  for row in content["annotations"]:
    row[other] = change(row[other])


def extra_key(content: Any, rng: random.Random) -> None:
  row = rng.choice([content, row_of(content, rng)])
  key = rng.choice(
    ["attributes", "score", "segmentation", "width", "", "ID", "bbox ", "iscrowd", "ignore", "é"]
  )
  row[key] = copy.deepcopy(rng.choice(WEIRD))


TREE: tuple[Callable[[Any, random.Random], None], ...] = (
  any_value, any_value, number, number, box_number, box_number, box_number, box_number, box_number,
  box_shape, lose_key,
  lose_key_everywhere,
  convert_everywhere, convert_everywhere, swap_id, swap_id, rows_again, lose_row, garbage_row, whole_list,
  root_category, renumber, extra_key)  # fmt: skip
