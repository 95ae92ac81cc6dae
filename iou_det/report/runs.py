"""The runs of a page: what they left, and the images on which all of them were scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from iou_det.data.source import Category, Source
from iou_det.errors import UserError
from iou_det.evaluation import coco
from iou_det.evaluation.results import Results
from iou_det.evaluation.truth import stem
from iou_det.storage import AnyPath, absolute, user_path


@dataclass(frozen=True, eq=False)
class Run:
  """A scored run. `truth` and `source` are the same for all runs of a page.

  Attributes:
    name: the last parts of the workdir that tell it from the others.
    metrics: of eval/SPLIT/metrics.json.
    rows: of metrics.jsonl.
    detections: original category ids, pixels of the original image.
    truth: COCO annotations, of exactly the images of `source`.
    candidates: file of what entered the NMS that made the detections.
  """

  name: str
  workdir: AnyPath
  config: ConfigDict
  split: str
  metrics: dict[str, Any]
  rows: list[dict[str, Any]]
  detections: coco.Results
  truth: dict[str, Any]
  source: Source
  candidates: AnyPath | None = None

  @property
  def categories(self) -> tuple[Category, ...]:
    return self.source.categories


def load_runs(workdirs: Sequence[str], split: str = "") -> list[Run]:
  """Runs that were scored on the same images: of each one's own val split, or of `split`.

  A UserError names a run that was not scored, has no data or other data than the first, or is named twice.
  """
  paths = [user_path(w) for w in workdirs]
  if not paths:
    raise UserError("no workdir given; --workdirs=A,B takes one or more folders of iou-det train")
  names = short_names([str(absolute(p)) for p in paths])
  runs: list[Run] = []
  for path, name in zip(paths, names, strict=True):
    if not path.is_dir():
      raise UserError(f"{path} is not a folder; --workdirs takes folders that iou-det train wrote")
    try:
      results = Results.read(path, split=split)
      found = results.detections()
    except FileNotFoundError as error:
      option = f" --split={split}" if split else ""
      remedy = f"run `iou-det eval --workdir={path}{option}` first"
      raise UserError(f"{path} was not scored ({error.filename} is missing); {remedy}") from None
    source, truth = results.data
    coco.refuse_unknown_ids(truth, source.name, found.image_id.tolist(), found.category_id.tolist())
    candidates = results.candidates if results.older_than(results.candidates) else None
    scored = (results.config, split or results.config.data.val_split, results.metrics, results.rows)
    run = Run(name, path, *scored, found, truth, source, candidates)
    if results.metrics["images"] != len(truth["images"]):
      raise UserError(
        f"{path} was scored on {results.metrics['images']} images, {source.name} has {len(truth['images'])} "
        f"now; run `iou-det eval --workdir={path}` again"
      )
    if runs:
      refuse_other_data(runs[0], run)
    runs.append(run)
  first = runs[0]
  same = {"truth": first.truth, "source": first.source}
  return [first, *(Run(**{**vars(run), **same}) for run in runs[1:])]


def short_names(paths: Sequence[str]) -> list[str]:
  """The fewest last parts of all paths that tell them apart: seed0, or baseline/seed0."""
  if len(set(paths)) < len(paths):
    twice = next(p for p in paths if paths.count(p) > 1)
    raise UserError(f"--workdirs names {twice} twice; name each run once")
  parts = [path.rstrip("/").split("/") for path in paths]
  for depth in range(1, max(map(len, parts)) + 1):
    names = ["/".join(p[-depth:]) for p in parts]
    if len(set(names)) == len(names):
      return names
  return list(paths)


def refuse_other_data(first: Run, run: Run) -> None:
  """Raises a UserError if two runs were not scored on the same images, objects and classes."""
  place = lambda r: f"{r.config.data.path} (split {r.split})"
  differs = next((what for what, of in WHAT.items() if of(first.truth) != of(run.truth)), None)
  if differs is None:
    return
  if first.split != run.split:
    todo = (
      f"`iou-det eval --workdir={run.workdir} --split={first.split}` and report with --split={first.split}"
    )
  else:
    todo = "a page is of runs on one data set: give each data set's runs a page of their own"
  raise UserError(
    f"{run.workdir} was scored on other {differs} than {first.workdir}: {place(run)} with "
    f"{len(run.truth['images'])} images and {len(run.truth['annotations'])} boxes, {place(first)} with "
    f"{len(first.truth['images'])} and {len(first.truth['annotations'])}; {todo}"
  )


# What two runs must have been scored on alike, without the order of the records and their own ids.
WHAT = {
  "images": lambda truth: sorted((i["id"], stem(i["file_name"])) for i in truth["images"]),
  "classes": lambda truth: sorted((c["id"], c["name"]) for c in truth["categories"]),
  "objects": lambda truth: sorted(
    (a["image_id"], a["category_id"], *a["bbox"], a.get("iscrowd", 0)) for a in truth["annotations"]
  ),
}
