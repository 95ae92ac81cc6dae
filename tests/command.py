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


def iou_det(*arguments, **environment) -> subprocess.CompletedProcess:
  """Runs a command in the current folder; output and errors as text."""
  with tempfile.TemporaryDirectory() as folder:
    out, errors = Path(folder) / "out", Path(folder) / "errors"
    request = {
      "arguments": [str(a) for a in arguments], "environment": os.environ | environment,
      "folder": os.getcwd(), "files": [str(out), str(errors)]}  # fmt: skip
    pipe = server()
    pipe.stdin.write(json.dumps(request) + "\n")
    pipe.stdin.flush()
    code = int(pipe.stdout.readline())
    return subprocess.CompletedProcess(arguments, code, out.read_text(), errors.read_text())


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
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
      for number, path in enumerate(["/dev/null", *request["files"]]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
      os.environ.clear()
      os.environ.update(request["environment"])
      os.chdir(request["folder"])
      return main(request["arguments"])  # which exits
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
