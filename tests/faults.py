"""The kinds of faults that tests.campaign tries, and what counts as a loss."""

import functools
import json
import random
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import small_disk
from tests.lives import HANGS, Life, Undisturbed, arrays, difference, end, steps

LEAVES = 60  # seconds in which a process has to end after a signal, or when its peer was killed


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

  @property
  def folder(self) -> Path:
    return self.out / self.kind

  @property
  def log(self) -> Path:
    return self.folder / "log"

  def lose(self, what: str, life: Life, workdir: Path) -> None:
    """Notes a loss, and keeps the workdir."""
    kept = self.out / "lost" / f"{self.kind}_{len(self.lost):03d}"
    if workdir.exists():
      shutil.copytree(workdir, kept, symlinks=True)
    shown = "\n".join(life.lines[-25:])
    asked = " ".join(life.command)
    self.lost.append(f"{what}\n\n`{asked}` ended with {life.codes}; {kept}\n\n```\n{shown}\n```\n")
    print(f"lost: {what} ({kept})", file=sys.stderr, flush=True)  # the table may be half an hour away


def unreadable(workdir: Path, known: set[tuple[Path, int]]) -> str:
  """What is wrong with a checkpoint that was not read before, or nothing."""
  for step in steps(workdir):
    checkpoint = workdir / "checkpoints" / str(step)
    version = (checkpoint, checkpoint.stat().st_mtime_ns)
    if version not in known:
      try:
        arrays(checkpoint)
      except Exception as error:
        return f"checkpoint {step} cannot be read: {type(error).__name__}: {str(error)[:300]}"
      known.add(version)
  return ""


def other_end(life: Life, workdir: Path, expected: dict[str, Any]) -> str:
  """What is wrong with a run that had the time to end, or nothing."""
  if any(code != 0 for code in life.codes):
    return f"it ended by itself: {life.codes}"
  try:
    different = difference(expected, end(workdir))
  except Exception as error:  # Orbax and TensorStore raise many types
    return f"its end cannot be read: {type(error).__name__}: {str(error)[:300]}"
  return f"another end than the undisturbed run's: {different}" if different else ""


def phase(life: Life, workdir: Path, expected: dict[str, Any]) -> str:
  """What a run is doing, by the look of its folder."""
  log = workdir / "metrics.jsonl"
  if not log.exists() or log.stat().st_mtime < life.began:
    return "getting ready"
  saved = set(map(str, steps(workdir)))
  if any(p.is_dir() and p.name not in saved for p in (workdir / "checkpoints").glob("*")):
    return "saving"
  rows = log.read_text().count("\n")
  if rows >= len(expected["rows"]):
    return "leaving"
  return "evaluating" if "val/" in expected["rows"][rows] else "training"


def interrupt(t: Trials, run: Undisturbed, number: int, kind: signal.Signals) -> None:
  """Signals all over one run; over another one, if it ends before or something was lost."""
  expected = end(run.workdir)
  workdir, known = t.folder / "run", set()
  t.notes["(runs)"] = 1
  victims = [[0]] if run.processes == 1 else [[0], [1], [0, 1]]
  while t.tried < number:
    fresh = run.processes == 1 and t.tried % 10 == 0
    left = 1 - max(steps(workdir), default=0) / expected["steps"]
    # So long that the last of them can reach the end; or the imports, and a little of what comes then.
    window = (run.cold if left == 1 else run.start) + left * run.work * min(1, 3 / (number - t.tried))
    moment = t.random.uniform(0, run.imports[1] + run.start / 2 if fresh else window)
    life = run.train(t.log, workdir, fresh=fresh)
    if life.wait(moment):  # nothing to interrupt
      over, wrong = True, other_end(life, workdir, expected)
      t.tried += wrong != ""  # or a start that always fails would be tried for ever
    else:
      importing = moment < 3 * run.imports[fresh] and not life.catches(kind)
      doing = "importing" if importing else phase(life, workdir, expected)
      life.signal(kind, t.random.choice(victims))
      over, wrong = False, ""
      if not life.end(LEAVES):
        t.lose(f"not all had ended {LEAVES} s after the signal, while {doing}", life, workdir)
      elif kind == signal.SIGTERM:
        wrong = not_saved(life, workdir, importing=importing, last=expected["steps"])
      t.tried += 1
      t.notes[doing] += 1
    wrong = wrong or unreadable(workdir, known)
    if wrong:
      t.lose(f"{wrong} (after {moment:.2f} s)", life, workdir)
    if wrong or over:
      shutil.rmtree(workdir, ignore_errors=True)
      t.notes["(runs)"] += 1
  life = run.train(t.log, workdir)
  life.end(HANGS + 3 * (run.start + run.work))
  if wrong := other_end(life, workdir, expected) or unreadable(workdir, known):
    t.lose(wrong, life, workdir)


