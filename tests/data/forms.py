"""Turns a COCO folder into other forms that people have, sharing no code with the package.

python tests/data/forms.py FORM COCO_FOLDER OUT      FORM: one of FORMS
"""

import csv
import json
import sys
from pathlib import Path
from xml.sax.saxutils import escape


def load(root):
  """{split: content} and the categories of a COCO folder, of all splits."""
  files = sorted((Path(root) / "annotations").glob("instances_*.json"))
  return {f.stem.removeprefix("instances_"): json.loads(f.read_text()) for f in files}


def boxes(coco):
  """(image, [(class name, x, y, w, h, crowd)]) of each image."""
  names = {c["id"]: c["name"] for c in coco["categories"]}
  found = {image["id"]: [] for image in coco["images"]}
  for a in coco["annotations"]:
    found[a["image_id"]].append((names[a["category_id"]], *a["bbox"], a.get("iscrowd", 0)))
  return [(image, found[image["id"]]) for image in coco["images"]]


def picture(root, split, image, folder):
  """Puts an image file into a folder, flat; returns its name there."""
  name = Path(image["file_name"]).name
  folder.mkdir(parents=True, exist_ok=True)
  target = folder / name
  if not target.exists():
    target.symlink_to((Path(root) / split / image["file_name"]).absolute())
  return name


def xml(name, image, rows, first):
  """VOC's annotation; pixels count from `first`: 1, with both corners inside the box, or 0 as in Python."""
  text = [f"<annotation>\n  <folder>x</folder>\n  <filename>{escape(name)}</filename>"]
  size = f"<width>{image['width']}</width><height>{image['height']}</height><depth>3</depth>"
  text.append(f"  <size>{size}</size>\n  <segmented>0</segmented>")
  for label, x, y, w, h, crowd in rows:
    corners = (x + first, y + first, x + w, y + h)
    box = "".join(f"<{k}>{v!r}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    text.append(
      f"  <object>\n    <name>{escape(label)}</name>\n    <pose>Unspecified</pose><truncated>0</truncated>"
      f"<difficult>{crowd}</difficult>\n    <bndbox>{box}</bndbox>\n  </object>"
    )
  return "\n".join([*text, "</annotation>\n"])


def voc(root, out, first=1):
  """As the devkit: Annotations, JPEGImages, ImageSets/Main."""
  for split, coco in load(root).items():
    stems = []
    for image, rows in boxes(coco):
      name = picture(root, split, image, out / "JPEGImages")
      stems.append(Path(name).stem)
      file = out / "Annotations" / f"{stems[-1]}.xml"
      file.parent.mkdir(exist_ok=True)
      file.write_text(xml(name, image, rows, first), encoding="utf-8")
    sets = out / "ImageSets" / "Main" / f"{split}.txt"
    sets.parent.mkdir(parents=True, exist_ok=True)
    sets.write_text("\n".join(stems) + "\n")


def voc_from_0(root, out):
  voc(root, out, first=0)


def roboflow_voc(root, out, first=1):
  """Each split's pictures and XML files in one folder."""
  for split, coco in load(root).items():
    for image, rows in boxes(coco):
      name = picture(root, split, image, out / split)
      (out / split / name).with_suffix(".xml").write_text(xml(name, image, rows, first), encoding="utf-8")
  (out / "README.roboflow.txt").write_text("made by hand\n")


def class_names(root):
  """Of all splits, in the order of their ids."""
  found = {c["id"]: c["name"] for coco in load(root).values() for c in coco["categories"]}
  return [found[i] for i in sorted(found)]


