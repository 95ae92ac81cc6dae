"""What a finished run left in its workdir, and whether it is finished."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from iou_det import config as config_lib
from iou_det.errors import UserError
from iou_det.workdir import read_config, read_metrics


@dataclass(frozen=True)
class Results:
  """A run's config, log and scores.

  Attributes:
    folder: with detections.json and metrics.json.
    rows: of metrics.jsonl.
  """

  workdir: Path
  folder: Path
  config: ConfigDict
  metrics: dict[str, Any]
  rows: list[dict[str, Any]]

  @classmethod
  def read(cls, workdir: Path, variant: str = "") -> "Results":
    """Of the run's own val split; `variant`: of eval/SPLIT_VARIANT, detections made in another way.

    Raises:
      UserError: the workdir is no training run.
      FileNotFoundError: it has not been scored.
    """
    config = read_config(workdir)
    folder = workdir / "eval" / (config.data.val_split + (f"_{variant}" if variant else ""))
    try:
      metrics = json.loads((folder / "metrics.json").read_text())
    except ValueError as error:
      raise UserError(f"{folder}/metrics.json is damaged ({error}); run iou-det eval again") from None
    rows = read_metrics(workdir / "metrics.jsonl")
    return cls(workdir, folder, config, metrics, rows)

  def detections(self) -> list[dict[str, Any]]:
    """COCO results."""
    return json.loads((self.folder / "detections.json").read_text())

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
    return json.loads(path.read_text())["w_loc"]

  @property
  def effective_weight(self) -> float:
    """Localization loss over what it is with weights of 1, averaged over all training steps."""
    steps = np.array([row["step"] for row in self.training])
    weights = [row["localization_weight"] for row in self.training]
    return float(np.average(weights, weights=np.diff(steps, prepend=0)))


def images_per_second(workdir: Path) -> float | None:
  """Of a run, finished or not: median over its log without the first step (compilation); None if unknown."""
  rows = [row for row in read_metrics(workdir / "metrics.jsonl") if "loss" in row]
  return float(np.median([row["images_per_second"] for row in rows[1:]])) if len(rows) > 1 else None


def finished(config: ConfigDict, workdir: Path) -> bool:
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
