"""`iou-det` in a process of its own, forked from one that has imported what the commands use: seconds each.

The commands are not imported there, as their flags are global, and JAX has not started: it reads XLA_FLAGS
when it does. Fresh interpreters run the commands in test_wheel.py, test_older_runs.py and test_prepare.py.
"""

import functools
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Programs that run for milliseconds are compiled without optimisation, by the emitters and in the one piece
# that LLVM is quickest with: a third of the time. (XLA ends a process at a flag that it no longer knows.)
COMPILE_QUICKLY = (
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
  "--xla_cpu_parallel_codegen_split_count=1"
)


def iou_det(*arguments, before="", **environment) -> subprocess.CompletedProcess:
  """Runs a command in the current folder, after other code; output and errors as text."""
  with tempfile.TemporaryDirectory() as folder:
    out, errors = Path(folder) / "out", Path(folder) / "errors"
    code = ask("wait", start(*arguments, out=out, errors=errors, before=before, **environment))
    return subprocess.CompletedProcess(arguments, code, out.read_text(), errors.read_text())


def start(*arguments, out: Path, errors: Path, before="", **environment) -> int:
  """Starts a command in a process group of its own; its number, for `poll` and signals."""
  request = {
    "arguments": [str(a) for a in arguments], "environment": os.environ | environment,
    "folder": os.getcwd(), "files": [str(out), str(errors)], "before": before}  # fmt: skip
  return ask("start", request)


def poll(pid: int) -> int | None:
  """The exit code (-N: by signal N) of what `start` started, which is then forgotten; None while it runs."""
  return ask("poll", pid)


def ask(what: str, of):
  pipe = server()
  pipe.stdin.write(json.dumps([what, of]) + "\n")
  pipe.stdin.flush()
  return json.loads(pipe.stdout.readline())


@functools.cache
def server() -> subprocess.Popen:
  """Ends when its input does, with this process."""
  return subprocess.Popen(
    [sys.executable, "-c", "from tests.command import serve; serve()"],
    cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
    stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip


def serve() -> None:
  from iou_det.cli import main

  importlib.import_module("iou_det.paper.reproduce")  # imports the rest but for commands
  gc.freeze()  # or each process would copy all of it when it ends
  for line in sys.stdin:
    what, of = json.loads(line)
    if what == "start":
      answer = os.fork()
      if answer == 0:
        os.setpgid(0, 0)
        for number, path in enumerate(["/dev/null", *of["files"]]):
          os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        os.environ.clear()
        os.environ.update(of["environment"])
        os.chdir(of["folder"])
        exec(of["before"], {})
        return main(of["arguments"])  # which exits
    else:
      pid, status = os.waitpid(of, os.WNOHANG if what == "poll" else 0)
      answer = os.waitstatus_to_exitcode(status) if pid else None
    print(json.dumps(answer), flush=True)
