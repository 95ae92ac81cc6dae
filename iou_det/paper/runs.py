"""The trained detectors behind the paper's tables and figures: their names, folders and configs.

A run is named for its losses and shared by all tables that need it:
W/runs/PRESET/NAME/seedS is the workdir that `iou-det train` would make of the same config.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from ml_collections import ConfigDict

from iou_det.config import W_LOC, W_LOC_R101, with_loss
from iou_det.config_args import read_config_file, shipped_configs
from iou_det.errors import UserError
from iou_det.evaluation.results import Results
from iou_det.storage import AnyPath

PRESETS = ("coco", "deeppcb", "shapes")
SWEEP = (0.5, 1.0, 2.0, 3.0, 4.5)  # localization weights of `wloc_sweep`
# Losses by run name, as changes of the baseline. w_loc, where a run has an exponent lambd and names none, is
# Table 4's on COCO and fitted on the training data elsewhere. A weight of (NAME, FIGURE) is a figure of the
# results of the run NAME of the same seed ("w_loc", or "effective_weight", averaged over training); one of
# (NAME, FIGURE, PILOT) is the weight of the run PILOT, times what makes its figure NAME's.
QUALITY_LOSSES: dict[str, dict[str, Any]] = {  # with their authors' numbers
  "quality_focal": {"classification": "quality_focal", "gamma": 2.0},
  "varifocal": {"classification": "varifocal", "alpha": 0.75, "gamma": 2.0},
  "varifocal_unweighted": {"classification": "varifocal_unweighted", "alpha": 0.75, "gamma": 2.0},
}
BOX_LOSSES: dict[str, dict[str, Any]] = {
  "balanced_l1": {"localization": "balanced_l1", "w_loc": 1.0},  # the authors' for RetinaNet
  "bounded_iou": {"localization": "bounded_iou", "w_loc": "auto"},
  "giou": {"localization": "giou", "w_loc": "auto"},
}
RUNS: dict[str, dict[str, Any]] = {
  "baseline": {},
  "cls": {"eta": 1.5},
  "loc": {"lambd": 1.5},
  "both": {"eta": 1.5, "lambd": 1.5},
  **{f"eta{eta}": {"eta": eta} for eta in (1.0, 1.4, 1.6)},
  **{f"lambd{lambd}": {"lambd": lambd} for lambd in (0.5, 1.0, 1.8)},
  "loc_eq5": {"lambd": 1.5, "loc_weights": "eq5", "w_loc": 1.0},
  "both_eq5": {"eta": 1.5, "lambd": 1.5, "loc_weights": "eq5", "w_loc": 1.0},
  "baseline_effective": {"w_loc": ("loc", "effective_weight")},
  "baseline_w_loc": {"w_loc": ("loc", "w_loc")},
  "isr": {"isr_gamma": 2.0},
  **QUALITY_LOSSES,
  **{
    f"{name}_scaled": {**loss, "w_cls": ("baseline", "classification_gradient", name)}
    for name, loss in QUALITY_LOSSES.items()
  },
  "iou_branch": {"model.iou_branch": True},
  "iou_branch_attached": {"model.iou_branch": True, "iou_target": "attached"},
  "concordance": {"concordance": 0.2},
  **BOX_LOSSES,
  **{
    f"{name}_effective": {**loss, "w_loc": ("loc", "effective_weight", name)}
    for name, loss in BOX_LOSSES.items()
  },
  **{f"weight{w}": {"w_loc": w} for w in SWEEP if w != 1.0},
  **{f"loc_weight{w}": {"lambd": 1.5, "w_loc": w} for w in SWEEP},
}


@dataclass(frozen=True)
class Run:
  """One training: losses of RUNS, a backbone, a seed."""

  name: str
  seed: int
  large: bool = False  # the larger backbone of Table 1 (R101; R34 where the small one is R18)
  full_size: bool = False  # [800,1333] (Table 1) in place of [600,1000]; on COCO only

  @property
  def folder(self) -> str:
    size = ("_large" if self.large else "") + ("_800" if self.full_size else "")
    return f"{self.name}{size}/seed{self.seed}"

  @property
  def needs(self) -> "tuple[Run, ...]":
    """The runs whose results this one's config is made of."""
    sources = [value for value in RUNS[self.name].values() if isinstance(value, tuple)]
    return tuple(replace(self, name=name) for name, _, *pilot in sources for name in (name, *pilot))