def not_saved(life: Life, workdir: Path, *, importing: bool, last: int) -> str:
  """What is wrong after SIGTERM, or nothing."""
  code, saved = life.codes[0], max(steps(workdir), default=0)
  if (code == 0 and saved == last) or (code == -signal.SIGTERM and importing):
    return ""
  if code != 75:
    return f"exit code {code} on SIGTERM"
  log = workdir / "metrics.jsonl"
  rows = log.read_text().splitlines() if log.exists() else []
  logged = json.loads(rows[-1])["step"] if rows else 0
  return f"step {logged} was trained but not saved" if logged > saved else ""


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
    wrong = wrong or unreadable(disk / "run", set())
    if wrong:
      t.lose(f"{wrong} ({size} bytes)", life, disk / "run")
    small_disk.resize(disk, size + 64 * 2**20)
    life = train()
    life.end()
    if wrong := other_end(life, disk / "run", expected):
      t.lose(f"with room again: {wrong} ({size} bytes)", life, disk / "run")
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


def files(t: Trials, run: Undisturbed, number: int | None) -> None:
  """Of a finished run and of an interrupted one; all of them, or `number` drawn from them."""
  two = "--config.train.keep_checkpoints=2"
  interrupted, damaged, copy = (t.folder / name for name in ("interrupted", "damaged", "copy"))
  life = run.train(t.log, interrupted, two)
  while len(steps(interrupted)) < 2 and not life.wait(0.02):
    pass
  life.signal(signal.SIGTERM, [0])
  life.end()

  def evaluate(workdir: Path, step: str = "last") -> tuple[Life, Callable]:
    read = lambda: [(workdir / "eval/val" / name).read_text() for name in ("detections.json", "metrics.json")]
    return Life(t.log, "eval", f"--workdir={workdir}", f"--step={step}"), read

  def predict(workdir: Path, step: str = "best") -> tuple[Life, Callable]:
    pictures = workdir / "pictures"
    options = (f"--workdir={workdir}", f"--step={step}", "--split=val", f"--out={pictures}")
    return Life(t.log, "predict", *options), lambda: (pictures / "detections.json").read_text()

  def train(workdir: Path) -> tuple[Life, Callable]:
    return run.train(t.log, workdir, two), lambda: end(workdir)

  def intact(source: Path, start: Callable, *step: str) -> tuple[Any, set[str]]:
    """The right result, and what is said beside it."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy)
    life, read = start(copy, *step)
    assert life.end() and life.codes == [0], life.text
    return read(), {masked(line) for line in life.lines}

  @functools.cache
  def of_each_step(start: Callable) -> list[Any]:
    return [intact(run.workdir, start, str(step))[0] for step in steps(run.workdir)]

  def acceptable(start: Callable, result: Any, right: Any) -> bool:
    """With a warning: another checkpoint's detections; the same end but for lines of metrics.jsonl."""
    return difference(right, result) == "rows" if start is train else result in of_each_step(start)

  right = {start: intact(run.workdir, start) for start in (evaluate, predict)}
  right[train] = intact(interrupted, train)
  if different := difference(end(run.workdir), right[train][0]):
    raise AssertionError(f"the interrupted run ends otherwise, undamaged: {different}")
  trials = []
  for source, starts in ((run.workdir, (evaluate, predict)), (interrupted, (train,))):
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
      for damage, content in damages(path.read_bytes(), t.random).items():
        trials += [(source, path.relative_to(source), damage, content, start) for start in starts]
  for source, name, damage, content, start in t.random.sample(trials, number) if number else trials:
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(source, damaged)
    for path in (damaged / "eval").rglob("*.json"):  # or a result of before could be taken for one
      path.unlink()
    if content is not None:
      (damaged / name).write_bytes(content)
    else:
      (damaged / name).unlink(missing_ok=True)
    life, read = start(damaged)
    ended = life.end()
    t.tried += 1
    expected, usual = right[start]
    try:
      result = read() if ended and life.codes == [0] else None
    except Exception:  # there is none, or a damaged one
      result = None
    if result == expected:
      t.notes["the right result"] += 1
    elif ended and life.clear_line():
      t.notes["refused in one line"] += 1
    elif result and speaks_of(name, life, usual) and acceptable(start, result, expected):
      t.notes["with a warning, another checkpoint's result or less history"] += 1
    else:
      what = "another result, in silence" if result else "no clear line, no result"
      if result and start is train:
        what += f" ({difference(expected, result)})"
      t.lose(f"{what}: {start.__name__}, {name} {damage}", life, damaged)


def masked(line: str) -> str:
  return re.sub(r"\d+", "", line)


def speaks_of(name: Path, life: Life, usual: set[str]) -> bool:
  """Whether a line that is usually not there names the file, or its checkpoint."""
  new = [line for line in life.lines if masked(line) not in usual]
  names = [name.name, "/".join(name.parts[:2])]
  return any(n in line for n in names for line in new)
