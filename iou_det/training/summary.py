"""What a run came to, said at its end: the best and the last scores, where the files are, what to do next."""

import shlex
from typing import Any

from iou_det.storage import AnyPath
from iou_det.training.progress import duration
from iou_det.workdir.checkpoints import Checkpoints, best_step
from iou_det.workdir.metrics import read_metrics

FIGURES = ("AP", "AP50", "AP75")


def summary(workdir: AnyPath, split: str, seconds: float) -> str:
  """Lines for a finished run.

  Args:
    split: that it is scored on.
    seconds: of the start that ends.
  """
  rows = {row["step"]: row for row in read_metrics(workdir / "metrics.jsonl") if f"{split}/AP" in row}
  best = best_step({step: row[f"{split}/AP"] for step, row in rows.items()}, list(rows))
  steps, scored = Checkpoints(workdir).steps(), {"best": best, "last": max(rows, default=None)}
  lines = [
    *((name, scores(rows[step], split)) for name, step in scored.items() if step),
    ("time", f"{duration(seconds)} (this start)"),
    ("files", f"{workdir}: checkpoints/ (steps {', '.join(map(str, steps))}), metrics.jsonl, tensorboard/"),
    ("", f"{workdir / 'eval' / split}: detections.json and metrics.json, of the last evaluation"),
  ]
  commands = [
    ["predict", f"--workdir={workdir}", f"--step={'best' if best in steps else 'last'}", f"--split={split}",
     f"--out={workdir / 'pictures'}"],
    ["report", f"--workdirs={workdir}", f"--out={workdir / 'report'}"],
  ]  # fmt: skip
  lines += [("next" if i == 0 else "", shlex.join(["iou-det", *c])) for i, c in enumerate(commands)]
  return "\n".join(f"{name:<6}{text}" for name, text in lines)


def scores(row: dict[str, Any], split: str) -> str:
  figures = [f"{name} {row[f'{split}/{name}']:.3f}" for name in FIGURES if f"{split}/{name}" in row]
  return f"step {row['step']}: {', '.join(figures)}"
