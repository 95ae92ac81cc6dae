"""Writes a trained detector as one file to share or to run elsewhere.

  iou-det export --workdir=runs/demo --step=best --format=safetensors --out=shapes.safetensors

safetensors: weights, config and category table; `load_detector`, eval, predict and model.init take it.
"""

from pathlib import Path

from absl import flags

from iou_det.commands import flags as common
from iou_det.weights.load import read_detector
from iou_det.weights.saved import write_saved

WORKDIR = common.trained_workdir()
STEP = common.step()
FORMAT = flags.DEFINE_enum("format", "safetensors", ["safetensors"], "See above.")
OUT = flags.DEFINE_string("out", None, "File to write.", required=True)


def main() -> None:
  saved = read_detector(WORKDIR.value, STEP.value)
  out = Path(OUT.value)
  write_saved(out, saved)
  print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {len(saved.categories)} classes, step {saved.step}")
