"""How long and how much memory a data set of Open Images' size takes: prepared, and opened for training.

  python -m tests.data.large --out=DIR [--images=1700000 --boxes=15000000]

Makes a COCO folder (64 small JPEG files under many names), prepares it by `iou-det prepare`, and opens what
was written on one core: the data, the plan, the first batch. Prints one JSON line for each, with the peak of
resident memory. Needs about 10 GB of disk; the folder is left for another run.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

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
import itertools, sys, time
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
  args = parser.parse_args()
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
