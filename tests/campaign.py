"""Faults on purpose, at moments and places that a seed draws: how many a run survives, as a table.

  python -m tests.campaign --out=DIR [--seed=0] [--only=kill,sigterm] [--short]

Compared are with an undisturbed run, to the bit: the arrays of the last checkpoint, read by Orbax alone, every
line of metrics.jsonl (but for speeds), and detections.json. Kinds of faults, each in a process of its own, two
at a time:

  kill       SIGKILL, all over one run of one process; kill_two: of one or both of two processes
  sigterm    SIGTERM, all over one run: saved, exit code 75
  full_disk  a disk of a random size: one clear line, and with more room the same command goes on
  files      each file of a workdir deleted, cut to half, with three bytes or one digit changed: evaluation,
             prediction (--step=best) and training say so in a line, or give the right result

A loss is a checkpoint that cannot be read, a start that is refused, another end, a wrong exit code or message,
a process that does not end; DIR/lost.md and DIR/lost/ have what is needed to look into it. The exit code is 1
then. Compiled programs are kept in DIR for each kind of fault; `kill` begins without any, so that it hits the
writing of that cache too (two processes on CPUs have none). Every tenth start of `kill` and `sigterm` is a
fresh interpreter, for the time in which it imports; the others are forked from one that has imported all.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests import command, small_disk

FRESH = "from iou_det.cli import main; main()"
CONFIG = """
import json
from ml_collections import ConfigDict
from iou_det.config import from_dict
get_config = lambda: from_dict(json.loads({!r}))
"""
HANGS = 120  # seconds; a command takes two
LEAVES = 60  # seconds in which a process has to end when its peer was killed
SPEEDS = {"images_per_second", "input_wait_share"}


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
  start: float  # seconds until it trains,
  work: float  # and that it trains then
  imports: tuple[float, float]  # seconds until a command knows its flags: forked, and fresh

  def train(self, log: Path, workdir: Path, *more: str, fresh: bool = False) -> Life:
    arguments = [*self.arguments, f"--workdir={workdir}", *more]
    return Life(log, *arguments, processes=self.processes, fresh=fresh)


@dataclass
class Trials:
  """What was tried of one kind, and its outcome."""

  kind: str
  out: Path
  random: random.Random
  tried: int = 0
  lost: list[str] = field(default_factory=list)
  notes: Counter[str] = field(default_factory=Counter)
  not_run: str = ""
  seconds: float = 0.0

  @property
  def folder(self) -> Path:
    return self.out / self.kind

  @property
  def log(self) -> Path:
    return self.folder / "log"

  def lose(self, what: str, life: Life, workdir: Path) -> None:
    """Notes a loss, keeps the workdir."""
    kept = self.out / "lost" / f"{self.kind}_{len(self.lost):03d}"
    if workdir.exists():
      shutil.copytree(workdir, kept, symlinks=True)
    shown = "\n".join(life.lines[-25:])
    asked = " ".join(life.command)
    self.lost.append(f"{what}\n\n`{asked}` ended with {life.codes}; {kept}\n\n```\n{shown}\n```\n")

  def unreadable(self, workdir: Path, known: set[Path]) -> str:
    """Reads the checkpoints that it does not know; what is wrong with one, or nothing."""
    for step in steps(workdir):
      checkpoint = workdir / "checkpoints" / str(step)
      if checkpoint not in known:
        try:
          arrays(checkpoint)
        except Exception as error:
          return f"checkpoint {step} cannot be read: {type(error).__name__}: {str(error)[:300]}"
        known.add(checkpoint)
    return ""


def phase(life: Life, workdir: Path, expected: dict[str, Any]) -> str:
  """What a run is doing, by the look of its folder."""
  log = workdir / "metrics.jsonl"
  if not log.exists() or log.stat().st_mtime < life.began:
    return "getting ready"
  saved = set(map(str, steps(workdir)))
  if any(p.is_dir() and p.name not in saved for p in (workdir / "checkpoints").glob("*")):
    return "saving"
  rows = log.read_text().count("\n")
  return "evaluating" if rows < len(expected["rows"]) and "val/" in expected["rows"][rows] else "training"


def interrupt(t: Trials, run: Undisturbed, number: int, kind: signal.Signals) -> None:
  """Signals all over one run (over another one, if it ends before): the later, the more is left to train."""
  expected = end(run.workdir)
  workdir, known = t.folder / "run", set()
  runs = 1

  def finish(life: Life) -> None:
    if life.codes != [0] * run.processes:
      t.lose(f"the run cannot be finished: {life.codes}", life, workdir)
    elif wrong := t.unreadable(workdir, known):
      t.lose(wrong, life, workdir)
    elif different := difference(expected, end(workdir)):
      t.lose(f"another end than the undisturbed run's: {different}", life, workdir)
    again()

  def again() -> None:
    shutil.rmtree(workdir, ignore_errors=True)
    known.clear()

  while t.tried < number:
    fresh = run.processes == 1 and t.tried % 10 == 0
    left = 1 - max(steps(workdir), default=0) / expected["steps"]
    window = run.start + 3 * left * run.work / (number - t.tried)
    if fresh:  # its imports, and a little of what comes then
      window = run.imports[1] + run.start / 2
    moment = t.random.uniform(0, window)
    victims = [[0]] if run.processes == 1 else [[0], [1], [0, 1]]
    which = t.random.choice(victims)
    life = run.train(t.log, workdir, fresh=fresh)
    if life.wait(moment):
      if life.codes == [0] * run.processes:  # nothing to interrupt
        runs += 1
        finish(life)
      else:
        t.tried += 1
        t.lose("it ended by itself", life, workdir)
        again()
      continue
    importing = moment < 3 * run.imports[fresh] and not life.catches(kind)
    doing = "importing" if importing else phase(life, workdir, expected)
    life.signal(kind, which)
    t.tried += 1
    began = time.monotonic()
    ended = life.end(LEAVES)
    t.notes[doing] += 1
    t.notes["longest wait for the end, s"] = max(
      t.notes["longest wait for the end, s"], round(time.monotonic() - began)
    )
    wrong = "" if ended else f"it had not ended {LEAVES} s after the signal"
    if kind == signal.SIGTERM and not wrong:
      right = [75, *[-signal.SIGTERM] * importing, *[0] * (steps(workdir)[-1:] == [expected["steps"]])]
      if any(code not in right for code in life.codes):
        wrong = f"exit codes {life.codes} after {moment:.2f} s, while {doing}"
      elif life.codes == [75]:
        wrong = unsaved(workdir)
    wrong = wrong or t.unreadable(workdir, known)
    if wrong:
      t.lose(wrong, life, workdir)
      again()
  life = run.train(t.log, workdir)
  life.end(HANGS + 3 * (run.start + run.work))
  finish(life)
  t.notes["runs"] = runs


def unsaved(workdir: Path) -> str:
  """The last step in metrics.jsonl, if no checkpoint has it."""
  log = workdir / "metrics.jsonl"
  rows = log.read_text().splitlines() if log.exists() else []
  logged = json.loads(rows[-1])["step"] if rows else 0
  return f"step {logged} was trained but not saved" if logged > max(steps(workdir), default=0) else ""


def full_disk(t: Trials, run: Undisturbed, number: int) -> None:
  """Disks that hold nothing, up to almost all checkpoints of the run."""
  if small_disk.namespace() is None:
    t.not_run = "not run: no tmpfs can be mounted"
    return
  expected = end(run.workdir)
  last = run.workdir / "checkpoints" / str(expected["steps"])
  pages = sum(-(-p.stat().st_size // 4096) for p in last.rglob("*"))
  epochs = sum("val/" in row for row in expected["rows"])
  for _ in range(number):
    size = 4096 * t.random.randrange(1, int(0.95 * epochs * pages))
    disk = t.folder / "disk"
    small_disk.mount(disk, size)
    train = lambda workdir=disk / "run": run.train(t.log, workdir, "--config.train.keep_checkpoints=99")
    life = train()
    ended = life.end()
    t.tried += 1
    t.notes[f"after {len(steps(disk / 'run'))} checkpoints"] += 1
    wrong = "" if ended else "it does not end on a full disk"
    if not wrong and not (life.clear_line() and re.search(r"\bspace\b|\broom\b|\bfull\b", life.lines[-1])):
      wrong = "no clear line, with exit code 2, on a full disk"
    wrong = wrong or t.unreadable(disk / "run", set())
    if wrong:
      t.lose(f"{wrong} ({size} bytes)", life, disk / "run")
    small_disk.resize(disk, size + 64 * 2**20)
    life = train()
    if not life.end() or life.codes != [0]:
      t.lose(f"it does not go on when there is room again ({size} bytes)", life, disk / "run")
    elif different := difference(expected, end(disk / "run")):
      t.lose(f"another end with room again than the undisturbed run's: {different}", life, disk / "run")
    small_disk.unmount(disk)


def damages(content: bytes, random: random.Random) -> dict[str, bytes | None]:
  """What may become of a file."""
  damaged: dict[str, bytes | None] = {"deleted": None, "cut to half": content[: len(content) // 2]}
  flipped = bytearray(content)
  for place in random.sample(range(len(content)), min(3, len(content))):
    flipped[place] ^= random.randrange(1, 256)
  damaged["bytes flipped"] = bytes(flipped)
  digits = [m.start() for m in re.finditer(rb"\d", content)]
  if content.isascii() and digits:
    changed = bytearray(content)
    changed[random.choice(digits)] ^= 1  # another digit
    damaged["a digit changed"] = bytes(changed)
  return damaged


def files(t: Trials, run: Undisturbed, number: int) -> None:
  """Of a finished run and of an interrupted one; all of them, or `number` drawn from them."""
  interrupted = t.folder / "interrupted"
  life = run.train(t.log, interrupted)
  while len(steps(interrupted)) < 2 and not life.wait(0.02):
    pass
  life.signal(signal.SIGTERM, [0])
  life.end()
  workdir, pictures = t.folder / "run", t.folder / "pictures"
  known = [str(step) for step in steps(run.workdir)]

  def evaluate(step: str = "last") -> tuple[Life, Callable]:
    read = lambda: [(workdir / "eval/val" / name).read_text() for name in ("detections.json", "metrics.json")]
    return Life(t.log, "eval", f"--workdir={workdir}", f"--step={step}"), read

  def predict(step: str = "best") -> tuple[Life, Callable]:
    shutil.rmtree(pictures, ignore_errors=True)
    options = (f"--workdir={workdir}", f"--step={step}", "--split=val", f"--out={pictures}")
    return Life(t.log, "predict", *options), lambda: (pictures / "detections.json").read_text()

  def train() -> tuple[Life, Callable]:
    return run.train(t.log, workdir), lambda: end(workdir)

  def copied(source: Path, start: Callable, *step: str) -> tuple[Any, set[str]]:
    """The right result and what is said beside it."""
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(source, workdir)
    life, read = start(*step)
    assert life.end() and life.codes == [0], life.text
    return read(), {masked(line) for line in life.lines}

  others = {start: [copied(run.workdir, start, step)[0] for step in known] for start in (evaluate, predict)}
  intact = {start: copied(run.workdir, start) for start in (evaluate, predict)}
  intact[train] = copied(interrupted, train)
  if intact[predict][0] == others[predict][-1]:
    t.notes["(the best checkpoint was the last)"] = 1
  if different := difference(end(run.workdir), intact[train][0]):
    raise AssertionError(f"the interrupted run ends otherwise, undamaged: {different}")

  trials = []
  for source, starts in ((run.workdir, (evaluate, predict)), (interrupted, (train,))):
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
      for damage, content in damages(path.read_bytes(), t.random).items():
        trials += [(source, path.relative_to(source), damage, content, start) for start in starts]
  for source, name, damage, content, start in t.random.sample(trials, number) if number else trials:
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(source, workdir)
    (workdir / name).unlink() if content is None else (workdir / name).write_bytes(content)
    life, read = start()
    ended = life.end()
    t.tried += 1
    right, usual = intact[start]
    result = read() if ended and life.codes == [0] else None
    if result == right and result:
      t.notes["the right result"] += 1
    elif ended and life.clear_line():
      t.notes["refused in one line"] += 1
    elif result and speaks_of(name, life, usual) and acceptable(result, right, others.get(start)):
      t.notes["an earlier checkpoint's right result, or less history, with a warning"] += 1
    else:
      what = "no clear line, no result" if not result else "another result, in silence"
      if result and isinstance(result, dict):
        what += f" ({difference(right, result)})"
      t.lose(f"{what}: {start.__name__}, {name} {damage}", life, workdir)


def masked(line: str) -> str:
  return re.sub(r"\d+", "", line)


def speaks_of(name: Path, life: Life, usual: set[str]) -> bool:
  """Whether a line that is usually not there names the file, or its checkpoint."""
  new = [line for line in life.lines if masked(line) not in usual]
  names = [name.name, "/".join(name.parts[:2])]
  return any(n in line for n in names for line in new)


def acceptable(result: Any, right: Any, others: list | None) -> bool:
  """With a warning: an earlier checkpoint's detections; the same end but for lines of metrics.jsonl."""
  if others is not None:
    return result in others
  return difference(right, result) == "rows"


