"""XLA's compilers for absent TPUs and GPUs, as launch/test.sh installs them: in a folder of their own.

Beside the other packages, they have JAX say at each start that there is no driver.
"""

import json
import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(sys.prefix) / f"aot-{metadata.version('jaxlib')}"


def there() -> bool:
  return FOLDER.is_dir() or all(map(find_spec, ("libtpu", "jax_cuda12_plugin")))


def compiled(*flags: str) -> list[dict]:
  """The lines of JSON that `iou-det compile` prints."""
  printed = run("from iou_det.cli import main; main()", "compile", *flags)
  return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def run(program: str, *arguments: str) -> str:
  """What a program prints that has the compilers, and none of the tests' flags of XLA."""
  paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")]), str(FOLDER)]
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  environment["PYTHONPATH"] = os.pathsep.join(paths)
  command = [sys.executable, "-c", program, *arguments]
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout
