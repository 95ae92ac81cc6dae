"""multi_gpu.sh and slurm.sbatch with stubs, and JAX's own reading of the variables that they set."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from tests.launch.running import LAUNCH, OVERLAP, QUOTED, ROOT, TRAIN, calls, checked, dry, run


def test_multi_gpu_commands(stubs):
  assert dry("multi_gpu.sh", "--", *TRAIN) == [[f"XLA_FLAGS={OVERLAP}"], ["env", "iou-det", "train", *TRAIN]]
  made = dry("multi_gpu.sh", "--nodes=2", "--node=1", "--coordinator=h:1", "--processes=2", "--", *TRAIN)[1:]
  shared = ["env", "JAX_COORDINATOR_ADDRESS=h:1", "JAX_NUM_PROCESSES=4"]
  train = ["iou-det", "train", "--distributed", *TRAIN]
  assert made == [
    [*shared, "JAX_PROCESS_ID=2", "JAX_LOCAL_DEVICE_IDS=0", *train],
    [*shared, "JAX_PROCESS_ID=3", "JAX_LOCAL_DEVICE_IDS=1", *train],
  ]
  made = dry("multi_gpu.sh", "--nodes=2", "--node=1", "--coordinator=h:1", "--", *TRAIN)[1:]
  assert made == [["env", "JAX_COORDINATOR_ADDRESS=h:1", "JAX_NUM_PROCESSES=2", "JAX_PROCESS_ID=1", *train]]


def test_multi_gpu_starts_again_after_75(stubs):
  (stubs / "codes").write_text("75\n0\n")
  done = run("multi_gpu.sh", "--", *TRAIN)
  assert done.returncode == 0, done.stderr
  assert calls(stubs) == [["iou-det", "train", *TRAIN]] * 2
  assert done.stderr == "multi_gpu.sh: training was told to stop, and saved; starting again\n"


@pytest.mark.parametrize(
  ("codes", "starts", "code"), [("75 75 0 0", 4, 0), ("0 75 0 0", 4, 0), ("75 1", 2, 1)]
)
def test_multi_gpu_several_processes(stubs, codes, starts, code):
  (stubs / "codes").write_text("".join(f"{c}\n" for c in codes.split()))
  done = run("multi_gpu.sh", "--processes=2", "--", *TRAIN)
  assert done.returncode == code
  assert len(calls(stubs)) == starts
  first = (stubs / "env").read_text().splitlines()[:2]
  assert sorted(re.findall(r"PROCESS_ID=\d", "".join(first))) == ["PROCESS_ID=0", "PROCESS_ID=1"]
  assert all("JAX_NUM_PROCESSES=2 " in line for line in first)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_multi_gpu_passes_signals_on(stubs, sent):
  (stubs / "codes").write_text("wait\nwait\n")
  command = ["bash", str(LAUNCH / "multi_gpu.sh"), "--processes=2", "--", *TRAIN]
  # What a shell starts in the background ignores SIGINT, and so would all that the tests start then.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
    signal.signal(signal.SIGINT, before)
    try:
      until = time.time() + 30
      while len(calls(stubs)) < 2 or (stubs / "codes").read_text():
        assert time.time() < until
        time.sleep(0.02)
      time.sleep(0.3)  # the stubs set their traps
      process.send_signal(sent)
      assert process.wait(30) == 75
    finally:
      with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
  assert len(calls(stubs)) == 2  # not started again


def test_slurm_commands(stubs):
  step = ["srun", "--gpu-bind=none", "--kill-on-bad-exit=0", "iou-det", "train", "--distributed", *TRAIN]
  made = run("slurm.sbatch", "--dry_run", *TRAIN).stdout.splitlines()
  assert made[:2] == [f"XLA_FLAGS={OVERLAP}", f"iou-det train --check_only {QUOTED}"]
  assert made[2] == shlex.join(step[:-2]) + QUOTED.removeprefix(TRAIN[0])
  assert made[3:] == ["after exit code 75: scontrol requeue $SLURM_JOB_ID"]
  settings = re.findall(r"^#SBATCH (.*)$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
  assert {"--signal=TERM@90", "--requeue", "--open-mode=append"} <= set(settings)


@pytest.mark.parametrize("code", [0, 1, 2, 75, 137])
def test_slurm_requeues_75_only(stubs, monkeypatch, code):
  (stubs / "codes").write_text(f"{code}\n")
  monkeypatch.setenv("SLURM_JOB_ID", "42")
  done = run("slurm.sbatch", *TRAIN, folder=stubs)
  assert done.returncode == code
  train = ["train", "--distributed", *TRAIN]
  expected = [["srun", "--gpu-bind=none", "--kill-on-bad-exit=0", "iou-det", *train], ["iou-det", *train]]
  assert calls(stubs) == [checked(TRAIN), *expected, *[["scontrol", "requeue", "42"]] * (code == 75)]


def test_slurm_checks_once_before_srun(stubs, monkeypatch):
  (stubs / "checks").write_text("2\n")
  monkeypatch.setenv("SLURM_JOB_ID", "42")
  assert run("slurm.sbatch", *TRAIN, folder=stubs).returncode == 2
  assert calls(stubs) == [checked(TRAIN)]
  monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # requeued: it trained before
  assert run("slurm.sbatch", *TRAIN, folder=stubs).returncode == 0
  assert [c[0] for c in calls(stubs)[1:]] == ["srun", "iou-det"]


def test_slurm_ends_when_cancelled(stubs, monkeypatch):
  """scancel signals the batch shell too: it must not live to requeue the job."""
  (stubs / "codes").write_text("wait\n")
  monkeypatch.setenv("SLURM_JOB_ID", "42")
  command = ["bash", str(LAUNCH / "slurm.sbatch"), *TRAIN]
  with subprocess.Popen(command, cwd=stubs, start_new_session=True) as process:
    until = time.time() + 30
    while len(calls(stubs)) < 3 or (stubs / "codes").read_text():
      assert time.time() < until
      time.sleep(0.02)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
  assert [c[0] for c in calls(stubs)] == ["iou-det", "srun", "iou-det"]


# What `iou-det train --distributed` does first, and what it then sees.
GROUP = """#!/usr/bin/env {python}
import os, sys, jax
if "--check_only" in sys.argv: sys.exit()
given = {{
  name: int(os.environ[variable])
  for name, variable in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID"))
  if variable in os.environ
}}
jax.distributed.initialize(**given)
seen = (jax.process_index(), jax.process_count(), len(jax.local_devices()), len(jax.devices()))
os.write(1, (" ".join(map(str, seen)) + "\\n").encode())  # in one piece: both write to one pipe
"""
# Two tasks on this machine, with the variables that Slurm gives them.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & done
wait
"""


@pytest.mark.parametrize("launcher", ["multi_gpu.sh", "slurm.sbatch"])
def test_jax_forms_a_group(stubs, monkeypatch, launcher):
  """Real processes, that find each other by what the launcher set."""
  (stubs / "iou-det").write_text(GROUP.format(python=sys.executable))
  (stubs / "srun").write_text(SRUN)
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  if launcher == "multi_gpu.sh":
    done = run(launcher, "--processes=2", f"--coordinator=localhost:{port}", "--", *TRAIN)
  else:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("JAX_COORDINATOR_PORT", str(port))  # else from the job's number
    done = run(launcher, *TRAIN, folder=stubs)
  assert done.returncode == 0, done.stderr
  assert sorted(done.stdout.splitlines()) == ["0 2 2 4", "1 2 2 4"]
