"""What two processes have to agree on about a workdir, without a detector: seconds, as little is compiled."""

import os
import socket
import subprocess
import sys

PROGRAM = """
import sys, time
from pathlib import Path
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from iou_det.errors import UserError
from iou_det.processes import of_process_0, start_distributed
from iou_det.workdir import lock as lock_module
from iou_det.workdir.checkpoints import Checkpoints
from iou_det.workdir.lock import Lock
from iou_det.workdir.probe import probe

start_distributed()
own = jax.process_index()
root = Path(sys.argv[1])
lock_module.SEEN = 1.0
try:
  with Lock(root / f"disk_{own}"):
    print("trains on another disk")
except UserError as error:
  print("refused:", error)

workdir = root / "shared"
split = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
values = np.random.default_rng(0).normal(size=(8, 4000)).astype(np.float32)
state_of = lambda step: {"w": jax.make_array_from_callback(values.shape, split, lambda i: step * values[i])}
with Lock(workdir) as lock:
  lock.check()
  probe(workdir)
  checkpoints = Checkpoints(workdir, keep=2)
  for step in (3, 6):
    checkpoints.save(step, state_of(step), {"step": step})
  checkpoints.close()
  # A chunk that process 1 alone reads.
  if own == 0:
    chunk = max(workdir.glob("checkpoints/6/state/ocdbt.process_1/d/*"), key=lambda p: p.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
  of_process_0(None)
  shape = jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=split)
  state = Checkpoints(workdir).resume({"w": shape}, lambda run: None)
  same = all((np.asarray(s.data) == 3 * values[s.index]).all() for s in state["w"].addressable_shards)
  print("state of step 3:", same)

  # The first is told by its clock alone, and only where all of them ask.
  asked = Checkpoints(workdir)
  for age in ((0, 9999), (9999, 0), (90, 0)):
    asked.saved = time.monotonic() - age[own]
    print(age, *[asked.overdue(2.0, *how) for how in ((40.0, True), (20.0, True), (40.0, False))])
of_process_0(None)
print("left", (workdir / "lock.json").exists())
"""


def test_two_processes_agree(tmp_path):
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  started = []
  for i in range(2):
    environment = os.environ | {
      "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": os.getcwd(),
      "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
      "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i)}  # fmt: skip
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started.append(subprocess.Popen(command, env=environment, **pipes))
  ends = [p.communicate(timeout=120) for p in started]
  refusal = f"refused: process 1 on {socket.gethostname()} does not see in --workdir={tmp_path}/disk_"
  for i, (out, errors) in enumerate(ends):
    ours = ("trains", "refused", "state", "(", "left")  # Gloo's come in between, whole or in parts
    lines = [line for line in out.splitlines() if line.startswith(ours)]
    assert len(lines) == 6, errors
    refused, goes_on, *asked, left = lines
    assert refused.startswith(f"{refusal}{i} what process 0 wrote there; give a folder that all")
    assert goes_on == "state of step 3: True"
    assert asked == ["(0, 9999) False False False", "(9999, 0) True True False", "(90, 0) True False False"]
    assert left == "left False"
  assert "process 1 finds it damaged" in ends[0][1]
  damaged = tmp_path / "shared" / "checkpoints_damaged"
  assert [p.name for p in damaged.iterdir()] == ["6"]
  assert not (tmp_path / "disk_0" / "lock.json").exists()
