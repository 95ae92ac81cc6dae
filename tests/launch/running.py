"""Runs the launchers, and reads what they called."""

import json
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"
TOOLS = json.loads((ROOT / "tests" / "golden" / "launch_tools.json").read_text())
TRAIN = ["--config=configs/retinanet.py", "--config.data.canvas=(600,1000)", "--workdir=gs://b/runs/a b"]
QUOTED = r"--config=configs/retinanet.py --config.data.canvas=\(600\,1000\) --workdir=gs://b/runs/a\ b"
OVERLAP = "--xla_gpu_enable_latency_hiding_scheduler=true"
POD = ["--name=n", "--zone=z", "--type=v5litepod-16", "--runtime=r", "--bucket=b"]
XPK = ["--name=n", "--cluster=c", "--type=v5litepod-16", "--storage=s"]


def run(name: str, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
  command = ["bash", str(LAUNCH / name), *arguments]
  return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def dry(name: str, *arguments: str) -> list[list[str]]:
  """The commands that --dry_run prints, split as the shell splits them."""
  done = run(name, "--dry_run", *arguments)
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""
  return [bash_words(line) for line in done.stdout.splitlines()]


def bash_words(line: str) -> list[str]:
  """Bash's own reading of a line, $'...' included."""
  done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
  return done.stdout.split("\0")[:-1]


def calls(stubs: Path) -> list[list[str]]:
  path = stubs / "calls"
  return [call.split("\0")[:-1] for call in path.read_text().split("\n\0")[:-1]] if path.exists() else []


def checkout(tmp_path: Path, name: str) -> Path:
  """A small repository with a launcher in it: those that send the tracked files run in their own."""
  folder = tmp_path / "checkout"
  (folder / "launch").mkdir(parents=True)
  shutil.copy(LAUNCH / name, folder / "launch")
  git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.invalid", "-C", str(folder)]
  for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
    subprocess.run([*git, *command], check=True)
  return folder


def checked(flags: list[str]) -> list[str]:
  return ["iou-det", "train", "--check_only", *flags]


def run_in(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess:
  command = ["bash", f"launch/{name}", *arguments]
  return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
