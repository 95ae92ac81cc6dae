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
from iou_det.bench.measure import CALLS_ON_ACCELERATOR, Timing, print_line, report
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
}


def run_torchvision(
  kind: str, config: ConfigDict, num_classes: int, boxes: int, *, repeats: int
) -> list[dict[str, Any]]:
  """What `iou_det.bench.torchvision_model` measures, eager and compiled; call it before JAX has the device.

  Args:
    kind: "train", or "predict": at the batch size of the config and one image at a time.
    boxes: of each image.

  Raises:
    UserError: torch or torchvision is missing or fails, or the config's network is not what torchvision has.
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
  e = config.eval
  with tempfile.TemporaryDirectory() as folder:
    inputs = Path(folder) / "inputs.npz"
    arrays: dict[str, Any] = synthetic.batch(config, batch_size, num_classes, boxes)
    np.savez(inputs, **arrays)
    settings = Path(folder) / "settings.json"
    settings.write_text(
      json.dumps(
        {
          "kind": kind,
          "inputs": str(inputs),
          "batch_sizes": [batch_size] if kind == "train" else list(dict.fromkeys((batch_size, 1))),
          "depth": config.model.depth,
          "frozen_stages": config.model.frozen_stages,
          "classes": num_classes,
          "short": config.data.short,
          "long": config.data.long,
          "score_threshold": e.score_threshold,
          "nms_iou": e.nms_iou,
          "max_detections": e.max_detections,
          "candidates_per_level": e.candidates_per_level,
          "warmup": 2,
          "repeats": repeats,
          "calls_on_gpu": CALLS_ON_ACCELERATOR,
        }
      )
    )
    command = [sys.executable, "-m", "iou_det.bench.torchvision_model", str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise UserError(f"torchvision's run failed: {done.stderr.strip().splitlines()[-1]}")
  return [json.loads(line) for line in done.stdout.splitlines()]


def report_beside(rows: list[dict[str, Any]], measured: dict[str, Any], out: str | Path | None) -> None:
  """Reports a line of `run_torchvision`, and how much faster ours is.

  Args:
    rows: our lines; the one with the same batch size is compared.
  """
  ours = next(row for row in rows if row["batch"] == measured["batch"])
  by = f"torchvision {measured['mode']}"
  timing = Timing(tuple(measured["samples"]), measured["warmup"], measured["calls"])
  own = ("first_call_seconds", "loss_last", "detections_per_image")
  more = {name: measured[name] for name in own if name in measured}
  report(
    ours["bench"], ours["what"], by=by, timing=timing, images=measured["batch"], dtype=measured["dtype"],
    shapes=ours["shapes"], devices=1, out=out, device_peak_bytes=measured["device_peak_bytes"],
    versions=ours["versions"] | measured["versions"], torch_device=measured["device"], **more,
  )  # fmt: skip
  print_line(
    {
      "bench": ours["bench"],
      "what": ours["what"],
      "by": f"iou-det / {by}, images per second",
      "shapes": ours["shapes"],
      "batch": ours["batch"],
      "ratio": timing.median / ours["seconds_median"],
    },
    out,
  )