class Kind(NamedTuple):
  title: str
  run: str
  trials: Callable[[Trials, Undisturbed, int], None]
  number: int  # 0: all there are
  short: int


KINDS = {
  "kill": Kind("SIGKILL, one process", "long", lambda t, r, n: interrupt(t, r, n, signal.SIGKILL), 100, 4),
  "kill_two": Kind("SIGKILL, two processes", "two", lambda t, r, n: interrupt(t, r, n, signal.SIGKILL), 20, 0),
  "sigterm": Kind("SIGTERM", "long", lambda t, r, n: interrupt(t, r, n, signal.SIGTERM), 50, 3),
  "full_disk": Kind("full disk", "small", full_disk, 20, 2),
  "files": Kind("damaged files", "small", files, 0, 8),
}


def undisturbed(out: Path, name: str, config: Any, *, epochs: int, every: int, processes: int) -> Undisturbed:
  """Runs it twice, as fast as it is when all is compiled; and a third time, with nothing left to train."""
  config.train.update(epochs=epochs, eval_epochs=every, checkpoint_epochs=every)
  config.mesh.fsdp = processes  # parameters lie in all
  file = out / f"{name}.py"
  file.write_text(CONFIG.format(json.dumps(config.to_dict())))
  folders = [out / f"{name}_{i}" for i in range(2)]
  arguments = ("train", f"--config={file}", *["--distributed"] * (processes > 1))
  run = Undisturbed(arguments, processes, *folders, 0, 0, (0, 0))

  def seconds(start: Callable[[], Life]) -> float:
    began = time.monotonic()
    life = start()
    assert life.end() and not any(life.codes), f"{life.command}: {life.codes}\n{life.text}"
    return time.monotonic() - began

  log = out / "log"
  whole = [seconds(lambda folder=folder: run.train(log, folder)) for folder in folders][-1]
  start = seconds(lambda: run.train(log, folders[1]))
  imports = [seconds(lambda fresh=fresh: Life(log, "train", "--help", fresh=fresh)) for fresh in (False, True)]
  return run._replace(start=start, work=max(whole - start, 1), imports=tuple(imports))