def label(image, rows, names):
  """YOLO's label file."""
  width, height = image["width"], image["height"]
  lines = [
    (names.index(name), (x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
    for name, x, y, w, h, _ in rows
  ]
  return "".join("{} {:.8f} {:.8f} {:.8f} {:.8f}\n".format(*line) for line in lines)


def short(split):
  """The key of data.yaml: of train2017 train."""
  return next((key for key in ("train", "val", "test") if key in split), split)


def yolo(root, out):
  """images/SPLIT and labels/SPLIT with a data.yaml as ultralytics' documentation has it."""
  names = class_names(root)
  for split, coco in load(root).items():
    (out / "labels" / split).mkdir(parents=True, exist_ok=True)
    for image, rows in boxes(coco):
      name = picture(root, split, image, out / "images" / split)
      if rows:
        (out / "labels" / split / name).with_suffix(".txt").write_text(label(image, rows, names))
  listed = "".join(f"  {i}: {json.dumps(name, ensure_ascii=False)}\n" for i, name in enumerate(names))
  splits = "".join(f"{short(s)}: images/{s}\n" for s in load(root))
  (out / "data.yaml").write_text(f"path: .\n{splits}names:\n{listed}", encoding="utf-8")


def roboflow_yolo(root, out):
  """SPLIT/images and SPLIT/labels, with paths in data.yaml that lead out of the folder."""
  names = class_names(root)
  for split, coco in load(root).items():
    (out / split / "labels").mkdir(parents=True, exist_ok=True)
    for image, rows in boxes(coco):
      name = picture(root, split, image, out / split / "images")
      (out / split / "labels" / name).with_suffix(".txt").write_text(label(image, rows, names))
  splits = "".join(f"{short(s)}: ../{s}/images\n" for s in load(root))
  (out / "data.yaml").write_text(f"{splits}\nnc: {len(names)}\nnames: {names!r}\n", encoding="utf-8")


def darknet(root, out):
  """Pictures and label files beside each other, lists of pictures, obj.names."""
  names = class_names(root)
  for split, coco in load(root).items():
    listed = []
    for image, rows in boxes(coco):
      name = picture(root, split, image, out / "obj_train_data")
      listed.append(f"data/obj_train_data/{name}\n")
      (out / "obj_train_data" / name).with_suffix(".txt").write_text(label(image, rows, names))
    (out / f"{split}.txt").write_text("".join(listed))
  (out / "obj.names").write_text("\n".join(names) + "\n", encoding="utf-8")


def table(file, rows):
  file.parent.mkdir(parents=True, exist_ok=True)
  with file.open("w", newline="", encoding="utf-8") as opened:
    csv.writer(opened).writerows(rows)


def tensorflow_csv(root, out):
  """SPLIT_labels.csv with a header, pictures in images/SPLIT; images without boxes are not in it."""
  for split, coco in load(root).items():
    rows = [("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")]
    for image, found in boxes(coco):
      name = picture(root, split, image, out / "images" / split)
      sizes = (image["width"], image["height"])
      rows += [(name, *sizes, label, x, y, x + w, y + h) for label, x, y, w, h, _ in found]
    table(out / "data" / f"{split}_labels.csv", rows)


def retinanet_csv(root, out):
  """SPLIT.csv without a header, classes.csv."""
  for split, coco in load(root).items():
    rows = []
    for image, found in boxes(coco):
      name = f"pictures/{split}/" + picture(root, split, image, out / "pictures" / split)
      rows += [(name, x, y, x + w, y + h, label) for label, x, y, w, h, _ in found] or [(name, *[""] * 5)]
    table(out / f"{split}.csv", rows)
  table(out / "classes.csv", [(name, i) for i, name in enumerate(class_names(root))])


def roboflow_csv(root, out):
  """SPLIT/_annotations.csv beside the pictures."""
  for split, coco in load(root).items():
    rows = [("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")]
    for image, found in boxes(coco):
      name = picture(root, split, image, out / split)
      sizes = (image["width"], image["height"])
      rows += [(name, *sizes, label, x, y, x + w, y + h) for label, x, y, w, h, _ in found]
    table(out / split / "_annotations.csv", rows)


def open_images(root, out):
  """SPLIT-annotations-bbox.csv: shares of the sides, names without suffix; class-descriptions-boxable.csv."""
  names = class_names(root)
  header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf".split(",")
  for split, coco in load(root).items():
    rows = [header]
    for image, found in boxes(coco):
      name = Path(picture(root, split, image, out / split)).stem
      width, height = image["width"], image["height"]
      for label, x, y, w, h, crowd in found:
        sides = (x / width, (x + w) / width, y / height, (y + h) / height)
        rows.append((name, "xclick", f"/m/0{names.index(label)}", 1, *sides, 0, crowd))
    table(out / f"{split}-annotations-bbox.csv", rows)
  table(out / "class-descriptions-boxable.csv", [(f"/m/0{i}", name) for i, name in enumerate(names)])


def roboflow_coco(root, out):
  """SPLIT/_annotations.coco.json beside the pictures, with a root category."""
  for split, coco in load(root).items():
    rows = [{**image, "file_name": picture(root, split, image, out / split)} for image in coco["images"]]
    top = {"id": 0, "name": "things", "supercategory": "none"}
    categories = [top, *({**c, "supercategory": "things"} for c in coco["categories"])]
    text = json.dumps({**coco, "images": rows, "categories": categories})
    (out / split / "_annotations.coco.json").write_text(text)


def cvat_coco(root, out):
  """One split: annotations/instances_default.json, pictures in images/default."""
  split, coco = next(iter(load(root).items()))
  rows = [{**i, "file_name": picture(root, split, i, out / "images" / "default")} for i in coco["images"]]
  (out / "annotations").mkdir(parents=True, exist_ok=True)
  (out / "annotations" / "instances_default.json").write_text(json.dumps({**coco, "images": rows}))


def label_studio_coco(root, out):
  """One split: result.json, whose paths are of another machine, pictures in images."""
  split, coco = next(iter(load(root).items()))
  rows = []
  for n, image in enumerate(coco["images"]):
    name = picture(root, split, image, out / "images")
    path = f"images\\{name}" if n % 2 else f"../../label-studio/data/media/upload/1/{name}"
    rows.append({**image, "file_name": path})
  (out / "result.json").write_text(json.dumps({**coco, "images": rows}))


def fiftyone_coco(root, out):
  """One split: labels.json, pictures in data."""
  split, coco = next(iter(load(root).items()))
  rows = [{**image, "file_name": picture(root, split, image, out / "data")} for image in coco["images"]]
  (out / "labels.json").write_text(json.dumps({**coco, "images": rows}))


FORMS = {  # of each the format that it is
  "voc": voc, "voc_from_0": voc_from_0, "roboflow_voc": roboflow_voc,
  "yolo": yolo, "roboflow_yolo": roboflow_yolo, "darknet": darknet,
  "tensorflow_csv": tensorflow_csv, "retinanet_csv": retinanet_csv, "roboflow_csv": roboflow_csv,
  "open_images": open_images,
  "roboflow_coco": roboflow_coco, "cvat_coco": cvat_coco, "label_studio_coco": label_studio_coco,
  "fiftyone_coco": fiftyone_coco,
}  # fmt: skip

if __name__ == "__main__":
  FORMS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
