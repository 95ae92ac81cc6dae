"""Two processes with four devices each do what one with eight does, decide as one, and end together."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest

from iou_det.data import open_dataset
from iou_det.data.plan import make_plan
from iou_det.weights.load import load_detector
from tests.command import COMPILE_QUICKLY
from tests.same import assert_same_detections
from tests.tiny import tinier_config

COMMAND = "from iou_det.cli import main; main()"
CONFIG = """
import json
from ml_collections import ConfigDict
from iou_det.config import from_dict
get_config = lambda: from_dict(json.loads({!r}))
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory, shapes_folder):
  """The tiny config as a file for the command line.

  The smallest: JAX keeps no compiled programs of several processes on the CPU, so every run compiles.
  """
  config = tinier_config(shapes_folder)
  path = tmp_path_factory.mktemp("config") / "tiny.py"
  path.write_text(CONFIG.format(json.dumps(config.to_dict())))
  return path


# `iou-det eval`, which says what it was told, then Figure 2 of two runs; process 0 alone scores and writes.
EVALUATE = """
import json, os, sys
from pathlib import Path
from iou_det.cli import main
from iou_det.detector import Detector
from iou_det.evaluation import coco
from iou_det.paper import experiments, results

def refuse(*_, **__):
  raise AssertionError("this is process 0's")

if os.environ["JAX_PROCESS_ID"] == "1":
  coco.evaluate = experiments.figure2 = results.save_candidates = results.Results.read = refuse
evaluate = Detector.evaluate

def told(*arguments, **options):
  found = evaluate(*arguments, **options)
  print("metrics:", json.dumps([len(found.results), found.metrics]))
  return found

Detector.evaluate = told
main(sys.argv[1:])
(workdir,) = (Path(a.removeprefix("--workdir=")) for a in sys.argv if a.startswith("--workdir="))
runs = [workdir, workdir.with_name("other")]
print("figure:", experiments.figures_of("fig2", runs, workdir.with_name("fig2"), "a test").splitlines()[-1])
"""


def start(config_file, workdir, processes, evaluate=False, configs=None, before=("", "")):
  """Starts `iou-det train` or `eval`: as many processes, 8 devices in all, over the loopback interface.

  Args:
    configs: one for each process, in place of `config_file`.
    before: code that each runs first.
  """
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  flags = f"--xla_force_host_platform_device_count={8 // processes} {COMPILE_QUICKLY}"
  distributed = ["--distributed"] if processes > 1 else []
  started = []
  for i in range(processes):
    environment = os.environ | {
      "XLA_FLAGS": flags, "PYTHONPATH": os.getcwd(), "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
      "JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(i)}  # fmt: skip
    task = ["eval"] if evaluate else ["train", f"--config={configs[i] if configs else config_file}"]
    program = EVALUATE if evaluate else f"{before[i]}\n{COMMAND}"
    command = [sys.executable, "-c", program, *task, f"--workdir={workdir}"]
    log = (workdir.parent / f"{workdir.name}_{i}.log").open("a")
    started.append(subprocess.Popen([*command, *distributed], env=environment, stdout=log, stderr=log))
  return started


def finish(started, workdir):
  codes = [p.wait(timeout=300) for p in started]
  logs = [(workdir.parent / f"{workdir.name}_{i}.log").read_text() for i in range(len(started))]
  return codes, "\n".join(logs)


def rows(workdir):
  path = workdir / "metrics.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(started, workdir, step):
  deadline = time.monotonic() + 240
  while not any("loss" in row and row["step"] >= step for row in rows(workdir)):
    assert all(p.poll() is None for p in started) and time.monotonic() < deadline, finish(started, workdir)
    time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, config_file):
  """Workdirs of the same run by one process and by two."""
  workdirs = {}
  for processes in (1, 2):
    workdir = workdirs[processes] = tmp_path_factory.mktemp(str(processes)) / "run"
    codes, log = finish(start(config_file, workdir, processes), workdir)
    assert codes == [0] * processes, log
  assert "process 1 of 2, 4 of 8 devices" in log
  return workdirs


