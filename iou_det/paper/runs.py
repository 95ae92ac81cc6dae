"""The trained detectors behind the paper's tables and figures: what each one's config is, and its results.

A run is named for its losses and shared by all tables that need it:
W/runs/PRESET/NAME/seedS is the workdir that `iou-det train` would make of the same config.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from iou_det import config as config_lib
from iou_det.config import W_LOC, with_loss
from iou_det.errors import UserError
from iou_det.training.checkpoint import read_metrics

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = ("coco", "deeppcb", "shapes")
SWEEP = (0.5, 1.0, 2.0, 3.0, 4.5)  # localization weights of `wloc_sweep`

# Losses by run name, as changes of the baseline. w_loc, where a run has an exponent lambd and names none, is
# Table 4's on COCO and fitted on the training data elsewhere. A w_loc of (NAME, WHAT) comes from the results
# of the run NAME of the same seed: its "w_loc", or its "effective" weight averaged over training.
RUNS: dict[str, dict[str, Any]] = {
  "baseline": {},
  "cls": {"eta": 1.5},
  "loc": {"lambd": 1.5},
  "both": {"eta": 1.5, "lambd": 1.5},
  "eta1.0": {"eta": 1.0},
  "eta1.4": {"eta": 1.4},
  "eta1.6": {"eta": 1.6},
  "lambd0.5": {"lambd": 0.5},
  "lambd1.0": {"lambd": 1.0},
  "lambd1.8": {"lambd": 1.8},
  "loc_eq5": {"lambd": 1.5, "loc_weights": "eq5", "w_loc": 1.0},
  "both_eq5": {"eta": 1.5, "lambd": 1.5, "loc_weights": "eq5", "w_loc": 1.0},
  "baseline_effective": {"w_loc": ("loc", "effective")},
  "baseline_w_loc": {"w_loc": ("loc", "w_loc")},
  "balanced_l1": {"localization": "balanced_l1", "w_loc": "auto"},
  "ghm_r": {"localization": "ghm_r", "w_loc": "auto"},
  "bounded_iou": {"localization": "bounded_iou", "w_loc": "auto"},
  "isr": {"isr_gamma": 2.0},
  **{f"weight{w}": {"w_loc": w} for w in SWEEP if w != 1.0},
  **{f"loc_weight{w}": {"lambd": 1.5, "w_loc": w} for w in SWEEP},
}


@dataclass(frozen=True)
class Run:
  """One training: losses of RUNS, a backbone, a seed.

  Attributes:
    name: of RUNS.
    large: the larger backbone of Table 1 (R101; R34 where the small one is R18).
    full_size: [800,1333] (Table 1) in place of [600,1000]; on COCO only.
  """

  name: str
  seed: int
  large: bool = False
  full_size: bool = False

  @property
  def folder(self) -> str:
    size = ("_large" if self.large else "") + ("_800" if self.full_size else "")
    return f"{self.name}{size}/seed{self.seed}"

  @property
  def needs(self) -> "Run | None":
    """The run whose results this one's config is made of."""
    w_loc = RUNS[self.name].get("w_loc")
    if not isinstance(w_loc, tuple):
      return None
    return Run(w_loc[0], self.seed, self.large, self.full_size)


@dataclass(frozen=True)
class Place:
  """Where the runs of one reproduction lie and what they are trained on.

  Attributes:
    workdir: W of the command line.
    preset: of PRESETS.
    data: replaces the preset's `data.path`; "" for none.
    smoke: toy size, to show that the commands work.
  """

  workdir: Path
  preset: str
  data: str = ""
  smoke: bool = False

  def of(self, run: Run) -> Path:
    return self.workdir / "runs" / (self.preset + ("_smoke" if self.smoke else "")) / run.folder

  def config(self, run: Run) -> ConfigDict:
    """The run's config; the run that it needs must be finished."""
    config = run_config(run, self.preset)
    if self.data:
      config.data.path = self.data
    if self.smoke:
      shrink(config)
    if run.needs is not None:
      source, what = Results.read(self.of(run.needs)), RUNS[run.name]["w_loc"][1]
      config = with_loss(config, w_loc=source.w_loc if what == "w_loc" else source.effective_weight)
    return config


