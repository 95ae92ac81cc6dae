"""The ways in: each is run as a command, by the program's own `main`, in a forked process that is watched.

Where a way is no command by itself (reading in place, the truth of an evaluation) it is made one here, so
that what ends it is told and coded as everywhere. Predict is without its network: what that is given is seen.
"""

import gc
import importlib
import logging
import os
import pickle
import resource
import select
import shutil
import signal
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

HANG, MEMORY = 10, 2048  # seconds of processor time (three times that by the clock), MiB
FOLDERS = ("voc", "yolo", "csv", "retinanet")  # kinds that are given as one folder, not images and a file
MODULES = (
  "iou_det.paper.reproduce", "iou_det.weights.load", "iou_det.detector", "iou_det.commands.drawing",
  "tensorflow_datasets", "PIL.ImageFile", "importlib_resources")  # fmt: skip


class Came(NamedTuple):
  """A split as it came in."""

  images: list[tuple[str, int, int]]  # base name, width, height
  boxes: list[tuple]  # base name, class, x, y, w, h, crowd, area
  pixels: dict[str, Any]  # by base name; None: another size than annotated


class Outcome(NamedTuple):
  way: str
  code: int  # -N: signal N
  out: str
  errors: str
  seconds: float  # of the processor
  mib: int  # at most, in memory
  hang: bool
  came: dict[str, Came]  # by split; predict: one without boxes
  trouble: str  # when what was written was read, or what is there though refused


def prepare_server(scratch: Path) -> None:
  """Imports all that the ways use, lazily too: found by one cold run."""
  for name in MODULES:
    importlib.import_module(name)
  from iou_det.data.shapes import Shapes, export_coco

  export_coco(Shapes("train", images=2, height=64, width=96), scratch / "data")
  listed = scratch / "modules"

  def names() -> str:
    read_dataset(scratch / "made" / "d")
    in_place(scratch / "data")
    listed.write_text("\n".join(sys.modules))
    return ""

  argv = ["--name=d", "--split=train", f"--data_dir={scratch / 'made'}", f"--images={scratch / 'data/train'}"]
  argv.append(f"--annotations={scratch / 'data/annotations/instances_train.json'}")
  done = run("prepare", ["prepare", *argv], lambda: ({}, names()), scratch)
  assert done.code == 0 and listed.exists(), done.errors + done.trouble
  for name in listed.read_text().split("\n"):
    if not name.startswith("iou_det.commands") and name not in sys.modules:  # commands define global flags
      importlib.import_module(name)
  gc.collect()
  gc.freeze()


def run(
  way: str,
  argv: list[str],
  after: Callable[[], tuple[dict[str, Came], str]],
  scratch: Path,
  before: Callable[[], None] = lambda: None,
) -> Outcome:
  """Runs a command; `after`, in the same process, says what came of it."""
  files = [scratch / f"{way}.{kind}" for kind in ("out", "errors", "came")]
  for path in files:
    path.unlink(missing_ok=True)
  sys.stdout.flush()
  sys.stderr.flush()
  pid = os.fork()
  if pid == 0:
    _child(argv, after, before, files)
  hang = False
  watched = os.pidfd_open(pid)
  if not select.select([watched], [], [], 3 * HANG)[0]:
    hang = True
    os.kill(pid, signal.SIGKILL)
  os.close(watched)
  _, status, used = os.wait4(pid, 0)
  code, seconds = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
  out, errors = (path.read_text(errors="backslashreplace") if path.exists() else "" for path in files[:2])
  came, trouble = pickle.loads(files[2].read_bytes()) if files[2].exists() else ({}, "")
  hang |= code == -signal.SIGXCPU
  return Outcome(way, code, out, errors, seconds, used.ru_maxrss // 1024, hang, came, trouble)


def _child(argv: list[str], after: Callable, before: Callable, files: list[Path]) -> None:
  """Does not return."""
  code = 1
  try:
    for number, path in enumerate(["/dev/null", *files[:2]]):
      os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), number)
    resource.setrlimit(resource.RLIMIT_CPU, (HANG, HANG + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + 2 * MEMORY * 2**20  # for the machine's sake: what is counted is memory that is used
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    logging.root.handlers.clear()  # imports added one that a command would not have
    before()
    from iou_det.cli import main

    try:
      main(argv)
      code = 0
    except SystemExit as end:
      code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
      came = after()
    except BaseException:
      came = {}, traceback.format_exc()
    files[2].write_bytes(pickle.dumps(came))
  finally:
    os._exit(code)


def prepare(folder: Path, kind: str, scratch: Path, *, skip_bad: bool = False) -> Outcome:
  """Of images and an annotation file the split train; of a folder all splits."""
  made = scratch / "made"
  shutil.rmtree(made, ignore_errors=True)
  argv = ["prepare", "--name=d", f"--data_dir={made}"] + ["--skip_bad"] * skip_bad
  if kind not in FOLDERS:
    annotations = folder / "annotations" / "instances_train.json"
    argv += ["--split=train", f"--images={folder / 'train'}", f"--annotations={annotations}"]
  else:
    argv += [f"--data={folder}"]

  def after() -> tuple[dict[str, Came], str]:
    there = [p.name for p in made.rglob("*") if p.is_file()] if made.exists() else []
    if "dataset_info.json" in there:
      return read_dataset(made / "d"), "".join(f"left: {n}" for n in there if n.endswith(".part"))
    return {}, ""

  return run("skip_bad" if skip_bad else "prepare", argv, after, scratch)


def read_dataset(path: Path) -> dict[str, Came]:
  from iou_det.data import format_of, open_dataset

  return {split: came(open_dataset(path, split), decode=True) for split in format_of(path).splits(path)}


def came(source: Any, *, decode: bool) -> Came:
  from iou_det.data.pipeline import decode_image

  a = source.annotations
  base = [name.rsplit("/", 1)[-1] for name in a.file_name]
  names = [c.name for c in source.categories]
  rows = zip(a.image_of_box(), a.label, a.bbox.tolist(), a.crowd.tolist(), a.area.tolist(), strict=True)
  boxes = [(base[i], names[label], *box, crowd, area) for i, label, box, crowd, area in rows]
  images = list(zip(base, a.width.tolist(), a.height.tolist(), strict=True))
  return Came(images, boxes, {base[i]: decode_image(source[i]) for i in range(len(source)) if decode})


def command(name: str, main: Callable[[], None]) -> None:
  from iou_det import cli

  cli.COMMANDS[name] = "as the tests need it"
  sys.modules[f"iou_det.commands.{name}"] = types.SimpleNamespace(main=main, __doc__="")  # type: ignore


def in_place(folder: Path) -> dict[str, Came]:
  """All splits opened, scanned, and every picture in a batch."""
  from iou_det.config import base_config
  from iou_det.data import format_of, open_dataset
  from iou_det.data.pipeline import eval_batches
  from iou_det.data.plan import TrainingFilter, scan

  data = base_config().data
  data.update(short=64, long=96, canvas=(64, 96), max_boxes=100, threads=1)
  result = {}
  for split in format_of(folder).splits(folder):
    source = open_dataset(folder, split)
    read = came(source, decode=False)
    scan(source, TrainingFilter(1, 0.0, True))  # nothing is too small, so that there is something to train on
    for batch, _ in eval_batches(source, data, 2, (0, 1)):
      sizes = zip(batch["image"], batch["index"], batch["image_size"], batch["original_size"], strict=True)
      for pixels, i, (height, width), original in sizes:
        shrunk = (height, width) != tuple(original)
        read.pixels[read.images[i][0]] = None if shrunk else pixels[:height, :width].copy()
    result[split] = read
  return result


def place(folder: Path, scratch: Path) -> Outcome:
  read: dict[str, Came] = {}
  before = lambda: command("place", lambda: read.update(in_place(folder)))
  return run("place", ["place"], lambda: (read, ""), scratch, before)


def truth(clean: Any, file: Path, scratch: Path) -> Outcome:
  """A file as the truth for a source that is in order."""
  read: dict[str, Came] = {}

  def main() -> None:
    from iou_det.evaluation.truth import ground_truth

    content = ground_truth(clean, str(file))
    images = {
      r["id"]: (r["file_name"].rsplit("/", 1)[-1], r["width"], r["height"]) for r in content["images"]
    }
    names = {r["id"]: r["name"] for r in content["categories"]}
    boxes = [
      (images[r["image_id"]][0], names[r["category_id"]], *r["bbox"], bool(r["iscrowd"]), r["area"])
      for r in content["annotations"]
    ]
    read["train"] = Came(list(images.values()), boxes, {})

  return run("truth", ["truth"], lambda: (read, ""), scratch, lambda: command("truth", main))


def predict(images: Path, scratch: Path) -> Outcome:
  """All but the network: what it is given comes out as the pictures that are written."""
  out = scratch / "predicted"
  shutil.rmtree(out, ignore_errors=True)

  def after() -> tuple[dict[str, Came], str]:
    pixels = {}
    for path in sorted(out.glob("[0-9]*_*.png")):
      with Image.open(path) as picture:
        pixels[path.stem.split("_", 1)[1]] = np.asarray(picture.convert("RGB"))
    sizes = [(name, p.shape[1], p.shape[0]) for name, p in pixels.items()]
    return {"pictures": Came(sizes, [], pixels)}, ""

  argv = ["predict", f"--workdir={scratch}", f"--out={out}", str(images)]
  return run("predict", argv, after, scratch, without_network)


def without_network() -> None:
  import jax
  from ml_collections import ConfigDict

  from iou_det import detector
  from iou_det.commands import drawing
  from iou_det.config import base_config
  from iou_det.data.source import Category
  from iou_det.ops.detection import Detections
  from iou_det.weights import load

  def step(variables: Any, batch: dict[str, np.ndarray], portrait: bool) -> Detections:
    n = len(batch["image"])
    shapes = {"boxes": ((n, 1, 4), np.float32), "scores": ((n, 1), np.float32)}
    shapes |= {"labels": ((n, 1), np.int32), "valid": ((n, 1), bool)}
    return Detections(**{name: np.zeros(*shapes[name]) for name in Detections._fields})

  def load_detector(*args: Any, **options: Any) -> Any:
    config: ConfigDict = base_config()
    config.data.update(short=64, long=96, canvas=(64, 96), threads=1)
    mesh: Any = types.SimpleNamespace(size=1)
    blind = detector.Detector(config, None, mesh, (Category(1, "cat"),), {})  # type: ignore[arg-type]
    blind.__dict__["step"] = step
    return blind

  jax.process_count = lambda: 1  # each of these would start JAX
  jax.process_index = lambda: 0
  detector.to_device = lambda batch, mesh: batch  # type: ignore[assignment]
  load.load_detector = load_detector  # type: ignore[assignment]
  drawing.draw_detections = lambda image, *rest, **options: image  # type: ignore[assignment]