def parameters(workdir, step="last"):
  return jax.device_get(load_detector(workdir, step).variables["params"])


def test_two_processes_train_evaluate_and_save_as_one_does(uninterrupted):
  one_process, workdir = uninterrupted[1], uninterrupted[2]
  ours, theirs = ({r["step"]: r for r in rows(w) if "loss" in r} for w in (workdir, one_process))
  assert list(ours) == list(theirs) == [1, 2, 4, 6, 8]
  for name in ("loss", "gradient_norm", "positives_per_image"):
    np.testing.assert_allclose(ours[1][name], theirs[1][name], rtol=1e-5)
    np.testing.assert_allclose(ours[8][name], theirs[8][name], rtol=1e-2)
  ours, theirs = (
    {r["step"]: r["val/loss"] for r in rows(w) if "val/loss" in r} for w in (workdir, one_process)
  )
  assert list(ours) == list(theirs) == [4, 8]
  np.testing.assert_allclose(ours[4], theirs[4], rtol=1e-2)
  # The first epoch's parameters, against how far training moved from there in the second.
  a, b, end = parameters(workdir, "4"), parameters(one_process, "4"), parameters(one_process)
  far = lambda x, y: float(optax.tree.norm(jax.tree.map(lambda p, q: p.astype(np.float64) - q, x, y)))
  assert far(a, b) < 1e-2 * far(end, b)


def test_two_processes_detect_what_one_does(config_file, uninterrupted, tmp_path):
  """The same checkpoint, by `iou-det eval --distributed`; process 0 scores, and draws."""
  workdir = tmp_path / "run"
  for copy in (workdir, tmp_path / "other"):
    shutil.copytree(uninterrupted[1], copy)
  (workdir / "eval/val/detections.json").unlink()
  codes, log = finish(start(config_file, workdir, 2, evaluate=True), workdir)
  assert codes == [0, 0], log
  two, one = (json.loads((w / "eval/val/detections.json").read_text()) for w in (workdir, uninterrupted[1]))
  assert_same_detections(two, one)
  assert len(two) > 13
  (ours, scored), (none, known) = (
    json.loads(line) for line in re.findall(r"^metrics: (.*)", log, re.MULTILINE)
  )
  assert scored == known and scored["AP"] is not None  # the bits of every float
  assert (ours, none) == (scored["detections"], 0) == (len(two), 0)
  assert re.findall(r"^figure: (.*)", log, re.MULTILINE) == [f"wrote {tmp_path / 'fig2'}"] * 2
  assert (tmp_path / "fig2/ranking.md").exists() and (tmp_path / "other/eval/val/candidates.npz").exists()


def forget_all_after_step_4(workdir):
  """Its evaluation too."""
  shutil.rmtree(workdir / "checkpoints" / "8")
  before = [r for r in rows(workdir) if r["step"] < 4 or (r["step"] == 4 and "loss" in r)]
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in before))


def last_checkpoint(workdir):
  return max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def test_a_signal_saves_and_the_rerun_is_bit_identical(config_file, uninterrupted, tmp_path):
  """Told in a fresh run, and in the rerun, after it has read a checkpoint and evaluated; here by Ctrl-C."""
  workdir = tmp_path / "run"
  for seen, sent in ((1, signal.SIGTERM), (5, signal.SIGINT)):
    (started,) = start(config_file, workdir, 1)
    wait_for_step([started], workdir, seen)
    started.send_signal(sent)
    while started.poll() is None:  # schedulers repeat themselves: the later ones must not cut off the save
      time.sleep(0.02)
      started.send_signal(signal.SIGTERM)
    codes, log = finish([started], workdir)
    assert codes == [75], log
    assert f"{sent.name}: what was trained is saved" in log
    assert seen <= last_checkpoint(workdir)
  same_end(config_file, uninterrupted, workdir, 1)