def tried(t: Trials, kind: Kind, run: Undisturbed, number: int, two_at_a_time: Any) -> None:
  """In a process of its own: writes its Trials as JSON."""
  with two_at_a_time:
    began = time.monotonic()
    command.server.cache_clear()  # the parent's
    t.folder.mkdir()
    cache = t.folder / "cache"
    if t.kind != "kill":
      shutil.copytree(os.environ["JAX_COMPILATION_CACHE_DIR"], cache)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    try:
      if different := difference(end(run.workdir), end(run.again)):
        raise AssertionError(f"two undisturbed runs differ: {different}")
      kind.trials(t, run, number)
    except Exception:
      t.lost.append(f"the campaign itself failed:\n\n```\n{traceback.format_exc()}\n```\n")
    t.seconds = time.monotonic() - began
    row = {"tried": t.tried, "lost": t.lost, "notes": t.notes, "not_run": t.not_run, "seconds": t.seconds}
    (t.out / f"{t.kind}.json").write_text(json.dumps(row))


def table(kinds: list[str], out: Path) -> str:
  head = ["| fault | tried | survived | lost | seconds |", "|---|---:|---:|---:|---:|"]
  notes = []
  for name in kinds:
    row = json.loads((out / f"{name}.json").read_text())
    lost = len(row["lost"])
    numbers = (row["tried"], max(row["tried"] - lost, 0), lost)
    shown = [row["not_run"], "", ""] if row["not_run"] else map(str, numbers)
    head.append(f"| {KINDS[name].title} | {' | '.join(shown)} | {row['seconds']:.0f} |")
    if row["notes"]:
      counted = ", ".join(f"{what} {n}" for what, n in sorted(row["notes"].items()))
      notes.append(f"- {KINDS[name].title}: {counted}")
  return "\n".join([*head, "", *notes])


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=Path, required=True, help="a new folder")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", default=",".join(KINDS), help="kinds of faults")
  parser.add_argument("--short", action="store_true", help="a minute: a few of each, one process only")
  given = parser.parse_args()
  numbers = {name: (KINDS[name].short if given.short else KINDS[name].number) for name in given.only.split(",")}
  kinds = [name for name in numbers if numbers[name] or not given.short]
  out = given.out.absolute()
  out.mkdir(parents=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(out / "cache")
  began = time.monotonic()

  from iou_det.data.shapes import Shapes, export_coco
  from tests.tiny import tinier_config

  for split, images in (("train", 32), ("val", 13)):
    export_coco(Shapes(split, images=images, height=64, width=96), out / "shapes")
  sizes = {"long": (40, 2, 1, 0.005), "two": (12, 1, 2, 0.005), "small": (4, 1, 1, 10.0)}
  runs = {}
  for name in kinds:
    wanted = "small" if given.short else KINDS[name].run
    epochs, every, processes, minutes = sizes[wanted]
    if wanted not in runs:
      config = tinier_config(out / "shapes")
      # AdamW: more state, and scores above 0, of which the best is not the last.
      config.train.update(optimizer="adamw", learning_rate=0.004, log_every=1, keep_checkpoints=1)
      config.train.checkpoint_minutes = minutes
      runs[wanted] = undisturbed(out, wanted, config, epochs=epochs, every=every, processes=processes)
    runs[name] = runs[wanted]

  fork = multiprocessing.get_context("fork")
  two_at_a_time = fork.Semaphore(2)
  started = []
  for name in kinds:
    t = Trials(name, out, random.Random(f"{given.seed} {name}"))
    started.append(fork.Process(target=tried, args=(t, KINDS[name], runs[name], numbers[name], two_at_a_time)))
    started[-1].start()
  for process in started:
    process.join()

  losses = {name: json.loads((out / f"{name}.json").read_text())["lost"] for name in kinds}
  text = "\n".join(f"## {KINDS[name].title}: {what}" for name, several in losses.items() for what in several)
  (out / "lost.md").write_text(text)
  print(table(kinds, out))
  print(f"\n{time.monotonic() - began:.0f} s in all on {os.cpu_count()} cores, seed {given.seed}", end="")
  print(f"; what was lost: {out / 'lost.md'}" if text else "")
  return 1 if text else 0


if __name__ == "__main__":
  if "IOU_DET_CAMPAIGN" in os.environ:
    sys.exit(main())
  # Itself, where it may mount, and so that JAX starts everywhere in the same way.
  again = [*(small_disk.namespace() or ()), sys.executable, "-m", "tests.campaign", *sys.argv[1:]]
  flags = f"--xla_force_host_platform_device_count=1 {command.COMPILE_QUICKLY}"
  ours = {
    "IOU_DET_CAMPAIGN": "1", "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(command.ROOT),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # fmt: skip
  os.execvpe(again[0], again, os.environ | ours)
