"""Runs of `iou-det` that are watched, ended and compared with an undisturbed one: for tests.campaign."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests import command

FRESH = "from iou_det.cli import main; main()"
CONFIG = """
import json
from ml_collections import ConfigDict
from iou_det.config import from_dict
get_config = lambda: from_dict(json.loads({!r}))
"""
HANGS = 120  # seconds; a command takes two
SPEEDS = {
  "images_per_second",
  "input_wait_share",
  "val/seconds",
  "crc32",
}  # the last is of the row with these


class Life:
  """A command from its start to its end: a process, or several that train together."""

  def __init__(self, log: Path, *arguments: Any, processes: int = 1, fresh: bool = False):
    with socket.socket() as s:
      s.bind(("127.0.0.1", 0))
      port = s.getsockname()[1]
    self.command = ["iou-det", *map(str, arguments)]
    self.logs = [log.with_name(f"{log.name}_{i}.txt") for i in range(processes)]
    self.codes: list[int | None] = [None] * processes
    self.polls: list[Callable[[], int | None]] = []
    self.pids = []
    self.began = time.time()
    for i, errors in enumerate(self.logs):
      peers = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(processes)}
      environment = peers | {"JAX_PROCESS_ID": str(i)} if processes > 1 else {}
      errors.unlink(missing_ok=True)
      if fresh:
        started = subprocess.Popen(
          [sys.executable, "-c", FRESH, *self.command[1:]], env=os.environ | environment, process_group=0,
          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors.open("w"))  # fmt: skip
        self.pids.append(started.pid)
        self.polls.append(started.poll)
      else:
        pid = command.start(*arguments, out=log.with_name("out.txt"), errors=errors, **environment)
        self.pids.append(pid)
        self.polls.append(lambda pid=pid: command.poll(pid))

  def wait(self, seconds: float = HANGS) -> bool:
    """Whether all have ended."""
    until = time.monotonic() + seconds
    while True:
      self.codes = [p() if c is None else c for c, p in zip(self.codes, self.polls, strict=True)]
      if None not in self.codes or time.monotonic() > until:
        return None not in self.codes
      time.sleep(0.005)

  def signal(self, number: int, which: list[int]) -> None:
    for i in which:
      if self.codes[i] is None:
        os.killpg(self.pids[i], number)

  def end(self, seconds: float = HANGS) -> bool:
    """Like `wait`, but what has not ended is killed."""
    ended = self.wait(seconds)
    self.signal(signal.SIGKILL, list(range(len(self.pids))))
    return ended or not self.wait()

  def catches(self, number: int) -> bool:
    """Whether the process has a handler of its own for a signal by now."""
    status = Path(f"/proc/{self.pids[0]}/status").read_text()
    return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (number - 1) & 1)

  @property
  def text(self) -> str:
    return "\n".join(log.read_text(errors="replace") for log in self.logs if log.exists())

  @property
  def lines(self) -> list[str]:
    return [line for line in re.split(r"[\r\n]+", self.text) if line.strip()]

  def clear_line(self) -> bool:
    """Whether it ended with exit code 2 and one line, beside the log's own and the bar of progress."""
    other = [line for line in self.lines if not re.match(r"\d\d:\d\d:\d\d |(train|eval)\w*:? ", line)]
    return self.codes == [2] and len(other) == 1 and other[0].startswith(f"iou-det {self.command[1]}: ")


def steps(workdir: Path) -> list[int]:
  """Of the finished checkpoints: Orbax writes this file last, or renames the folder when it is in there."""
  found = (workdir / "checkpoints").glob("*/commit_success.txt")
  return sorted(int(p.parent.name) for p in found if p.parent.name.isdigit())


def arrays(checkpoint: Path) -> dict[str, str]:
  """What each array of a checkpoint is, by Orbax alone."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.metadata(checkpoint / "state").item_metadata.tree
    plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    stored = reader.restore(checkpoint / "state", restore_args=plain)
  content = lambda x: f"{x.dtype} {x.shape} {hashlib.sha256(np.ascontiguousarray(x)).hexdigest()}"
  return {jax.tree_util.keystr(k): content(x) for k, x in jax.tree_util.tree_leaves_with_path(stored)}


def end(workdir: Path) -> dict[str, Any]:
  """What a finished run leaves, by name."""
  last = steps(workdir)[-1]
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  rows = [json.dumps({k: v for k, v in row.items() if k not in SPEEDS}) for row in rows]
  found = (workdir / "eval/val/detections.json").read_text()
  return {"steps": last, "arrays": arrays(workdir / "checkpoints" / str(last)), "rows": rows, "found": found}


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
  """The names of what differs."""
  return ", ".join(name for name in one if one[name] != other[name])


class Undisturbed(NamedTuple):
  arguments: tuple[str, ...]  # of `iou-det train`, but for the workdir
  processes: int
  workdir: Path
  again: Path  # another one, that must be the same
  cold: float  # seconds until it trains when nothing is compiled,
  start: float  # when all is,
  work: float  # and that it trains then
  imports: tuple[float, float]  # seconds until a command knows its flags: forked, and fresh

  def train(self, log: Path, workdir: Path, *more: str, fresh: bool = False) -> Life:
    arguments = [*self.arguments, f"--workdir={workdir}", *more]
    return Life(log, *arguments, processes=self.processes, fresh=fresh)


def undisturbed(out: Path, name: str, config: Any, processes: int) -> Undisturbed:
  """Runs it twice, as fast as it is when all is compiled; and a third time, with nothing left to train."""
  file = out / f"{name}.py"
  file.write_text(CONFIG.format(json.dumps(config.to_dict())))
  folders = [out / f"{name}_{i}" for i in range(2)]
  arguments = ("train", f"--config={file}", *["--distributed"] * (processes > 1))
  run = Undisturbed(arguments, processes, *folders, 0, 0, 0, (0, 0))

  def seconds(start: Callable[[], Life]) -> float:
    began = time.monotonic()
    life = start()
    assert life.end(10 * HANGS) and not any(life.codes), f"{life.command}: {life.codes}\n{life.text}"
    return time.monotonic() - began

  log = out / "log"
  first, second = (seconds(lambda folder=folder: run.train(log, folder)) for folder in folders)
  start = seconds(lambda: run.train(log, folders[1]))
  imports = [
    seconds(lambda fresh=fresh: Life(log, "train", "--help", fresh=fresh)) for fresh in (False, True)
  ]
  work = max(second - start, 1)
  return run._replace(cold=max(first - work, start), start=start, work=work, imports=tuple(imports))