def test_one_of_two_processes_is_told_and_both_stop(config_file, uninterrupted, tmp_path):
  """Told just after a checkpoint: Orbax must not have touched the counter by which the processes agree."""
  workdir = tmp_path / "run"
  started = start(config_file, workdir, 2)
  wait_for_step(started, workdir, 4)
  started[0].send_signal(signal.SIGSTOP)  # so that they are still there when the signal has been seen:
  started[1].send_signal(signal.SIGTERM)
  time.sleep(1.5)  # JAX looks for it once a second
  started[0].send_signal(signal.SIGCONT)
  codes, log = finish(started, workdir)
  assert codes == [75, 75], log
  assert last_checkpoint(workdir) == 4
  same_end(config_file, uninterrupted, workdir, 2)


def same_end(config_file, uninterrupted, workdir, processes):
  codes, log = finish(start(config_file, workdir, processes), workdir)
  assert codes == [0] * processes, log
  jax.tree.map(np.testing.assert_array_equal, parameters(workdir), parameters(uninterrupted[processes]))
  assert [r["step"] for r in rows(workdir) if "val/AP" in r] == [4, 8]


def test_an_evaluation_that_was_cut_off_is_made_up_for(config_file, uninterrupted, tmp_path):
  """SIGTERM within an evaluation: its checkpoint is there already, and the rerun scores it first."""
  workdir = tmp_path / "run"
  shutil.copytree(uninterrupted[1], workdir)
  forget_all_after_step_4(workdir)
  codes, log = finish(start(config_file, workdir, 1), workdir)
  assert codes == [0], log
  assert [r["step"] for r in rows(workdir) if "val/AP" in r] == [4, 8]
  jax.tree.map(np.testing.assert_array_equal, parameters(workdir), parameters(uninterrupted[1]))


DECISIONS = """
import sys
from pathlib import Path
from iou_det.config import base_config, with_loss
from iou_det.processes import of_process_0, start_distributed
from iou_det.training.wloc import resolve_w_loc
start_distributed()
import jax
own = jax.process_index()
print("got", of_process_0([own, "x" * own, None, {{"a": 1.5 + own}}]), of_process_0(not own))
folder = Path({folder!r}) / str(own)  # as where each host has its own disk
print("w_loc", resolve_w_loc(with_loss(base_config(), w_loc="auto"), None, folder).loss.w_loc)
sys.exit()
"""
FULL_DISK = """
from iou_det.workdir.metrics import MetricsLog
def write(self, step, row):
  raise OSError(28, "No space left on device", "metrics.jsonl")
MetricsLog.write = write
"""
# Reading a batch takes for ever.
STUCK = """
import time
from iou_det.data import pipeline
pipeline.decode_image = lambda record: print("stuck", flush=True) or time.sleep(600)
"""
SOON = """
from iou_det import processes
processes.BEATS, processes.SECONDS = 3, 1
"""


def test_decisions_are_process_0s(config_file, tmp_path):
  for i, w_loc in enumerate((2.25, 3.5)):
    (tmp_path / str(i)).mkdir()
    (tmp_path / str(i) / "w_loc.json").write_text(json.dumps({"w_loc": w_loc}))
  program = DECISIONS.format(folder=str(tmp_path))
  codes, log = finish(start(config_file, tmp_path / "run", 2, before=(program, program)), tmp_path / "run")
  assert codes == [0, 0], log
  assert log.count("got [0, '', None, {'a': 1.5}] True") == log.count("w_loc 2.25") == 2, log


def wait_for_words(words, started, workdir):
  """Of process 1."""
  while words not in (workdir.parent / f"{workdir.name}_1.log").read_text():
    assert all(p.poll() is None for p in started), finish(started, workdir)
    time.sleep(0.02)


def end_within_a_minute(started, workdir, since):
  codes, log = finish(started, workdir)
  assert time.monotonic() - since < 60, log
  return codes, [(workdir.parent / f"{workdir.name}_{i}.log").read_text() for i in range(2)]


