"""Model cards: what a detector in a file was made of, what it reaches, and what made the file."""

import datetime
import importlib.metadata
import json
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np

from iou_det.config import base_config, differences
from iou_det.storage import AnyPath, read_json, write_whole
from iou_det.streams import one_line
from iou_det.weights.saved import Saved, portable
from iou_det.workdir.metrics import read_metrics

FIGURES = ("AP", "AP50", "AP75")
NOT_MEASURED = "not measured"
USE = {
  "safetensors": '`iou_det.load_detector("{name}")` or `--workdir={name}`',
  "stablehlo": "`jax.export.deserialize`; what goes in and comes out stands in `{name}.json`",
  "onnx": "onnxruntime; what goes in and comes out stands in its metadata",
}


def facts_of_run(workdir: AnyPath, step: int, run: dict[str, Any]) -> dict[str, Any]:
  """What a card says of a run's data, and of what was measured at this step; as JSON.

  Args:
    run: the run information of the checkpoint.
  """
  data = run["config"]["data"]
  return {
    "data": Path(data["path"]).name,
    "split": data["train_split"],
    "images": run["data"].get("images"),  # older runs did not note it
    "measured": measured(workdir, step, data["val_split"]),
  }


def measured(workdir: AnyPath, step: int, split: str) -> list[dict[str, Any]]:
  """Figures at a step: of `iou-det eval` where its last one was of this step, else of training's own."""
  found: list[dict[str, Any]] = []
  folder = workdir / "eval"
  for path in sorted(p / "metrics.json" for p in folder.iterdir()) if folder.is_dir() else []:
    metrics = read_json(path, "give `iou-det eval` again") if path.is_file() else {}
    if metrics.get("step") == step:
      found.append({"on": path.parent.name} | {k: metrics.get(k) for k in (*FIGURES, "images")})
  for row in [] if found else read_metrics(workdir / "metrics.jsonl"):
    if row["step"] == step and f"{split}/AP" in row:
      found = [{"on": split} | {k: row.get(f"{split}/{k}") for k in FIGURES}]
  return found


def model_card(saved: Saved, name: str, kind: str, variant: str = "") -> str:
  """Markdown, with the fields that the Hugging Face hub reads at its head.

  Args:
    name: of the file, whose `kind` is a key of USE.
    variant: how it detects otherwise than it was measured.
  """
  config, facts = portable(saved.config), saved.facts
  numbers = sum(np.size(array) for array in jax.tree.leaves(saved.variables["params"]))
  classes = ", ".join(one_line(f"{c.name} ({c.id})") for c in saved.categories)
  data = facts.get("data") or "not known"
  if facts.get("split"):
    data += f", split {facts['split']}, {facts.get('images') or 'an unknown number of'} images"
  loss = config.loss
  rows = {
    "network": f"RetinaNet, ResNet-{config.model.depth}, {numbers / 1e6:.1f} million parameters",
    "trained on": data,
    f"{len(saved.categories)} classes (ids)": classes,
    "trained for": f"{saved.step} steps" if saved.step else "not trained here",
    "IoU-balanced losses": f"eta {loss.eta:g}, lambda {loss.lambd:g}, w_loc {loss.w_loc}",
    "images": f"resized to {config.data.short}, at most {config.data.long} pixels",
    **{f"box {line['on']}": figures(line) for line in facts.get("measured", [])},
  }
  if not facts.get("measured"):
    rows["AP"] = NOT_MEASURED
  if variant:
    rows["detects otherwise than measured"] = variant
  rows |= {
    "use": USE[kind].format(name=name),
    "written": f"{datetime.date.today().isoformat()} by {code()}",
    "licence": "the code's is Apache-2.0; for the weights, that of the data and of what they started from",
  }
  table = "\n".join(f"| {what} | {value.replace('|', chr(92) + '|')} |" for what, value in rows.items())
  changed = "\n".join(differences(config, portable(base_config()))) or "none"
  return f"""---
library_name: iou-det
pipeline_tag: object-detection
tags: [retinanet, jax]
---
# {name}

| | |
|---|---|
{table}

Settings that are not the defaults of `iou_det/config.py` (here != default):

```
{changed}
```
"""


def figures(line: dict[str, Any]) -> str:
  shown = [f"{k} {NOT_MEASURED if line.get(k) is None else format(line[k], '.3f')}" for k in FIGURES]
  return ", ".join(shown) + (f" ({line['images']} images)" if line.get("images") else "")


def code() -> str:
  """The version of the package and, in a clone or installed from one, its commit."""
  text = f"iou-det {importlib.metadata.version('iou-det')}"
  root = Path(__file__).parents[2]
  if not (root / ".git").exists():
    origin = importlib.metadata.distribution("iou-det").read_text("direct_url.json")
    commit = json.loads(origin or "{}").get("vcs_info", {}).get("commit_id")
    return f"{text}, commit {commit}" if commit else text
  git = ["git", "-C", str(root)]
  try:
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    changes = subprocess.run(
      [*git, "status", "--porcelain", "iou_det"], capture_output=True, check=True
    ).stdout
  except (OSError, subprocess.CalledProcessError):  # no git, no commit, or of another owner
    return text
  return f"{text}, commit {commit.strip()}{' with changes' if changes else ''}"


def write_card(path: AnyPath, card: str) -> None:
  """Beside a file."""
  write_whole(path.with_name(f"{path.name}.md"), card)
