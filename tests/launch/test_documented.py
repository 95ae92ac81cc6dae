"""Each launcher's documented command, with exactly what it installs: config and network are built."""

import functools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.launch.running import LAUNCH, ROOT

LAUNCHERS = ["multi_gpu.sh", "slurm.sbatch", "tpu_pod.sh", "xpk.sh", "skypilot_gpu.yaml", "skypilot_tpu.yaml"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# A fresh environment: an interpreter that finds no module but those of the distributions that were installed.
HIDE = """
import sys
hidden = set(sys.argv.pop(1).split(","))
class Hidden:
  def find_spec(name, path=None, target=None):
    if name in hidden:
      raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden)
from iou_det.cli import main
main()
"""


def needed(requirements: list[str], extras: set[str]) -> set[str]:
  """Names of all distributions that requirements bring into an environment, as far as they are here."""
  found: set[str] = set()
  waiting = [(text, extras) for text in requirements]
  seen = set()
  while waiting:
    text, extras = waiting.pop()
    requirement = Requirement(text)
    wanted = any(not requirement.marker or requirement.marker.evaluate({"extra": e}) for e in extras | {""})
    key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
    if wanted and key not in seen:
      seen.add(key)
      try:
        waiting += [(t, set(requirement.extras)) for t in requires(requirement.name) or []]
      except PackageNotFoundError:
        continue
      found.add(key[0])
  return found


def of_project(extras: list[str]) -> set[str]:
  optional = PROJECT["optional-dependencies"]
  return needed([*PROJECT["dependencies"], *(r for e in extras for r in optional[e])], set())


@functools.cache
def tops() -> dict[str, set[str]]:
  """Which distributions have each top-level module."""
  found: dict[str, set[str]] = {}
  for distribution in distributions():
    for file in distribution.files or []:
      top = file.parts[0].split(".")[0]
      if file.suffix in (".py", ".so") and top.isidentifier():
        found.setdefault(top, set()).add(_name(distribution))
  return found


def modules_outside(kept: set[str]) -> set[str]:
  """Top-level modules that only distributions outside of `kept` have."""
  return {top for top, names in tops().items() if not names & kept and top != "iou_det"}


def documented(name: str) -> tuple[set[str], list[list[str]]]:
  """What a launcher installs for training (extras), and the flags of the commands in its head."""
  text = re.sub(r" \\\n#? *", " ", (LAUNCH / name).read_text())
  installed = {extras for extras in re.findall(r"-e '?\.\[([\w,-]+)\]", text)}
  head = [line[1:].strip() for line in text.splitlines() if line.startswith("#  ")]
  commands = [shlex.split(c) for c in head if "--config=configs/" in c]
  flags = [shlex.split(w.removeprefix("FLAGS=")) for c in commands for w in c if "--workdir=" in w]
  whole = [f for c in commands for f in c if f.startswith(("--config", "--workdir"))]
  return installed, flags if any(len(f) > 1 for f in flags) else [whole]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
  return tmp_path_factory.mktemp("empty")


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_documented_command_has_what_it_needs(name, empty):
  (extras,), (flags,) = documented(name)
  assert "cuda12" in extras or "tpu" in extras
  assert flags[0] == "--config=configs/retinanet.py" and len(flags) == 3
  flags[0] = f"--config={ROOT / 'configs/retinanet.py'}"
  hidden = modules_outside(of_project(extras.split(",")))
  assert {"pytest", "hypothesis", "beartype"} <= hidden and not {"jax", "numpy", "orbax"} & hidden
  done = check(tuple(sorted(hidden)), tuple(flags), empty)
  assert done.returncode == 0, done.stderr
  assert "network (38.0 million parameters)" in done.stdout
  assert "not checked: config.data.path=" in done.stdout
  assert list(empty.iterdir()) == []


@functools.cache  # launchers that install and show the same are one run
def check(hidden: tuple[str, ...], flags: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess:
  command = [sys.executable, "-c", HIDE, ",".join(hidden), "train", "--check_only", *flags]
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def pins() -> dict[str, str]:
  lines = (LAUNCH / "constraints.txt").read_text().splitlines()
  given = [Requirement(line) for line in lines if not line.startswith("#")]
  assert all(str(r.specifier).startswith("==") and "," not in str(r.specifier) for r in given)
  here = {
    canonicalize_name(r.name): str(r.specifier)[2:] for r in given if not r.marker or r.marker.evaluate()
  }
  assert len({canonicalize_name(r.name) for r in given}) == len(given)  # one release on every Python
  return here


def test_this_environment_has_the_constraints_releases():
  """What the tests run with is what the launchers install: launch/install.sh made it."""
  pinned = pins()
  onnx = {"jax2onnx", "onnx", "onnxruntime", "onnx-ir", "sympy", "mpmath"}  # launch/test.sh adds them
  assert {"libtpu", "jax-cuda12-plugin", "huggingface-hub", *onnx} <= pinned.keys()
  here = of_project(["test"]) | {name for name in onnx if name in map(_name, distributions())}
  assert len(here) > 100 and here <= pinned.keys()
  different = {n: (version(n), pinned[n]) for n in here if version(n) != pinned[n]}
  assert not different, "not made by launch/install.sh (here, in launch/constraints.txt)"


def _name(distribution) -> str:
  return canonicalize_name(distribution.metadata["Name"])


def test_every_installation_takes_the_constraints():
  for path in [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), *LAUNCH.glob("*.yaml")]:
    text = re.sub(r" \\\n|\n# +", " ", path.read_text())
    for command in re.findall(r"pip install [^&;\n]*", text):
      if re.search(r"-e |--no-deps|jax2onnx", command):
        assert "-c launch/constraints.txt" in command, f"{path}: {command}"
