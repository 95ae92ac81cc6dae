"""Whether a run is finished; its detections without a threshold, before NMS, on COCO's test-dev."""

import contextlib
import json
import zipfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from iou_det import config as config_lib
from iou_det.data import Reading, open_dataset
from iou_det.data.files import Files, find_files
from iou_det.data.source import Source, from_rows
from iou_det.errors import UserError
from iou_det.evaluation.overlap import save_candidates
from iou_det.evaluation.results import Results
from iou_det.processes import by_process_0
from iou_det.storage import AnyPath, whole_file
from iou_det.weights.load import load_detector


def finished(config: ConfigDict, workdir: AnyPath) -> bool:
  """Whether a workdir has this config, was trained to its last epoch, and scored there."""
  if not (workdir / "config.json").exists():
    return False
  try:
    results = Results.read(workdir)
  except FileNotFoundError:
    return False
  if config_lib.training_differences(results.config, config):
    return False  # training there says what differs
  last = results.training[-1] if results.training else {"epoch": 0, "step": 0}
  return last["epoch"] >= config.train.epochs and results.metrics["step"] == last["step"]


NO_THRESHOLD = "threshold0"  # the variant, see `Results.read`


def score_without_threshold(workdir: AnyPath) -> None:
  """Scores a run's last checkpoint with a score threshold of 0, unless that was done before.

  This, `find_candidates` and `test_dev` are for all processes: they detect together, process 0 says whether.
  """

  def wanted() -> int | None:
    step = Results.read(workdir).metrics["step"]
    with contextlib.suppress(FileNotFoundError):  # not done yet
      return None if Results.read(workdir, NO_THRESHOLD).metrics["step"] == step else step
    return step

  step = by_process_0(wanted)
  if step is None:
    return
  detector = load_detector(workdir, str(step))
  detector.config.eval.score_threshold = 0.0
  d, backend = detector.config.data, detector.config.eval.backend  # which scored the run itself
  scored = detector.evaluate(
    open_dataset(d.path, d.val_split, Reading.of(d)), d.val_annotations, backend=backend
  )
  scored.write(
    workdir / "eval" / f"{d.val_split}_{NO_THRESHOLD}", step=detector.trained_steps, split=d.val_split
  )


def find_candidates(workdir: AnyPath, split: str = "") -> None:
  """Makes the file of all that entered a run's hard NMS, if it is not there or older than its scores."""

  def wanted() -> int | None:
    results = Results.read(workdir, split=split)
    done = results.config.eval.nms != "hard" or results.older_than(results.candidates)
    return None if done else results.metrics["step"]

  step = by_process_0(wanted)
  if step is None:
    return
  detector = load_detector(workdir, str(step))
  config = detector.config
  m, e, d = config.model, config.eval, config.data
  every = (m.max_level - m.min_level + 1) * e.candidates_per_level * len(detector.categories)
  every *= len(config_lib.evaluation_views(config))
  e.update(nms="none", max_detections=every)
  found = detector.detect(open_dataset(d.path, split or d.val_split, Reading.of(d)))
  by_process_0(lambda: save_candidates(Results.read(workdir, split=split).candidates, found))


class NoTestDev(UserError):
  """The images are not there; raised in all processes, so that all can go on."""


def test_dev(workdir: AnyPath, root: Path, name: str, out: AnyPath) -> AnyPath:
  """Detects on test-dev2017 and writes what COCO's evaluation server takes: a zip with one JSON file in it.

  A zip that is there and newer than the run's scores stays as it is. `name` is the method's, as the server
  wants it in the file's name; `root` is the COCO folder.
  """
  stem = f"detections_test-dev2017_{name}_results"
  path, images = out / f"{stem}.zip", root / "test2017"

  def wanted() -> dict[str, Any] | None:
    results = Results.read(workdir)
    if results.older_than(path):
      return None
    try:
      return {"step": results.metrics["step"], "images": listed_images(root)}
    except UserError as error:
      return {"error": str(error)}

  todo = by_process_0(wanted)
  if todo is None:
    return path
  if "error" in todo:
    raise NoTestDev(todo["error"])
  detector = load_detector(workdir, str(todo["step"]))
  annotations = from_rows(todo["images"], [[] for _ in todo["images"]])
  read = Files(images, annotations.file_name).read
  found = detector.detect(Source("test-dev2017", detector.categories, annotations, read))

  def write() -> None:
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as whole, zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as file:
      with file.open(f"{stem}.json", "w") as inside:
        inside.writelines(found.as_json())

  by_process_0(write)
  return path


def listed_images(root: Path) -> list[tuple[int, str, int, int]]:
  """Id, file name, height and width of test-dev2017's images in a COCO folder, which has them all."""
  listed, images = root / "annotations" / "image_info_test-dev2017.json", root / "test2017"
  if not listed.is_file() or not images.is_dir():
    raise UserError(
      f"test-dev results need {listed} and {images}; get both from cocodataset.org, then the same command "
      "goes on from here"
    )
  try:
    described = json.loads(listed.read_text(encoding="utf-8"))["images"]
    rows = [(i["id"], i["file_name"], i["height"], i["width"]) for i in described]
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{listed} is no list of COCO images ({error}); get it again") from None
  if missing := find_files([row[1] for row in rows], [images]).missing:
    names = ", ".join(rows[i][1] for i in list(missing)[:5])
    raise UserError(f"{len(missing)} images of {listed} are missing in {images}: {names}, ...")
  return rows
