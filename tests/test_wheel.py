"""The installed package alone, in an empty folder: its commands find the configs that it ships."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Runs a command, then tells where the package's modules came from.
COMMAND = """
import atexit, sys
modules = lambda: [m.__file__ for name, m in sys.modules.items() if name.split(".")[0] == "iou_det"]
atexit.register(lambda: print("modules:", *sorted({str(f) for f in modules()}), sep="\\n"))
from iou_det.cli import main
main()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """A folder with nothing but the package in it, installed from a wheel."""
  folder = tmp_path_factory.mktemp("wheel")
  pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
  offline = ["--no-deps", "--no-index"]
  build = [*pip, "wheel", *offline, "--no-build-isolation", f"--wheel-dir={folder}", str(ROOT)]
  subprocess.run(build, check=True)
  (wheel,) = folder.glob("*.whl")
  site = folder / "site"
  subprocess.run([*pip, "install", *offline, f"--target={site}", str(wheel)], check=True)
  return site


def run(installed, folder, *arguments):
  """Exit code, output and errors of a command; fails if a module is not the installed one."""
  done = subprocess.run(
    [sys.executable, "-c", COMMAND, *arguments],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(installed)},
    capture_output=True,
    text=True,
  )
  output, modules = done.stdout.split("modules:\n")
  files = [Path(line) for line in modules.split()]
  assert len(files) > 10 and all(file.is_relative_to(installed) for file in files), files
  return done.returncode, output, done.stderr


def test_the_wheel_has_every_config_and_module(installed):
  def names(folder):
    suffixes = (".py", ".html", ".css", ".js")
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in suffixes}

  package = names(ROOT / "iou_det") | {f"configs/{name}" for name in names(ROOT / "configs")}
  assert "report/page.js" in package and names(installed / "iou_det") == package


def test_reproduce_needs_no_clone(installed, tmp_path):
  arguments = ("--preset=shapes", "--smoke", "--workdir=w")
  code, output, errors = run(installed, tmp_path, "reproduce", "fig1", *arguments)
  assert code == 0, errors
  assert (tmp_path / "w" / "shapes_smoke" / "fig1" / "fig1.png").exists()
  code, output, errors = run(installed, tmp_path, "reproduce", "table2", "--dry_run", *arguments)
  assert code == 0, errors
  assert "4 runs; to do: 64 images" in output


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ("shapes:eta=0,lambd=0", "data path nowhere is not a folder"),  # the config is found
    ("paper:run=balanced_l1,preset=shapes", "data path nowhere is not a folder"),
    ("shape", "no such file; known: bccd, deeppcb, finetune, own, paper, "),
  ],
)
def test_shipped_configs_have_names(installed, tmp_path, config, message):
  code, _, errors = run(
    installed, tmp_path, "train", f"--config={config}", "--config.data.path=nowhere", "--workdir=w"
  )
  assert code == 2 and message in errors, errors
