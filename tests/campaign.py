"""Faults on purpose, at moments and places that a seed draws: how many a run survives, as a table.

  python -m tests.campaign --out=DIR [--seed=0] [--only=kill,sigterm] [--short]

Every end is compared with an undisturbed run's, to the bit: the arrays of the last checkpoint, read by Orbax
alone, all lines of metrics.jsonl (but for speeds) and detections.json. Kinds of faults, two at a time:

  kill       SIGKILL, all over one run of one process; kill_two: of one or both of two processes
  sigterm    SIGTERM, all over one run: all steps are saved, exit code 75
  full_disk  a disk of a random size: one clear line, and with more room the same command goes on
  files      each file of a workdir deleted, cut to half, with three bytes or one digit changed: evaluation,
             prediction (--step=best) and training say so in a line, or give the right result

Lost is: a checkpoint that cannot be read, a start that is refused, another end, a wrong exit code or message,
a process that does not end. The exit code is 1 then, and DIR/lost.md and DIR/lost/ have what led to it.
Each kind of fault has compiled programs of its own in DIR; in full, `kill` begins without any, so that the
writing of that cache is hit too (on CPUs two processes keep none). Every tenth start of `kill` and `sigterm`
is a fresh interpreter, whose imports are hit; the others are forked from one that has imported all. The seed
fixes what is drawn, not what it hits: machines differ in speed, and Orbax names its files at random.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging as absl_logging

from tests import command, small_disk
from tests.faults import Trials, files, full_disk, interrupt
from tests.lives import Undisturbed, difference, end, undisturbed


class Kind(NamedTuple):
  title: str
  run: str  # in RUNS; the short form has "short" for all
  trials: Callable[[Trials, Undisturbed, int], None]
  number: int | None  # None: all there are
  short: int  # the number in the short form


class Size(NamedTuple):
  """Of a run: 4 steps an epoch."""

  epochs: int
  every: int  # epochs until it is scored and saved
  minutes: float  # until it is saved
  processes: int = 1


KINDS = {
  "kill": Kind("SIGKILL, one process", "long", partial(interrupt, kind=signal.SIGKILL), 100, 1),
  "kill_two": Kind("SIGKILL, two processes", "two", partial(interrupt, kind=signal.SIGKILL), 20, 0),
  "sigterm": Kind("SIGTERM", "long", partial(interrupt, kind=signal.SIGTERM), 50, 1),
  "full_disk": Kind("full disk", "small", full_disk, 20, 1),
  "files": Kind("damaged files", "small", files, None, 3),
}


RUNS = {
  "long": Size(epochs=40, every=2, minutes=0.005),
  "two": Size(epochs=12, every=1, minutes=0.005, processes=2),
  "small": Size(epochs=4, every=1, minutes=10),
  "short": Size(epochs=3, every=1, minutes=0.005),
}


def trials(t: Trials, kind: Kind, run: Undisturbed, number: int | None, two_at_a_time: Any) -> None:
  """In a process of its own: writes its Trials as JSON."""
  with two_at_a_time:
    began = time.monotonic()
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax warns of files that it does not need
    command.server.cache_clear()  # the parent's
    t.folder.mkdir()
    cache = t.folder / "cache"
    if t.kind != "kill" or number == kind.short:
      shutil.copytree(os.environ["JAX_COMPILATION_CACHE_DIR"], cache)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    try:
      if different := difference(end(run.workdir), end(run.again)):
        raise AssertionError(f"two undisturbed runs differ: {different}")
      kind.trials(t, run, number)
    except Exception:
      t.lost.append(f"the campaign itself failed\n\n```\n{traceback.format_exc()}\n```\n")
    outcome = {name: getattr(t, name) for name in ("tried", "lost", "notes", "not_run")}
    outcome["seconds"] = time.monotonic() - began
    (t.out / f"{t.kind}.json").write_text(json.dumps(outcome))


def table(outcomes: dict[str, dict[str, Any]]) -> str:
  rows = ["| fault | tried | survived | lost | seconds |", "|---|---:|---:|---:|---:|"]
  notes = []
  for name, o in outcomes.items():
    title, lost = KINDS[name].title, len(o["lost"])
    numbers = [o["not_run"], "", ""] if o["not_run"] else [o["tried"], max(o["tried"] - lost, 0), lost]
    rows.append(f"| {title} | {' | '.join(map(str, numbers))} | {o['seconds']:.0f} |")
    if o["notes"]:
      notes.append(f"- {title}: " + ", ".join(f"{what} {n}" for what, n in sorted(o["notes"].items())))
  return "\n".join([*rows, "", *notes])


def undisturbed_run(out: Path, name: str) -> Undisturbed:
  from tests.tiny import tinier_config  # imports JAX

  size = RUNS[name]
  config = tinier_config(out / "shapes")
  # AdamW: more state, and scores above 0, of which the best is not the last.
  config.train.update(optimizer="adamw", learning_rate=0.004, log_every=1, keep_checkpoints=1)
  config.train.update(epochs=size.epochs, eval_epochs=size.every, checkpoint_epochs=size.every)
  config.train.checkpoint_minutes = float(size.minutes)
  return undisturbed(out, name, config, size.processes)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=Path, required=True, help="a new folder")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
  parser.add_argument("--short", action="store_true", help="a minute: a few of each, one process only")
  given = parser.parse_args()
  kinds = [name for name in given.only.split(",") if not given.short or KINDS[name].short]
  out = given.out.absolute()
  out.mkdir(parents=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(out / "cache")
  began = time.monotonic()

  from iou_det.data.shapes import Shapes, export_coco

  for split, images in (("train", 32), ("val", 13)):
    export_coco(Shapes(split, images=images, height=64, width=96), out / "shapes")
  needed = {name: "short" if given.short else KINDS[name].run for name in kinds}
  runs = {size: undisturbed_run(out, size) for size in dict.fromkeys(needed.values())}

  fork = multiprocessing.get_context("fork")
  two_at_a_time = fork.Semaphore(2)
  started = []
  for name in reversed(kinds):  # the longest first
    kind, t = KINDS[name], Trials(name, out, random.Random(f"{given.seed} {name}"))
    number = kind.short if given.short else kind.number
    started.append(fork.Process(target=trials, args=(t, kind, runs[needed[name]], number, two_at_a_time)))
    started[-1].start()
  for process in started:
    process.join()

  died = {"tried": 0, "lost": ["its process died"], "notes": {}, "not_run": "", "seconds": 0}
  paths = {name: out / f"{name}.json" for name in kinds}
  outcomes = {name: json.loads(path.read_text()) if path.exists() else died for name, path in paths.items()}
  print(table(outcomes))
  print(f"\n{time.monotonic() - began:.0f} s in all on {os.cpu_count()} cores, seed {given.seed}")
  lost = "\n".join(f"## {KINDS[name].title}: {what}" for name, o in outcomes.items() for what in o["lost"])
  (out / "lost.md").write_text(lost)
  if lost:
    print(f"what was lost: {out / 'lost.md'}")
  return 1 if lost else 0


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
