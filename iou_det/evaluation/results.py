"""What a run that was scored left in its workdir, and the data that it was scored on."""

import functools
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from iou_det.data import Reading, open_dataset
from iou_det.data.source import Category, Source
from iou_det.errors import UserError
from iou_det.evaluation import coco
from iou_det.evaluation.truth import ground_truth
from iou_det.storage import AnyPath, modified, parse_json, read_json
from iou_det.workdir.checkpoints import Checkpoints
from iou_det.workdir.metrics import read_metrics
from iou_det.workdir.run import read_checked_config


@dataclass(frozen=True)
class Results:
  """A run's config, log and scores."""

  workdir: AnyPath
  folder: AnyPath  # with detections.json and metrics.json
  config: ConfigDict
  metrics: dict[str, Any]
  rows: list[dict[str, Any]]  # of metrics.jsonl

  @classmethod
  def read(cls, workdir: AnyPath, variant: str = "", split: str = "") -> "Results":
    """Of the run's own val split, or another; `variant`: of eval/SPLIT_VARIANT, detections made in another
    way.

    A FileNotFoundError says that it has not been scored.
    """
    config = read_checked_config(workdir)
    split = split or config.data.val_split
    folder = workdir / "eval" / "_".join(filter(None, (split, variant)))
    metrics = read_json(folder / "metrics.json", "run iou-det eval again")
    return cls(workdir, folder, config, metrics, read_metrics(workdir / "metrics.jsonl"))

  def detections(self) -> coco.Results:
    path, remedy = self.folder / "detections.json", "run iou-det eval again"
    content = path.read_bytes()
    if self.metrics.get("detections_crc32") not in (None, zlib.crc32(content)):  # older ones have none
      raise UserError(f"{path} is not what {self.folder / 'metrics.json'} scores; {remedy}")
    rows = parse_json(content, path, remedy)
    try:
      return coco.Results.of(rows)
    except (KeyError, TypeError, ValueError) as error:
      raise UserError(f"{path} holds no detections in COCO's format ({error!r}); {remedy}") from None

  @property
  def candidates(self) -> AnyPath:
    """The file that `find_candidates` makes."""
    return self.folder / "candidates.npz"

  def older_than(self, path: AnyPath) -> bool:
    """Whether a file was made after the run was scored."""
    return path.exists() and modified(path) >= modified(self.folder / "metrics.json")

  @property
  def split(self) -> str:
    return self.metrics["split"]

  @cached_property
  def data(self) -> tuple[Source, dict[str, Any]]:
    """The split, and what the run was scored against, as COCO annotations."""
    d = self.config.data
    annotations = d.val_annotations if self.split == d.val_split else ""
    return read_data(d.path, self.split, annotations, Reading.of(d), trained_categories(self.workdir))

  @property
  def truth(self) -> dict[str, Any]:
    return self.data[1]

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
  def w_cls(self) -> float:
    return self.config.loss.w_cls

  @property
  def effective_weight(self) -> float | None:
    """Localization loss over smooth L1 with weights of 1, averaged over all training steps.

    None: an earlier version trained with another box loss, and measured that against itself.
    """
    if self.config.loss.localization != "smooth_l1" and self.localization_gradient is None:
      return None
    steps = np.array([row["step"] for row in self.training])
    weights = [row["localization_weight"] for row in self.training]
    return float(np.average(weights, weights=np.diff(steps, prepend=0)))

  @property
  def classification_gradient(self) -> float | None:
    """Mean norm of the loss's gradient of backbone and FPN, over the steps with diagnostics; None: there
    are none, or an earlier version made them."""
    return self._gradient("classification")

  @property
  def localization_gradient(self) -> float | None:
    return self._gradient("localization")

  def _gradient(self, loss: str) -> float | None:
    name = f"{loss}_gradient_norm"
    norms = [row[name] for row in self.rows if name in row]
    return float(np.mean(norms)) if norms else None


@functools.cache
def read_data(
  path: str, split: str, annotations: str, reading: Reading, trained: tuple[Category, ...]
) -> tuple[Source, dict[str, Any]]:
  """Read once for all runs and seeds; not to be changed. `trained`: the table that data without ids of
  their own take; () if it is not known."""
  source = open_dataset(path, split, reading).adopt(trained)
  return source, ground_truth(source, annotations, reading.skip_bad)


def trained_categories(workdir: AnyPath) -> tuple[Category, ...]:
  """The categories that a run's newest checkpoint knows; () without one."""
  checkpoints = Checkpoints(workdir)
  for step in checkpoints.steps()[-1:]:
    return tuple(Category(**c) for c in checkpoints.own_run_information(step)["categories"])
  return ()
