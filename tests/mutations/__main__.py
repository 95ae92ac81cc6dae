"""Files as people bring them, only worse: annotations and pictures that a seed mutates, through every way in.

  python -m tests.mutations --out=DIR [--seed=0] [--only=coco,png] [--number=N] [--jobs=2] [--short]
  python -m tests.mutations --out=DIR --replay=FAULT        the input of a fault once more

10,000 annotation files (COCO, VOC, YOLO, CSV of two kinds) and 10,000 pictures (JPEG, PNG, WebP, TIFF, BMP),
with one to three mutations each, go through `prepare` (and --skip_bad where it refuses), reading in place,
the truth of an evaluation and predict without its network. Each has to be taken and right, or refused in one
line with exit code 2. Right is what slow readers say that share nothing with the package (`oracle`, `judge`).
A fault is anything else: a traceback, a signal, 10 s of processor time, 2 GiB, something half-written, ways
that disagree. DIR gets table.md and, for each kind of fault, a few folders with the input, what the commands
said and what is wrong with that. The exit code is 1 if there are faults.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from tests.mutations import judge, labels, oracle, pictures, ways


class Kind(NamedTuple):
  title: str
  number: int
  short: int


KINDS = {
  "coco": Kind("COCO JSON", 4000, 30),
  "voc": Kind("Pascal VOC XML", 2000, 10),
  "yolo": Kind("YOLO txt and data.yaml", 2000, 10),
  "csv": Kind("CSV, TensorFlow's tutorials", 1000, 10),
  "retinanet": Kind("CSV, RetinaNet's", 1000, 10),
  "jpeg": Kind("JPEG", 2500, 10),
  "png": Kind("PNG", 2500, 16),
  "webp": Kind("WebP", 1500, 10),
  "tiff": Kind("TIFF", 2000, 10),
  "bmp": Kind("BMP", 1500, 10),
}
EXAMPLES = 3  # folders kept of a kind of fault, by each worker


class Case(NamedTuple):
  kind: str
  number: int
  mutations: list[str]
  verdict: str  # of prepare: accepted, refused, or fault
  dropped: bool  # --skip_bad made a dataset of what was refused
  faults: list[tuple[str, str]]  # way, what
  notes: list[tuple[str, str]]  # what is no fault, but worth a look
  seconds: float  # of the processor


def outcomes_of(kind: str, folder: Path, scratch: Path, clean: Any) -> list[ways.Outcome]:
  """Of a folder that holds one case."""
  done = [ways.prepare(folder, kind, scratch)]
  if done[0].code != 0:
    done.append(ways.prepare(folder, kind, scratch, skip_bad=True))
  if kind in pictures.SUFFIX:
    done += [ways.place(folder, scratch), ways.predict(folder / "train", scratch)]
    return done
  done.append(ways.place(folder, scratch))
  if kind == "coco":
    done.append(ways.truth(clean, folder / "annotations" / "instances_train.json", scratch))
  return done


def examine(kind: str, folder: Path, scratch: Path, clean: Any) -> tuple[list, list[tuple[str, str]]]:
  done = outcomes_of(kind, folder, scratch, clean)
  judged = judge.judge_pictures if kind in pictures.SUFFIX else oracle.judge_labels
  arguments = (folder, done) if kind in pictures.SUFFIX else (kind, folder, done)
  return done, list(dict.fromkeys(judged(*arguments)))


def keep(target: Path, folder: Path, case: Case, done: list[ways.Outcome]) -> None:
  """What `--replay` and a reader need."""
  shutil.copytree(folder, target / "input")
  (target / "case.json").write_text(json.dumps(case._asdict(), indent=1))
  said = [
    f"## {o.way}: exit code {o.code}, {o.seconds:.2f} s, {o.mib} MiB\n{o.out}{o.errors}{o.trouble}"
    for o in done
  ]
  (target / "said.txt").write_text(
    "\n".join([*map(str, case.faults + case.notes), *said]), errors="backslashreplace"
  )


def work(out: Path, worker: int, cases: list[tuple[str, int]], seed: int, clean: Any) -> None:
  """Its share of the cases; writes each as a line."""
  examples: Counter[str] = Counter()
  parent = os.getppid()
  place = Path(tempfile.mkdtemp(dir=out))
  with (out / f"cases-{worker}.jsonl").open("w") as file:
    for kind, number in cases:
      if os.getppid() != parent:
        return  # which was stopped
      scratch, folder = place / "scratch", place / f"{kind}-{number}"
      scratch.mkdir(exist_ok=True)
      rng = random.Random(f"{seed} {kind} {number}")
      mutations = (pictures if kind in pictures.SUFFIX else labels).write(folder, kind, rng)
      done, faults = examine(kind, folder, scratch, clean)
      dropped = len(done) > 1 and done[1].way == "skip_bad" and done[1].code == 0
      verdict = {0: "accepted", 2: "refused"}.get(done[0].code, "fault")
      notes = [fault for fault in faults if fault[1].startswith(judge.NOTE)]
      faults = [fault for fault in faults if fault not in notes]
      case = Case(kind, number, mutations, verdict, dropped, faults, notes, sum(o.seconds for o in done))
      file.write(json.dumps(case) + "\n")
      file.flush()
      for way, what in faults + notes:
        name = f"{kind} {way} {judge.kind_of_fault(what)}"
        if examples[name] < EXAMPLES and not (out / "faults" / f"{kind}-{number}").exists():
          keep(out / "faults" / f"{kind}-{number}", folder, case, done)
        examples[name] += 1
      shutil.rmtree(folder)
  shutil.rmtree(place)


def table(cases: list[Case]) -> str:
  rows = [
    "| kind | tried | accepted | refused | of these made with --skip_bad | faults |",
    "|---|---:|---:|---:|---:|---:|",
  ]
  for name, kind in KINDS.items():
    if ours := [c for c in cases if c.kind == name]:
      numbers = [sum(c.verdict == v for c in ours) for v in ("accepted", "refused")]
      numbers += [sum(c.dropped for c in ours), sum(bool(c.faults) for c in ours)]
      rows.append(f"| {kind.title} | {len(ours)} | {' | '.join(map(str, numbers))} |")
  kinds: dict[tuple[str, str], list[Case]] = defaultdict(list)
  for case in cases:
    for key in {(way, judge.kind_of_fault(what)) for way, what in case.faults + case.notes}:
      kinds[key].append(case)
  if kinds:
    rows += ["", "| way | fault | cases | kinds | for example |", "|---|---|---:|---|---|"]
  for (way, what), found in sorted(kinds.items(), key=lambda item: -len(item[1])):
    of, some = Counter(c.kind for c in found), " ".join(f"{c.kind}-{c.number}" for c in found[:3])
    shown = what.replace("|", "\\|").replace("\n", " ")
    rows.append(
      f"| {way} | {shown} | {len(found)} | {' '.join(f'{k} {n}' for k, n in of.items())} | {some} |"
    )
  return "\n".join(rows)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=Path, required=True, help="a new folder")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
  parser.add_argument("--number", type=int, help="of each kind")
  parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
  parser.add_argument("--short", action="store_true", help="some of each kind, seconds")
  parser.add_argument("--replay", type=Path, help="a folder of DIR/faults of an earlier run")
  given = parser.parse_args()
  began, out = time.monotonic(), given.out.absolute()
  out.mkdir(parents=True)
  os.environ["XDG_CACHE_HOME"] = str(out / "cache")
  scratch = out / "server"
  scratch.mkdir()
  ways.prepare_server(scratch)
  clean = labels.clean_source(scratch / "clean")
  if given.replay:
    case = json.loads((given.replay / "case.json").read_text())
    shutil.copytree(given.replay / "input", out / "input")
    done, faults = examine(case["kind"], out / "input", scratch, clean)
    keep(out / "replayed", out / "input", Case(**case)._replace(faults=faults, notes=[]), done)
    print((out / "replayed" / "said.txt").read_text())
    return 1 if faults else 0

  cases = []
  for name in given.only.split(","):
    number = given.number or (KINDS[name].short if given.short else KINDS[name].number)
    cases += [(name, i) for i in range(number)]
  cases = [case for case in cases if labels.is_there(case[0])]
  workers = {}
  for worker in range(given.jobs):
    pid = os.fork()
    if pid == 0:
      try:
        os.dup2(
          os.open(out / f"worker-{worker}.log", os.O_RDWR | os.O_CREAT), 2
        )  # what Pillow's libraries say
        work(out, worker, cases[worker :: given.jobs], given.seed, clean)
        os._exit(0)
      except BaseException:
        traceback.print_exc()
      os._exit(1)
    workers[pid] = worker
  codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
  lines = [line for i in range(given.jobs) for line in (out / f"cases-{i}.jsonl").read_text().splitlines()]
  tried = [Case(*json.loads(line)) for line in lines]
  text = table(tried)
  (out / "table.md").write_text(text + "\n")
  shutil.rmtree(scratch)
  print(
    f"{text}\n\n{time.monotonic() - began:.0f} s on {given.jobs} cores, seed {given.seed}; the slowest "
    f"{max(c.seconds for c in tried):.1f} s"
  )
  if any(codes) or len(tried) < len(cases):
    print(f"the machine itself failed: {len(cases) - len(tried)} cases were not tried")
    return 1
  return 1 if any(c.faults for c in tried) else 0


if __name__ == "__main__":
  if os.environ.get("JAX_PLATFORMS") != "cpu":
    os.execve(
      sys.executable,
      [sys.executable, "-m", "tests.mutations", *sys.argv[1:]],
      os.environ | {"JAX_PLATFORMS": "cpu"},
    )
  sys.exit(main())
