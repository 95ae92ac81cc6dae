"""metrics.jsonl and the same as TensorBoard events."""

import json
import os
import sys
from typing import Any

from tensorboardX import SummaryWriter

from iou_det.storage import AnyPath, shared_memory, write_whole


def read_metrics(path: AnyPath, last_step: int = sys.maxsize) -> list[dict[str, Any]]:
  """Lines of a metrics.jsonl up to `last_step`; a line cut short by a kill ends it."""
  rows: list[dict[str, Any]] = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      break
    if row["step"] <= last_step:
      rows.append(row)
  return rows


class MetricsLog:
  """metrics.jsonl and TensorBoard events; rows after the step that a run resumes from are dropped."""

  def __init__(self, workdir: AnyPath, start_step: int):
    path = workdir / "metrics.jsonl"
    write_whole(path, "".join(json.dumps(row) + "\n" for row in read_metrics(path, start_step)))
    self.file = path.open("a")
    with shared_memory("the log for TensorBoard"):
      self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

  def write(self, step: int, row: dict[str, float]) -> None:
    self.file.write(json.dumps({"step": step, **row}) + "\n")
    self.file.flush()
    os.fsync(self.file.fileno())  # where a folder is a mounted bucket, only this brings it there
    for name, value in row.items():
      self.board.add_scalar(name, value, step)
    self.board.flush()

  def close(self) -> None:
    self.file.close()
    self.board.close()