def test_a_damaged_image_on_one_host_ends_all_with_its_name(config_file, shapes_folder, tmp_path):
  """Each has its own copy of the data; the file is cut off in one."""
  configs = []
  for i in range(2):
    shutil.copytree(shapes_folder, tmp_path / f"data_{i}")
    config = tinier_config(tmp_path / f"data_{i}")
    configs.append(tmp_path / f"config_{i}.py")
    configs[i].write_text(CONFIG.format(json.dumps(config.to_dict())))
  source = open_dataset(tmp_path / "data_1", "train")
  mine = make_plan(source, config).batch(0).records[4:]  # the second half is process 1's
  name = source.annotations.file_name[mine[0]]
  image = tmp_path / "data_1" / "train" / name
  image.write_bytes(image.read_bytes()[:-100])
  workdir = tmp_path / "run"
  started = start(None, workdir, 2, configs=configs)
  wait_for_words("8 devices (cpu)", started, workdir)
  codes, logs = end_within_a_minute(started, workdir, time.monotonic())
  assert codes == [2, 2], logs
  assert logs[1].splitlines()[-1].startswith(f"iou-det train: image {name}")
  assert f"process 1 ({socket.gethostname()}): iou-det train: image {name}" in logs[0].splitlines()[-1]
  assert not any("Traceback" in log for log in logs)


def test_a_full_disk_on_one_host_ends_all(config_file, tmp_path):
  workdir = tmp_path / "run"
  started = start(config_file, workdir, 2, before=(FULL_DISK, ""))
  wait_for_words("8 devices (cpu)", started, workdir)
  codes, logs = end_within_a_minute(started, workdir, time.monotonic())
  assert codes == [2, 2], logs
  for log in logs:
    assert f"no space left in {workdir}; earlier checkpoints are kept" in log.splitlines()[-1]
    assert "Traceback" not in log


def test_a_signal_to_one_before_the_first_step_ends_both_at_once(config_file, tmp_path):
  workdir = tmp_path / "run"
  started = start(config_file, workdir, 2, before=("", STUCK))
  wait_for_words("stuck", started, workdir)
  since = time.monotonic()
  started[1].send_signal(signal.SIGTERM)
  codes, logs = end_within_a_minute(started, workdir, since)
  assert codes == [75, 75], logs
  assert all("SIGTERM: there is nothing new to save" in log.splitlines()[-1] for log in logs)


def test_a_lost_process_ends_the_other(config_file, shapes_folder, tmp_path):
  """By default after half a minute. Its connections stay open, so that nothing else says so."""
  config = tinier_config(shapes_folder)
  config.train.update(epochs=4000, eval_epochs=4000, checkpoint_epochs=4000)
  (tmp_path / "long.py").write_text(CONFIG.format(json.dumps(config.to_dict())))
  workdir = tmp_path / "run"
  started = start(tmp_path / "long.py", workdir, 2, before=(SOON, SOON))
  wait_for_step(started, workdir, 2)
  started[1].send_signal(signal.SIGSTOP)
  assert started[0].wait(30) == 75
  started[1].kill()
  started[1].wait()
  log = (tmp_path / "run_0.log").read_text()
  assert f"process 1 ({socket.gethostname()}) is lost: nothing of it for 3 s" in log.splitlines()[-1]


def test_distributed_without_peers_is_one_clear_error(config_file, tmp_path):
  environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COORD")}
  command = [sys.executable, "-c", COMMAND, "train", f"--config={config_file}", f"--workdir={tmp_path}/w"]
  done = subprocess.run(
    [*command, "--distributed"], env=environment | {"PYTHONPATH": os.getcwd()}, capture_output=True, text=True
  )
  assert done.returncode == 2
  assert "JAX_COORDINATOR_ADDRESS=HOST:PORT" in done.stderr and "Traceback" not in done.stderr
