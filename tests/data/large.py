"""How long and how much memory a data set of Open Images' size takes: prepared, and opened for training.

  python -m tests.data.large --out=DIR [--images=1700000 --boxes=15000000]
  python -m tests.data.large --out=DIR --reader

Makes a COCO folder (64 small JPEG files under many names), prepares it by `iou-det prepare`, and opens what
was written on one core: the data, the plan, the first batch. Prints one JSON line for each, with the peak of
resident memory. Needs about 10 GB of disk; the folder is left for another run.

With --reader: the processor time that annotations of COCO's size take, as COCO writes them, with other
numbers, and by pycocotools; in turn, the least of three.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from pycocotools.coco import COCO

from iou_det.data.coco import read_coco

FILES, CLASSES, CHUNK = 64, 600, 100_000


def make(root: Path, images: int, boxes: int) -> None:
  """A COCO folder; boxes are written in pieces, so that this needs little memory."""
  rng = np.random.default_rng(0)
  (root / "train").mkdir(parents=True)
  (root / "annotations").mkdir()
  sizes = [(48, 64) if k % 4 else (64, 48) for k in range(FILES)]
  for k, (height, width) in enumerate(sizes):
    pixels = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    cv2.imwrite(str(root / f"{k}.jpg"), cv2.resize(pixels, (width, height)))
  row = lambda i: (
    {"id": i, "file_name": f"{i:016x}.jpg"} | dict(zip(("height", "width"), sizes[i % FILES], strict=True))
  )
  for i in range(images):
    os.link(root / f"{i % FILES}.jpg", root / "train" / f"{i:016x}.jpg")
  with (root / "annotations" / "instances_train.json").open("w") as file:
    file.write(
      '{"categories": ' + json.dumps([{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)])
    )
    file.write(', "images": [' + ", ".join(json.dumps(row(i)) for i in range(images)) + '], "annotations": [')
    for start in range(0, boxes, CHUNK):
      n = min(CHUNK, boxes - start)
      x, y, w, h = (rng.integers(1, top, n).tolist() for top in (20, 20, 28, 28))
      of, kinds = rng.integers(0, images, n).tolist(), rng.integers(1, CLASSES + 1, n).tolist()
      rows = (
        f'{{"id": {start + i + 1}, "image_id": {of[i]}, "category_id": {kinds[i]}, '
        f'"bbox": [{x[i]}, {y[i]}, {w[i]}, {h[i]}], "area": {w[i] * h[i]}, "iscrowd": 0}}'
        for i in range(n)
      )
      file.write((", " if start else "") + ", ".join(rows))
    file.write("]}")


OPEN = """
import sys, time
from iou_det.config import base_config
from iou_det.data import open_dataset
from iou_det.data.pipeline import train_batches
from iou_det.data.plan import make_plan
started = time.monotonic()
config = base_config()
config.data.update(path=sys.argv[1], short=64, long=64, canvas=(64, 64), max_boxes=200, min_image_side=1)
source = open_dataset(config.data.path, "train")
plan = make_plan(source, config)
batch, _ = next(iter(train_batches(source, plan, config.data, range(1), (0, 1))))
assert batch["image"].shape == (16, 64, 64, 3) and batch["valid"].any()
print("seconds", time.monotonic() - started)
"""


def readers(file: Path) -> dict:
  """Seconds of processor time, of 50,000 images with 750,000 boxes."""
  rng = np.random.default_rng(0)
  images = [{"id": i, "file_name": f"{i:012}.jpg", "height": 480, "width": 640} for i in range(50_000)]
  boxes = np.round(rng.uniform(1, 200, (750_000, 4)), 2).tolist()
  of, kinds = rng.integers(0, len(images), len(boxes)).tolist(), rng.integers(1, 81, len(boxes)).tolist()
  rows = [
    {"id": i, "image_id": of[i], "category_id": kinds[i], "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    | {"segmentation": [[box[0], box[1], box[0] + box[2], box[1], box[0], box[1] + box[3]]]}
    for i, box in enumerate(boxes, 1)
  ]
  categories = [{"id": k, "name": f"class {k}"} for k in range(1, 81)]
  content = json.dumps({"images": images, "annotations": rows, "categories": categories})
  other = file.with_name("other.json")
  file.write_text(content)
  other.write_text(content.replace('"width": 640', '"width": 640.0'))
  ways = {
    "ours": lambda: read_coco(file),
    "ours, whole numbers as 640.0": lambda: read_coco(other),
    "pycocotools": lambda: COCO(file),
  }
  least = dict.fromkeys(ways, float("inf"))
  for _ in range(3):
    for name, read in ways.items():
      started = time.process_time()
      with contextlib.redirect_stdout(None):
        read()
      least[name] = min(least[name], round(time.process_time() - started, 2))
  return {"what": "reading annotations, seconds of processor time"} | least


def timed(command: list[str]) -> dict:
  """Runs a command; wall seconds and the peak of its resident memory, of it alone."""
  code = (
    "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
  )
  started = time.monotonic()
  done = subprocess.run([sys.executable, "-c", code, *command], stdout=subprocess.PIPE, text=True, check=True)
  *said, peak = done.stdout.strip().splitlines()
  return {"seconds": round(time.monotonic() - started, 1), "peak_gb": int(peak) * 1024 / 1e9, "said": said}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument("--images", type=int, default=1_700_000)
  parser.add_argument("--boxes", type=int, default=15_000_000)
  parser.add_argument("--reader", action="store_true")
  args = parser.parse_args()
  if args.reader:
    args.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(readers(args.out / "annotations.json")))
    return
  folder, data_dir = args.out / "coco", args.out / "prepared"
  if not folder.exists():
    make(folder, args.images, args.boxes)
  if not data_dir.exists():
    command = "from iou_det.cli import main; main()"
    flags = [f"--data={folder}", "--name=large", f"--data_dir={data_dir}"]
    got = timed([sys.executable, "-c", command, "prepare", *flags])
    print(json.dumps({"what": "prepare", "images": args.images, "boxes": args.boxes} | got), flush=True)
  core = min(os.sched_getaffinity(0))
  got = timed(["taskset", "-c", str(core), sys.executable, "-c", OPEN, str(data_dir / "large")])
  print(json.dumps({"what": "open, plan, first batch; one core"} | got))


if __name__ == "__main__":
  main()
