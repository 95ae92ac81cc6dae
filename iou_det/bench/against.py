"""torchvision's RetinaNet beside ours: run in a process of its own, and the ratios."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from iou_det.config import input_size
from iou_det.errors import UserError


def check_torchvision() -> None:
  """Raises a UserError where torch or torchvision is not installed."""
  missing = [name for name in ("torch", "torchvision") if importlib.util.find_spec(name) is None]
  if missing:
    raise UserError(f"--against=torchvision needs {' and '.join(missing)}: pip install torch torchvision")


def bench_torchvision(
  kind: str, config: ConfigDict, batch_size: int, boxes: int, classes: int, repeats: int
) -> Iterator[dict[str, Any]]:
  """Lines of torchvision's R50 RetinaNet, eager and compiled, with images and batches of the same sizes."""
  height, width = input_size(config, False)
  numbers = {
    "batch_size": batch_size, "height": height, "width": width, "boxes": boxes, "classes": classes,
    "repeats": repeats,
  }  # fmt: skip
  command = [sys.executable, "-m", "iou_det.bench.torchvision_retinanet", kind]
  command += [f"--{name}={value}" for name, value in numbers.items()]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ)
  if done.returncode:
    raise UserError(f"torchvision's RetinaNet failed (exit code {done.returncode}); its message is above")
  for line in done.stdout.splitlines():
    if line.startswith("{"):
      yield json.loads(line)


def ratios(ours: dict[str, Any], theirs: list[dict[str, Any]]) -> dict[str, Any]:
  """Our images a second over theirs, in one run on one machine."""
  return {
    "bench": ours["bench"], "piece": "ratio to torchvision", "batch_size": ours["batch_size"],
    "input_size": ours["input_size"], "images_per_second": ours["images_per_second"],
    **{row["piece"]: ours["images_per_second"] / row["images_per_second"] for row in theirs},
  }  # fmt: skip