@dataclass(frozen=True)
class Reproduction:
  """The folder of a reproduction's runs, and what they are trained on."""

  workdir: AnyPath
  preset: str
  data: str = ""  # replaces the preset's `data.path`
  smoke: bool = False  # toy size, to show that the commands work

  @property
  def name(self) -> str:
    return self.preset + ("_smoke" if self.smoke else "")

  def folder(self, run: Run) -> AnyPath:
    return self.workdir / "runs" / self.name / run.folder

  def config(self, run: Run) -> ConfigDict:
    """The run's config; the runs that it needs must be finished."""
    config = run_config(run, self.preset)
    if self.data:
      config.data.path = self.data
    if self.smoke:
      shrink(config)
      # Elsewhere their program would be compiled for nothing.
      if run.name not in ("baseline", "loc", *QUALITY_LOSSES, *BOX_LOSSES):
        config.train.diagnostics_every = 0
    for name, source in RUNS[run.name].items():
      if isinstance(source, tuple):
        goal, *pilots = [self.folder(needed) for needed in run.needs]
        weight = figure_of(goal, source[1])
        for pilot in pilots:
          weight *= figure_of(pilot, name) / figure_of(pilot, source[1])
        config = with_loss(config, **{name: weight})
    return config


def run_config(run: Run, preset: str) -> ConfigDict:
  """The config of a run by the preset's own data path; a weight that comes from another run stays 1."""
  choose("preset", preset, PRESETS)
  file, arg = f"{preset}.py", "eta=0,lambd=0"
  if preset == "coco":
    file = "retinanet.py"
    arg += f",backbone={'r101' if run.large else 'r50'},short={800 if run.full_size else 600}"
  config = read_config_file(shipped_configs() / file, arg)
  if preset == "coco":  # GPUs of 2 images each: 2 of them in the ablations, 8 for Table 1
    config.train.batch_size = 16 if run.full_size else 4
    config.loss.group = 2
  if run.large and preset != "coco":
    config.model.depth = 34
  if preset == "shapes":
    config.data.val_split = "test"
    config.eval.update(nms="hard", score_threshold=0.05, tta_scales=(1.0,))  # the paper's
    # Two minutes a run: smaller images than the config's, and fewer of them.
    config.data.update(short=150, long=192)
    config.anchors.scale = 2.5
    config.train.update(epochs=2, eval_epochs=2, warmup_steps=50)
  config.seed = run.seed
  config.train.diagnostics_every = 100 if preset != "coco" else 1000
  changes = dict(RUNS[run.name])
  for name in [name for name in changes if name.startswith("model.")]:
    config.model[name.removeprefix("model.")] = changes.pop(name)
  if "lambd" in changes and "w_loc" not in changes:
    paper = W_LOC_R101 if run.large and run.full_size else W_LOC[changes["lambd"]]
    changes["w_loc"] = paper if preset == "coco" else "auto"
  return with_loss(config, **{k: v for k, v in changes.items() if not isinstance(v, tuple)})


def figure_of(workdir: AnyPath, figure: str) -> float:
  """A figure of a run's results, by its name in `Results`."""
  value = getattr(Results.read(workdir), figure)
  if value is None:
    raise UserError(
      f"{workdir / 'metrics.jsonl'} does not say {figure}, which other runs need: an earlier version trained "
      "the run, or without train.diagnostics_every; delete the folder, or give another --workdir"
    )
  return value


def choose(name: str, value: Any, allowed: Collection[Any]) -> None:
  """Raises a UserError if a config's argument is none of the allowed ones."""
  if value not in allowed:
    raise UserError(f"{name}={value}: must be one of {', '.join(map(str, allowed))}")


def shrink(config: ConfigDict) -> None:
  """Toy size: seconds a run, nearly all of it compilation; no meaning in the figures."""
  config.model.update(width=8, norm="frozen_bn", frozen_stages=4, pretrained="", min_level=4, max_level=5)
  config.model.update(fpn_channels=16, head_convs=1, head_norm="none")
  config.anchors.update(octaves=1, scale=2.0)
  config.data.update(short=64, long=96, canvas=(64, 96), transpose=0.0, threads=2)
  config.train.update(batch_size=8, epochs=1, warmup_steps=2, decay_epochs=(), schedule="step")
  config.train.update(log_every=2, eval_epochs=1, checkpoint_epochs=1, diagnostics_every=2)
  config.eval.update(batch_size=8, score_threshold=0.001)
