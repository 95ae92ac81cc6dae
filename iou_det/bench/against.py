"""Runs another framework's model on our inputs in a process of its own, and sets the figures side by side."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from iou_det.bench import synthetic
from iou_det.bench.measure import CALLS_ON_ACCELERATOR, Line, Measurement, Timing, print_line
from iou_det.config import get_field
from iou_det.errors import UserError

# torchvision's RetinaNet is this and nothing else.
SAME = {
  "model.width": 64,
  "model.norm": "frozen_bn",
  "model.fpn_channels": 256,
  "model.head_convs": 4,
  "model.head_norm": "none",
  "model.min_level": 3,
  "model.max_level": 7,
  "model.p6_from": "c5",
  "anchors.octaves": 3,
  "anchors.ratios": (0.5, 1.0, 2.0),
  "eval.nms": "hard",
  "eval.class_agnostic": False,
  "eval.tta_scales": (1.0,),
  "eval.tta_flip": False,
  "train.accumulate": 1,
}


def run_torchvision(kind: str, config: ConfigDict, num_classes: int, boxes: int, repeats: int) -> list[Line]:
  """What `iou_det.bench.torchvision_model` measures, eager and compiled; call it before JAX has the device.

  `kind` is "train", or "predict": at the batch size of the config and one image at a time.
  """
  missing = [name for name in ("torch", "torchvision") if importlib.util.find_spec(name) is None]
  if missing:
    raise UserError(
      f"--against=torchvision needs {' and '.join(missing)}; pip install torch torchvision, or leave it out"
    )
  for name, value in SAME.items():
    if get_field(config, name) != value:
      raise UserError(
        f"config.{name}={get_field(config, name)!r}, but torchvision's RetinaNet has {value!r}; compare with "
        "configs/retinanet.py"
      )
  batch_size = config.train.batch_size if kind == "train" else config.eval.batch_size
  settings = {"config": config.to_dict(), "kind": kind, "classes": num_classes}
  settings |= {"warmup": 2, "repeats": repeats, "calls_on_gpu": CALLS_ON_ACCELERATOR}
  with tempfile.TemporaryDirectory() as folder:
    arrays: dict[str, Any] = synthetic.batch(config, batch_size, num_classes, boxes)
    np.savez(Path(folder) / "inputs.npz", **arrays)
    (Path(folder) / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "iou_det.bench.torchvision_model", folder]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
  if done.returncode:
    raise UserError(f"torchvision's run failed: {done.stderr.strip().splitlines()[-1]}")
  return [json.loads(line) for line in done.stdout.splitlines()]


def report_beside(rows: list[Line], measured: dict[str, Any], out: Path | None) -> None:
  """Reports a line of `run_torchvision`, and how much faster ours of the same batch size is."""
  ours = next(row for row in rows if row["batch"] == measured["batch"])
  by = f"torchvision {measured['mode']}"
  timing = Timing(tuple(measured["samples"]), measured["warmup"], measured["calls"])
  own = ("batch", "dtype", "device_peak_bytes", "first_call_seconds", "loss_last", "detections_per_image")
  fields = {name: measured[name] for name in own if name in measured}
  fields |= {"torch_device": measured["device"], "versions": ours["versions"] | measured["versions"]}
  same = {name: ours[name] for name in ("bench", "what", "shapes")}
  Measurement(ours["bench"], ours["what"], by, timing, devices=1, fields=fields | same).print(out)
  ratio = timing.median / ours["seconds_median"]
  beside = {"by": f"iou-det / {by}, images per second", "batch": ours["batch"], "ratio": ratio}
  print_line(same | beside, out)
