"""Detections of a finished run made in another way: with soft-NMS, before NMS, or on COCO's test-dev."""

import json
import zipfile
from pathlib import Path

from iou_det.data import open_dataset
from iou_det.data.coco import CocoFolder, missing_images
from iou_det.data.source import from_rows, list_problems
from iou_det.detector import load_run
from iou_det.errors import UserError
from iou_det.evaluation.overlap import save_candidates
from iou_det.paper.results import Results


def soft_nms(results: Results, method: str) -> Results:
  """Scores the run's last checkpoint with soft-NMS ("linear" or "gaussian"), unless that was done before."""
  variant = f"soft_nms_{method}"
  try:
    again = Results.read(results.workdir, variant)
    if again.metrics["step"] == results.metrics["step"]:
      return again
  except FileNotFoundError:
    pass  # not done yet
  run = load_run(results.workdir, str(results.metrics["step"]))
  run.detector.config.eval.nms = method
  d = results.config.data
  scored = run.detector.evaluate(run.variables, open_dataset(d.path, d.val_split), d.val_annotations)
  scored.write(results.workdir / "eval" / f"{d.val_split}_{variant}", step=run.step, split=d.val_split)
  return Results.read(results.workdir, variant)


def candidates(results: Results) -> Path:
  """File with all that entered the run's NMS, made if it is not there or older than its scores."""
  path = results.folder / "candidates.npz"
  if not newer(path, results):
    run = load_run(results.workdir, str(results.metrics["step"]))
    config = run.detector.config
    m, e, d = config.model, config.eval, config.data
    every = (m.max_level - m.min_level + 1) * e.candidates_per_level * len(run.detector.categories)
    e.update(nms="none", max_detections=every)
    found = run.detector.detect(run.variables, open_dataset(d.path, d.val_split))
    save_candidates(path, found)
  return path


def newer(path: Path, results: Results) -> bool:
  """Whether a file was made after the run was scored."""
  return path.exists() and path.stat().st_mtime >= (results.folder / "metrics.json").stat().st_mtime


def test_dev(results: Results, root: Path, name: str, out: Path) -> Path:
  """Detects on test-dev2017 and writes what COCO's evaluation server takes: a zip with one JSON file in it.

  A zip that is there and newer than the run's scores stays as it is.

  Args:
    root: COCO folder with test2017/ and annotations/image_info_test-dev2017.json.
    name: of the method in the file's name, detections_test-dev2017_NAME_results.

  Raises:
    UserError: the images or their list are not there or damaged.
  """
  stem = f"detections_test-dev2017_{name}_results"
  if newer(out / f"{stem}.zip", results):
    return out / f"{stem}.zip"
  listed = root / "annotations" / "image_info_test-dev2017.json"
  if not listed.is_file() or not (root / "test2017").is_dir():
    raise UserError(
      f"test-dev results need {listed} and {root / 'test2017'}; get both from cocodataset.org, then the same "
      "command goes on from here"
    )
  try:
    images = [
      (i["id"], i["file_name"], i["height"], i["width"]) for i in json.loads(listed.read_text())["images"]
    ]
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{listed} is no list of COCO images ({error}); get it again") from None
  run = load_run(results.workdir, str(results.metrics["step"]))
  annotations = from_rows(images, [[] for _ in images])
  problems = missing_images(root / "test2017", annotations)
  if problems:
    raise UserError(f"{len(problems)} images of {listed} are missing: {list_problems(problems)}")
  source = CocoFolder.from_columns(root / "test2017", run.detector.categories, annotations, "test-dev2017")
  found = run.detector.detect(run.variables, source)
  out.mkdir(parents=True, exist_ok=True)
  part = out / f"{stem}.part"
  with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as file:
    file.writestr(f"{stem}.json", json.dumps(found))
  part.replace(out / f"{stem}.zip")
  return out / f"{stem}.zip"
