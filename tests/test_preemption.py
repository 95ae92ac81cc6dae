"""Ctrl-C, SIGTERM and steps that hang, at moments that a pipe in place of an image holds."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from iou_det import leaving, preemption
from iou_det.data import open_dataset
from iou_det.data.plan import make_plan
from tests import command
from tests.tiny import tinier_config

CONFIG = """
import json
from ml_collections import ConfigDict
from iou_det.config import from_dict
get_config = lambda: from_dict(json.loads({!r}))
"""
# Reading the image of that name takes for ever.
STUCK = """
from iou_det.data import pipeline
decode = pipeline.decode_image
pipeline.decode_image = lambda r: open({pipe!r}).read() if r.file_name == {name!r} else decode(r)
"""
# Somebody has a lock to release.
RELEASE = """
from iou_det import leaving
leaving.at_exit.append(lambda: open({!r}, "w"))
"""


class Stuck:
  """A tiny training that gets stuck reading its batch 1, 2, ...; batch 0: it is to be an evaluation."""

  def __init__(self, batch, folder, data):
    config = tinier_config(data)
    config.train.log_every = 1
    (folder / "config.py").write_text(CONFIG.format(json.dumps(config.to_dict())))
    self.command = ["train", f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}"]
    source = open_dataset(data, "train" if batch else "val")
    record = make_plan(source, config).batch(batch - 1).records[0] if batch else 0
    self.pipe = folder / "pipe"
    os.mkfifo(self.pipe)
    self.before = STUCK.format(pipe=str(self.pipe), name=source.annotations.file_name[record])

  def run(self, *more):
    return command.iou_det(*self.command, *more, before=self.before)

  def signal(self, *signals, after=None):
    """Runs it and sends signals when it is stuck, and a file is not empty."""
    with ThreadPoolExecutor(1) as pool:
      running = pool.submit(self.run)
      end = self.wait_for_reader()
      while after and not (after.exists() and after.read_text()):
        time.sleep(0.02)
      (process,) = psutil.Process(command.server().pid).children()
      for number in signals:
        process.send_signal(number)
        time.sleep(0.3)
      try:
        return running.result(60)
      finally:
        os.close(end)  # what is still stuck reads the end of the file, and ends too

  def wait_for_reader(self):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
      try:
        return os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK)
      except OSError:  # nobody reads yet
        time.sleep(0.02)
    raise TimeoutError


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_the_first_step_ends_training_at_once(tmp_path, shapes_folder, sent):
  stuck = Stuck(1, tmp_path, shapes_folder)
  stuck.before += RELEASE.format(str(tmp_path / "released"))
  done = stuck.signal(sent)
  assert done.returncode == 75, done.stderr
  assert (tmp_path / "released").exists()
  assert f"{sent.name}: there is nothing new to save" in done.stderr.splitlines()[-1]
  assert "Traceback" not in done.stderr


def test_a_second_ctrl_c_ends_at_once(tmp_path, shapes_folder):
  """Not the SIGTERM that launchers send beside it."""
  stuck = Stuck(3, tmp_path, shapes_folder)
  signals = [signal.SIGINT, signal.SIGTERM, signal.SIGINT]
  done = stuck.signal(*signals, after=tmp_path / "run/metrics.jsonl")
  assert done.returncode == 130, done.stderr
  assert "SIGINT: saving at the end of this step; a second one ends at once" in done.stderr
  assert "SIGINT again" in done.stderr.splitlines()[-1]


def test_a_step_that_hangs_shows_all_stacks_and_ends_with_a_code_that_restarts(tmp_path, shapes_folder):
  done = Stuck(3, tmp_path, shapes_folder).run("--config.train.hang_minutes=0.03")
  assert done.returncode == 75, done.stderr
  assert "no step for 0.03 minutes (config.train.hang_minutes)" in done.stderr.splitlines()[-1]
  assert "training/loop.py" in done.stderr and "data/pipeline.py" in done.stderr


def test_in_a_program_signals_are_noted_and_a_second_ctrl_c_is_pythons_own():
  before = signal.getsignal(signal.SIGINT)
  with pytest.raises(KeyboardInterrupt), preemption.Preemption() as told:
    assert not told.requested()
    os.kill(os.getpid(), signal.SIGTERM)
    assert told.requested() and told.reason == "SIGTERM"
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_came_too_late_for_a_run_ends_the_command_before_its_next_one(monkeypatch):
  """As in `iou-det reproduce`."""

  def leave(code, line):
    raise SystemExit(code)

  monkeypatch.setattr(preemption, "leave", leave)
  monkeypatch.setattr(leaving, "_listening", True)
  handlers = {number: signal.getsignal(number) for number in preemption.SIGNALS}
  try:
    with preemption.Preemption() as first:
      first.begin()
      leaving.acts[signal.SIGTERM](signal.SIGTERM)  # in scoring, say
      assert first.requested()
    with pytest.raises(SystemExit, match="75"), preemption.Preemption():
      pass
  finally:
    for number, handler in handlers.items():
      leaving.acts.pop(number, None)
      signal.signal(number, handler)


def test_ctrl_c_in_another_command_is_one_line(tmp_path, shapes_folder, reference):
  stuck = Stuck(0, tmp_path, shapes_folder)
  stuck.command = ["eval", f"--workdir={reference[0]}", f"--data={shapes_folder}"]
  done = stuck.signal(signal.SIGINT)
  assert done.returncode == 130, done.stderr
  assert done.stderr.splitlines()[-1] == "iou-det eval: interrupted"
  assert "Traceback" not in done.stderr


def test_ctrl_c_during_imports_is_one_line():
  started = subprocess.Popen(
    [sys.executable, "-c", "from iou_det.cli import main; main()", "bench", "train"],
    env=os.environ | {"PYTHONPATH": os.getcwd()}, stderr=subprocess.PIPE, text=True)  # fmt: skip
  while "jaxlib" not in Path(f"/proc/{started.pid}/maps").read_text():
    time.sleep(0.01)
  started.send_signal(signal.SIGINT)
  _, errors = started.communicate(timeout=60)
  assert (started.returncode, errors) == (130, "iou-det bench: interrupted\n")
