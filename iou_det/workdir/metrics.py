"""metrics.jsonl and the same as TensorBoard events, and for W&B and MLflow."""

import json
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging
from tensorboardX import SummaryWriter

from iou_det.storage import AnyPath, on_object_store, shared_memory, write_whole
from iou_det.workdir.trackers import Tracker

CHECKED = re.compile(rb'(\{.*), "crc32": "([0-9a-f]{8})"\}')  # a line: its row, and the checksum of that


def read_metrics(path: AnyPath, last_step: int = sys.maxsize) -> list[dict[str, Any]]:
  """Rows of a metrics.jsonl up to `last_step`.

  A line that a kill cut short, at the very end, is dropped; other damaged ones are too, and counted aloud.
  """
  rows: list[dict[str, Any]] = []
  damaged: list[int] = []
  *lines, last = path.read_bytes().split(b"\n") if path.exists() else [b""]
  for number, line in enumerate([*lines, last], 1):
    row = read_row(line)
    if row is None:
      damaged += [number] if number <= len(lines) else []
    elif row["step"] <= last_step:
      rows.append(row)
  if damaged:
    which = f"{len(damaged)} damaged of {len(lines)} lines (the first is line {damaged[0]})"
    logging.warning(f"{path} has {which}; they are left out: what they logged is lost, training is not")
  return rows


def read_row(line: bytes) -> dict[str, Any] | None:
  """A row of numbers without its checksum, if it has one (older rows have none); None if it is damaged."""
  checked = CHECKED.fullmatch(line)
  if checked:
    line = checked[1] + b"}"
  try:
    row = json.loads(line)
  except ValueError:  # no JSON, or not UTF-8
    return None
  numbers = isinstance(row, dict) and "step" in row and all(isinstance(v, int | float) for v in row.values())
  return row if numbers and (not checked or checksum(line) == checked[2]) else None


def checksum(row: bytes) -> bytes:
  return b"%08x" % zlib.crc32(row)


def line_of(row: dict[str, Any]) -> str:
  """A row as its line; what changes in it by itself later on, its checksum tells."""
  text = json.dumps(row)
  return f'{text[:-1]}, "crc32": "{checksum(text.encode()).decode()}"}}\n'


class MetricsLog:
  """metrics.jsonl and TensorBoard events; rows after the step that a run resumes from are dropped.

  On a disk each row is there at once. In a bucket, or a mount of one, where each change of a file uploads all
  of it, they are gathered and written by `flush`, for each checkpoint: what a kill loses of them is what the
  resumed run logs again.
  """

  def __init__(self, workdir: AnyPath, start_step: int, trackers: Sequence[Tracker] = ()):
    self.path = workdir / "metrics.jsonl"
    self.trackers = trackers
    self.rows = rows = read_metrics(self.path, start_step)  # of earlier starts
    if max((row["step"] for row in rows), default=0) < start_step:  # each checkpoint has a row
      logging.warning(
        f"{self.path} lacks rows before step {start_step}: what was logged is lost, training is not"
      )
    self.lines = [line_of(row) for row in rows]
    write_whole(self.path, "".join(self.lines))
    self.events = workdir / "tensorboard"
    self.gathered = tempfile.TemporaryDirectory() if on_object_store(workdir) else None
    self.file = None if self.gathered else self.path.open("a", encoding="utf-8")
    folder = self.gathered.name if self.gathered else str(self.events)
    with shared_memory("the log for TensorBoard"):
      self.board = SummaryWriter(folder, purge_step=start_step + 1)

  def write(self, step: int, row: dict[str, float]) -> None:
    line = line_of({"step": step, **row})
    for tracker in self.trackers:
      tracker.write(step, row)
    for name, value in row.items():
      self.board.add_scalar(name, value, step)
    if self.file is None:
      self.lines.append(line)
      return
    self.file.write(line)  # type: ignore[arg-type]
    self.file.flush()
    os.fsync(self.file.fileno())
    self.board.flush()

  def flush(self) -> None:
    """Writes what was gathered."""
    if self.gathered is None:
      return
    write_whole(self.path, "".join(self.lines))
    self.board.flush()
    self.events.mkdir(parents=True, exist_ok=True)
    for written in Path(self.gathered.name).iterdir():
      with written.open("rb") as source, (self.events / written.name).open("wb") as target:
        shutil.copyfileobj(source, target)  # type: ignore[misc]

  def close(self) -> None:
    self.board.close()  # first: it writes in a thread of its own
    self.flush()
    if self.file is not None:
      self.file.close()
    if self.gathered is not None:
      self.gathered.cleanup()
    for tracker in self.trackers:  # last: they may have to wait
      tracker.close()
