"""tpu_pod.sh, xpk.sh and the SkyPilot tasks, with stubs.

What SkyPilot and xpk accept is in golden/launch_tools.json, written by golden/make_launch_tools.py.
"""

import os
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.launch.running import (
  LAUNCH,
  OVERLAP,
  POD,
  QUOTED,
  TOOLS,
  TRAIN,
  XPK,
  calls,
  checked,
  checkout,
  dry,
  run_in,
)

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
  sent = [["rm", "-rf", "build/sent"], ["mkdir", "build/sent"]]
  sent.append(["tar", "-xzf", "build/iou_det.tar.gz", "-C", "build/sent"])
  assert made[2:6] == [*sent, ["env", "-C", "build/sent", "PYTHONPATH=.", *checked(TRAIN)]]
  made[2:6] = []
  train = "--command=cd iou_det && export JAX_COORDINATOR_PORT=8476 && "
  train += f"flock .lock .venv/bin/iou-det train --distributed {QUOTED}"
  assert all(words[-2:] == ["--zone=z", "--project=p"] for words in made[2:])
  made = [tpu(words[:-1]) for words in made[2:]]
  assert made == [[*CREATE, "--spot"], SCP, ["install"], [*SSH, train], DELETE]
  unchecked = dry("tpu_pod.sh", *POD, "--keep", "--no_check", "--", *TRAIN)
  made = [tpu(words) for words in unchecked[2:]]
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
    (["", "ACTIVE", "ACTIVE"], [1], "create scp install train delete", 1),
    # Bad input: what was waited for is kept.
    (["", "ACTIVE"], [2], "create scp install train", 2),
  ],
)
def test_tpu_pod_requeues(stubs, tmp_path, states, codes, steps, code):
  (stubs / "states").write_text("".join(f"{s}\n" for s in states))
  (stubs / "codes").write_text("".join(f"{c}\n" for c in codes))
  done = run_in(checkout(tmp_path, "tpu_pod.sh"), "tpu_pod.sh", *POD, "--", *TRAIN)
  assert done.returncode == code, done.stderr
  names = {tuple(CREATE): "create", tuple(SCP): "scp", ("install",): "install", tuple(DELETE): "delete"}
  first, *others = calls(stubs)
  assert first == checked(TRAIN)
  assert ("n is kept: mend it and run the same command" in done.stderr) == (code == 2)
  made = [tpu(words) for words in others]
  assert " ".join(names.get(tuple(w), "train") for w in made if w[1:2] != ["list"]) == steps
  listed = ["queued-resources", "list", "--filter=name~/n$", "--format=value(state.state)"]
  assert [w for w in made if w[1:2] == ["list"]] == [listed] * len(states)
  assert (stubs / "states").read_text() == (stubs / "codes").read_text() == ""


@pytest.mark.parametrize(("name", "arguments"), [("tpu_pod.sh", POD), ("xpk.sh", XPK)])
def test_flags_are_checked_before_hardware_is_asked_for(stubs, tmp_path, name, arguments):
  """On what is sent: the check runs in a copy of it."""
  (stubs / "checks").write_text("2\n")
  folder = checkout(tmp_path, name)
  (folder / "not_sent").touch()
  (stubs / "iou-det").write_text((stubs / "iou-det").read_text().replace("case", "ls > $STUBS/seen; case", 1))
  done = run_in(folder, name, *arguments, "--", *TRAIN)
  assert done.returncode == 2
  assert calls(stubs) == [checked(TRAIN)]
  assert (stubs / "seen").read_text() == "launch\n"


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
  install = "pip install --quiet -c launch/constraints.txt -e '.[tpu,pretrained,fast-eval,gcs]'"
  create += [
    f"--command=export JAX_COORDINATOR_PORT=8476 && {install} && exec iou-det train --distributed {QUOTED}"
  ]
  assert made[:2] == [
    ["rm", "-rf", "build/xpk"],
    ["git", "checkout-index", "--all", "--prefix=build/xpk/"],
  ]
  assert made[2:4] == [["env", "-C", "build/xpk", "PYTHONPATH=.", *checked(TRAIN)], create]
  assert accepted(create, "xpk workload create")
  assert not accepted([*create, "--grace=9"], "xpk workload create")

  folder = checkout(tmp_path, "xpk.sh")
  done = run_in(folder, "xpk.sh", *XPK, "--zone=z", "--slices=2", "--", *TRAIN)
  assert done.returncode == 0, done.stderr
  assert calls(stubs) == [checked(TRAIN), create]
  assert (folder / "build/xpk/launch/xpk.sh").read_text() == (LAUNCH / "xpk.sh").read_text()
  delete = done.stdout.strip().removeprefix("when it is done: ")
  assert delete == "xpk workload delete --workload=n --cluster=c --zone=z"
  assert accepted(delete.split(), "xpk workload delete")


def test_xpk_storage_command_of_the_head():
  head = re.sub(r"\\\n#", "", (LAUNCH / "xpk.sh").read_text())
  attach = re.search(r"^# +(xpk storage attach .*)$", head, re.MULTILINE)
  assert attach
  assert accepted(attach[1].split(), "xpk storage attach")


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
  assert "JAX_COORDINATOR_PORT=8476 " in (stubs / "env").read_text()