def run_config(run: Run, preset: str) -> ConfigDict:
  """The config of a run by the preset's own data path; w_loc stays 1 where it comes from another run."""
  if preset not in PRESETS:
    raise UserError(f"preset={preset}: must be one of {', '.join(PRESETS)}")
  if run.name not in RUNS:
    raise UserError(f"run={run.name}: must be one of {', '.join(RUNS)}")
  if preset == "coco":
    backbone, short = "r101" if run.large else "r50", 800 if run.full_size else 600
    config = config_lib.read_config_file(
      CONFIGS / "retinanet.py", f"backbone={backbone},short={short},eta=0,lambd=0"
    )
  else:
    config = config_lib.read_config_file(CONFIGS / f"{preset}.py", "eta=0,lambd=0")
    if run.large:
      config.model.depth = 34
  if preset == "shapes":
    # The config was chosen on val. Fewer epochs, so that a table takes an hour and not a night.
    config.data.val_split = "test"
    config.train.update(epochs=4, eval_epochs=4)
  config.seed = run.seed
  config.train.diagnostics_every = 100 if preset != "coco" else 1000
  changes = dict(RUNS[run.name])
  if "lambd" in changes and "w_loc" not in changes:
    paper = 2.878 if run.large and run.full_size else W_LOC[changes["lambd"]]  # the authors' code for R101
    changes["w_loc"] = paper if preset == "coco" else "auto"
  if isinstance(changes.get("w_loc"), tuple):
    del changes["w_loc"]
  return with_loss(config, **changes)


def shrink(config: ConfigDict) -> None:
  """Toy size: seconds a run, no meaning in the figures."""
  config.model.update(
    depth=18, width=8, norm="gn", frozen_stages=-1, pretrained="", fpn_channels=16, head_convs=1,
    head_norm="gn", max_level=5)  # fmt: skip
  config.anchors.update(octaves=1, scale=4.0)
  config.data.update(short=64, long=96, canvas=(64, 96), transpose=0.0, threads=2)
  config.train.update(
    batch_size=8, epochs=1, warmup_steps=2, decay_epochs=(), schedule="step", log_every=2, eval_epochs=1,
    checkpoint_epochs=1, diagnostics_every=2)  # fmt: skip
  config.eval.update(batch_size=8, score_threshold=0.001)


@dataclass(frozen=True)
class Results:
  """What a finished run left behind."""

  workdir: Path
  config: ConfigDict
  metrics: dict[str, Any]
  rows: list[dict[str, Any]]  # of metrics.jsonl

  @classmethod
  def read(cls, workdir: Path) -> "Results":
    config = config_lib.from_json((workdir / "config.json").read_text())
    folder = workdir / "eval" / config.data.val_split
    return cls(
      workdir, config, json.loads((folder / "metrics.json").read_text()),
      read_metrics(workdir / "metrics.jsonl", last_step=2**62),
    )  # fmt: skip

  def detections(self) -> list[dict[str, Any]]:
    return json.loads(
      (self.workdir / "eval" / self.config.data.val_split / "detections.json").read_text()
    )

  @property
  def training(self) -> list[dict[str, Any]]:
    """The rows of training steps; each averages the steps since the row before."""
    return [row for row in self.rows if "loss" in row]

  @property
  def images_per_second(self) -> float:
    """Median over the rows, without the first steps (compilation)."""
    return float(np.median([row["images_per_second"] for row in self.training[1:]]))

  @property
  def w_loc(self) -> float:
    path = self.workdir / "w_loc.json"
    return json.loads(path.read_text())["w_loc"] if path.exists() else self.config.loss.w_loc

  @property
  def effective_weight(self) -> float:
    """Localization loss over what it is with weights of 1, averaged over all training steps."""
    steps = np.array([row["step"] for row in self.training])
    weights = [row["localization_weight"] for row in self.training]
    return float(np.average(weights, weights=np.diff(steps, prepend=0)))


def finished(config: ConfigDict, workdir: Path) -> bool:
  """Whether a workdir has this config, was trained to its last epoch, and scored there."""
  try:
    results = Results.read(workdir)
  except FileNotFoundError:
    return False
  if config_lib.training_differences(results.config, config):
    return False  # training there says what differs
  last = results.training[-1] if results.training else {"epoch": 0, "step": 0}
  return last["epoch"] >= config.train.epochs and results.metrics["step"] == last["step"]
