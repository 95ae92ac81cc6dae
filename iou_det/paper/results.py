"""What a finished run left in its workdir; its detections with soft-NMS, before NMS, on COCO's test-dev."""

import contextlib
import functools
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from iou_det import config as config_lib
from iou_det.data import open_dataset
from iou_det.data.coco import missing_images
from iou_det.data.source import from_files, from_rows, list_problems
from iou_det.detector import ground_truth
from iou_det.errors import UserError
from iou_det.evaluation.overlap import save_candidates
from iou_det.storage import AnyPath, modified, read_json, whole_file
from iou_det.weights.load import load_detector
from iou_det.workdir.metrics import read_metrics
from iou_det.workdir.run import read_config


@dataclass(frozen=True)
class Results:
  """A run's config, log and scores."""

  workdir: AnyPath
  folder: AnyPath  # with detections.json and metrics.json
  config: ConfigDict
  metrics: dict[str, Any]
  rows: list[dict[str, Any]]  # of metrics.jsonl

  @classmethod
  def read(cls, workdir: AnyPath, variant: str = "") -> "Results":
    """Of the run's own val split; `variant`: of eval/SPLIT_VARIANT, detections made in another way.

    A FileNotFoundError says that it has not been scored.
    """
    config = read_config(workdir)
    folder = workdir / "eval" / (config.data.val_split + (f"_{variant}" if variant else ""))
    metrics = read_json(folder / "metrics.json", "run iou-det eval again")
    return cls(workdir, folder, config, metrics, read_metrics(workdir / "metrics.jsonl"))

  def detections(self) -> list[dict[str, Any]]:
    """COCO results."""
    return read_json(self.folder / "detections.json", "run iou-det eval again")

  @property
  def truth(self) -> dict[str, Any]:
    """What the run was scored against, as COCO annotations."""
    d = self.config.data
    return read_truth(d.path, d.val_split, d.val_annotations)

  def figure(self, name: str) -> float | None:
    """AP, AP75, APs, ... or AP at any of the ten IoUs (AP60), in percent; None where there is none."""
    value = self.metrics[name] if name in self.metrics else self.metrics["AP_per_iou"][f"0.{name[2:]}"]
    return None if value is None else 100 * value

  @property
  def training(self) -> list[dict[str, Any]]:
    """The rows of training steps; each averages the steps since the row before."""
    return [row for row in self.rows if "loss" in row]

  @property
  def w_loc(self) -> float:
    """The localization weight that was trained with, fitted or given."""
    if self.config.loss.w_loc != "auto":
      return self.config.loss.w_loc
    path = self.workdir / "w_loc.json"
    if not path.exists():
      raise UserError(f"{path} is missing: the run's fitted w_loc is not known; train it in a new workdir")
    return read_json(path, "train in a new --workdir")["w_loc"]

  @property
  def effective_weight(self) -> float:
    """Localization loss over what it is with weights of 1, averaged over all training steps."""
    steps = np.array([row["step"] for row in self.training])
    weights = [row["localization_weight"] for row in self.training]
    return float(np.average(weights, weights=np.diff(steps, prepend=0)))


@functools.cache
def read_truth(path: str, split: str, annotations: str) -> dict[str, Any]:
  """Read once for all runs and seeds; not to be changed."""
  return ground_truth(open_dataset(path, split), annotations)


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


def soft_nms(results: Results, method: str) -> Results:
  """Scores the run's last checkpoint with soft-NMS ("linear" or "gaussian"), unless that was done before."""
  variant = f"soft_nms_{method}"
  with contextlib.suppress(FileNotFoundError):  # not done yet
    again = Results.read(results.workdir, variant)
    if again.metrics["step"] == results.metrics["step"]:
      return again
  detector = load_detector(results.workdir, str(results.metrics["step"]))
  detector.config.eval.nms = method
  d = results.config.data
  scored = detector.evaluate(open_dataset(d.path, d.val_split), d.val_annotations)
  folder = results.workdir / "eval" / f"{d.val_split}_{variant}"
  scored.write(folder, step=detector.trained_steps, split=d.val_split)
  return Results.read(results.workdir, variant)


def candidates(results: Results) -> AnyPath:
  """File with all that entered the run's NMS, made if it is not there or older than its scores."""
  path = results.folder / "candidates.npz"
  if not newer(path, results):
    detector = load_detector(results.workdir, str(results.metrics["step"]))
    config = detector.config
    m, e, d = config.model, config.eval, config.data
    every = (m.max_level - m.min_level + 1) * e.candidates_per_level * len(detector.categories)
    every *= len(config_lib.evaluation_views(config))
    e.update(nms="none", max_detections=every)
    save_candidates(path, detector.detect(open_dataset(d.path, d.val_split)))
  return path


def newer(path: AnyPath, results: Results) -> bool:
  """Whether a file was made after the run was scored."""
  return path.exists() and modified(path) >= modified(results.folder / "metrics.json")


def test_dev(results: Results, root: Path, name: str, out: AnyPath) -> AnyPath:
  """Detects on test-dev2017 and writes what COCO's evaluation server takes: a zip with one JSON file in it.

  A zip that is there and newer than the run's scores stays as it is. `name` is the method's, as the server
  wants it in the file's name; `root` is the COCO folder.
  """
  stem = f"detections_test-dev2017_{name}_results"
  path = out / f"{stem}.zip"
  if newer(path, results):
    return path
  listed, images = root / "annotations" / "image_info_test-dev2017.json", root / "test2017"
  if not listed.is_file() or not images.is_dir():
    raise UserError(
      f"test-dev results need {listed} and {images}; get both from cocodataset.org, then the same command "
      "goes on from here"
    )
  try:
    described = json.loads(listed.read_text())["images"]
    rows = [(i["id"], i["file_name"], i["height"], i["width"]) for i in described]
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{listed} is no list of COCO images ({error}); get it again") from None
  detector = load_detector(results.workdir, str(results.metrics["step"]))
  annotations = from_rows(rows, [[] for _ in rows])
  problems = missing_images(images, annotations)
  if problems:
    raise UserError(f"{len(problems)} images of {listed} are missing: {list_problems(problems)}")
  source = from_files("test-dev2017", detector.categories, annotations, images)
  found = detector.detect(source)
  out.mkdir(parents=True, exist_ok=True)
  with whole_file(path) as whole, zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as file:
    file.writestr(f"{stem}.json", json.dumps(found))
  return path
