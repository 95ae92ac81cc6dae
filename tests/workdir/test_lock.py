"""A second run in a workdir is refused while the first lives, and goes on when it does not."""

import errno
import json
import logging
import os
import shutil
import subprocess
import threading
import time

import jax
import psutil
import pytest

from iou_det.errors import UserError
from iou_det.storage import sealed
from iou_det.training.loop import train
from iou_det.workdir import lock as lock_module
from iou_det.workdir.lock import Lock, machine
from tests.tiny import tiny_config


@pytest.fixture
def other():
  """A process that lives."""
  with subprocess.Popen(["sleep", "600"]) as process:
    yield process
    process.kill()


def write_lock(workdir, pid, started, **changes):
  owner = {"host": "pod-3", "pid": pid, "started": started, "machine": machine(), "time": time.time()}
  (workdir / "lock.json").write_text(json.dumps(sealed(owner | {"nonce": "theirs"} | changes)))


def take(workdir):
  with Lock(workdir):
    return json.loads((workdir / "lock.json").read_text())["nonce"]


def test_a_second_run_is_refused_before_it_writes_anything(reference, shapes_folder, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(reference[0], workdir)
  here = lambda: {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
  with Lock(workdir):
    before = here()
    with pytest.raises(
      UserError, match=rf"is in use by process {os.getpid()} on .* since 20\d\d-.*another --workdir"
    ):
      train(tiny_config(shapes_folder), workdir, devices=jax.devices()[:1])
    assert here() == before
  assert not (workdir / "lock.json").exists()


def test_on_the_same_machine_the_process_tells(other, tmp_path):
  started = psutil.Process(other.pid).create_time()
  write_lock(tmp_path, other.pid, started)
  with pytest.raises(UserError, match=rf"process {other.pid} on pod-3"):
    take(tmp_path)
  write_lock(tmp_path, other.pid, started - 100)  # a number that was given again
  assert take(tmp_path) != "theirs"
  write_lock(tmp_path, other.pid, started)
  other.kill()
  while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:  # nobody has waited for it
    time.sleep(0.01)
  assert take(tmp_path) != "theirs"
  assert not (tmp_path / "lock.json").exists()


@pytest.mark.parametrize("damaged", [False, True])
def test_on_another_machine_the_lock_tells(damaged, other, tmp_path, monkeypatch, caplog):
  """Also where the lock cannot be read: nobody knows then whose it is."""
  monkeypatch.setattr(lock_module, "STALE", 1.0)
  caplog.set_level(logging.INFO, "absl")
  path = tmp_path / "lock.json"

  def leave():
    write_lock(tmp_path, other.pid, 0.0, machine="another")
    if damaged:
      path.write_text(path.read_text().replace("theirs", "thairs"))

  leave()
  os.utime(path, (time.time() - 5, time.time() - 5))  # no sign of life for long
  take(tmp_path)
  assert "watching for" not in caplog.text
  leave()  # none while it is watched
  take(tmp_path)
  assert "watching for" in caplog.text
  leave()
  ended = threading.Event()

  def live():  # whole seconds: more is not known of every storage
    later = time.time()
    while not ended.wait(0.1):
      later += 1
      os.utime(path, (later, later))

  alive = threading.Thread(target=live)
  alive.start()
  with pytest.raises(UserError, match=r"a run of unknown origin" if damaged else r"process .* on pod-3"):
    take(tmp_path)
  ended.set()
  alive.join()


def test_a_run_touches_its_lock_and_notices_that_it_was_taken(tmp_path, monkeypatch):
  monkeypatch.setattr(lock_module, "RENEW", 0.05)
  path = tmp_path / "lock.json"
  with Lock(tmp_path) as lock:
    old = time.time() - 1000
    os.utime(path, (old, old))
    until = time.monotonic() + 20
    while path.stat().st_mtime == old and time.monotonic() < until:
      time.sleep(0.01)
    assert path.stat().st_mtime > old
    lock.check()
    write_lock(tmp_path, 1, 0.0)
    with pytest.raises(UserError, match=r"is used by another run by now .process 1 on pod-3"):
      lock.check()
  assert path.exists()  # it is theirs


def test_a_storage_that_does_not_answer_takes_no_lock_away(tmp_path, monkeypatch):
  with Lock(tmp_path) as lock:
    monkeypatch.setattr(lock_module, "SETTLE", 0.01)
    read = lock_module.read_json

    def silent(*_, **__):
      raise OSError(errno.ESTALE, "stale")

    monkeypatch.setattr(lock_module, "read_json", silent)
    lock.check()
    monkeypatch.setattr(lock_module, "read_json", read)
  assert not (tmp_path / "lock.json").exists()
