"""Workdirs and all else that a user names on gs://, against an emulator of Google's storage."""

import contextlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import orbax.checkpoint as ocp
import psutil
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from etils import epath

from iou_det import bucket, load_detector
from iou_det.errors import UserError
from iou_det.paper.output import Output, Plot
from iou_det.storage import absolute, local_path, user_path, whole_file
from iou_det.workdir.checkpoints import Checkpoints
from tests.command import COMPILE_QUICKLY, iou_det, server
from tests.emulator import PRIVATE, READ_ONLY, UNSEEN, emulator

CONFIG = """
from tests.tiny import tinier_config


def get_config():
  config = tinier_config({data!r})
  config.train.log_every = 1
  return config
"""
RUN = "gs://bucket/runs/x"


@pytest.fixture(scope="module")
def storage():
  with emulator() as running:
    yield running


@pytest.fixture
def unconnected(storage, monkeypatch):
  """This process as a user of the emulator, who has not asked it anything yet."""
  for name, value in storage.environment.items():
    monkeypatch.setenv(name, value)
  for cached in (bucket.connect, bucket.check_readable, bucket.check_writable):
    cached.cache_clear()
  return storage


@pytest.fixture
def here(unconnected):
  bucket.connect()  # before Orbax asks for a path there by itself
  return unconnected


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("gs")


@pytest.fixture(scope="module")
def command(storage, folder):
  """Runs a command in an empty folder, on one device."""

  empty = folder / "empty"
  empty.mkdir()

  def run(*arguments, **environment):
    with contextlib.chdir(empty):
      return iou_det(*arguments, XLA_FLAGS=COMPILE_QUICKLY, **storage.environment | environment)

  return run


def ok(done):
  assert done.returncode == 0, done.stderr
  return done


@pytest.fixture(scope="module")
def run(storage, command, folder, shapes_folder):
  """A run on gs:// that was killed while it wrote its second checkpoint, and went on; what it wrote then."""
  config = folder / "config.py"
  config.write_text(CONFIG.format(data=str(shapes_folder)))
  ok(command("train", f"--config={config}", f"--workdir={folder / 'undisturbed'}"))
  train = ("train", f"--config={config}", f"--workdir={RUN}")

  def kill(name):
    if "/checkpoints/8/" in name:
      storage.on_write = lambda name: None
      (process,) = psutil.Process(server().pid).children()
      process.send_signal(signal.SIGKILL)

  storage.on_write = kill
  assert command(*train).returncode == -signal.SIGKILL
  committed = [name for name in storage.names() if name.endswith("commit_success.txt")]
  assert {name.split("/checkpoints/")[1].split("/")[0] for name in committed} == {"4"}
  storage.written.clear()
  assert "steps 4..8" in ok(command(*train)).stderr
  return list(storage.written)


def stored(step, folder):
  """A checkpoint as Orbax alone reads it."""
  with ocp.PyTreeCheckpointer() as reader:
    return jax.device_get(reader.restore(epath.Path(folder) / "checkpoints" / str(step) / "state"))


def test_a_killed_run_goes_on_to_the_bit(run, here, folder):
  jax.tree.map(np.testing.assert_array_equal, stored(8, RUN), stored(8, folder / "undisturbed"))
  moved = jax.tree.map(lambda a, b: (a != b).any(), stored(8, RUN)["params"], stored(4, RUN)["params"])
  assert any(jax.tree.leaves(moved)), "or untrained ones would be equal too"


def test_the_log_is_whole_and_uploaded_at_checkpoints_only(run, storage):
  rows = [json.loads(line) for line in storage.read("runs/x/metrics.jsonl").splitlines()]
  assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
  assert [row["step"] for row in rows if "val/AP" in row] == [4, 8]
  assert run.count("runs/x/metrics.jsonl") <= 3  # at the start, for the checkpoint, at the end
  events = {name for name in run if name.startswith("runs/x/tensorboard/")}
  assert events and all(run.count(name) <= 2 for name in events)
  assert all(storage.read(name) for name in events)


def test_commands_on_gs(run, storage, command, here, folder):
  local = folder / "undisturbed"
  ok(command("eval", f"--workdir={RUN}"))
  for name in ("metrics", "detections"):
    assert storage.read(f"runs/x/eval/val/{name}.json") == (local / f"eval/val/{name}.json").read_bytes()

  ok(command("export", f"--workdir={RUN}", "--out=gs://bucket/one.safetensors"))
  tensors = safetensors.numpy.load(storage.read("one.safetensors"))
  exported = sorted(array.tobytes() for name, array in tensors.items() if name.startswith("params/"))
  as_bytes = lambda tree: sorted(np.asarray(array).tobytes() for array in jax.tree.leaves(tree))
  assert exported == as_bytes(stored(8, local)["params"])
  assert exported == as_bytes(load_detector(RUN).params)

  # The exported file is what is predicted with: read from there too.
  given = ("--workdir=gs://bucket/one.safetensors", "--out=gs://bucket/pictures")
  ok(command("predict", *given, local_image(folder)))
  pictures = [name for name in storage.names() if name.startswith("pictures/")]
  assert [storage.read(name)[:4] for name in pictures if name.endswith(".png")] == [b"\x89PNG"] * 2
  assert isinstance(json.loads(storage.read("pictures/detections.json")), list)
  assert not list((folder / "empty").iterdir()), "something was written to a local folder"


def local_image(folder):
  path = folder / "image.png"
  cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
  return path


def test_tables_and_figures_on_gs(here):
  output = Output(user_path("gs://bucket/paper/fig"), "source", "command")
  output.table("t", ["a"], [[1.5]], caption="c")
  with Plot(output, "p", "title", "caption").panels(1.0):
    pass
  assert here.read("paper/fig/t.csv") == b"a\n1.5\n" and b"1.5" in here.read("paper/fig/t.md")
  assert here.read("paper/fig/p.png").startswith(b"\x89PNG") and b"</svg>" in here.read("paper/fig/p.svg")


def test_what_may_not_be_on_gs_is_refused_in_one_line(command, folder):
  data = "--config.data.path=gs://bucket/d"
  for arguments, message in (
    (("train", "--config=shapes", "--workdir=s3://b/x"), "s3://b/x is no path .*gs://BUCKET/FOLDER"),
    (("train", "--config=shapes", data, "--workdir=w"), "data path gs://bucket/d .*gcsfuse"),
    (("reproduce", "fig1", "--smoke", "--workdir=gs://bucket/w"), "--smoke makes its data in --workdir"),
  ):
    done = command(*arguments)
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr) and done.stderr.count("\n") == 1, done.stderr
  assert not list((folder / "empty").iterdir())


@pytest.mark.parametrize(
  "text",
  [
    "s3://b/x",
    "hdfs://n/x",
    "http://h/x",
    "az://c/x",
    "gs:/bucket/x",
    "gs://bucket",
    "gs:///x",
    "GS://bucket/x",
  ],
)
def test_other_paths_are_refused(text):
  with pytest.raises(UserError, match="give a path of this machine or gs://BUCKET/FOLDER"):
    user_path(text)
  with pytest.raises(UserError, match=r"data path .*gcsfuse --implicit-dirs --rename-dir-limit"):
    local_path(text, "data path")


def test_an_empty_path_is_not_the_current_folder():
  with pytest.raises(UserError, match=r"^the path is empty; give one"):
    user_path("")
  with pytest.raises(UserError, match=r"^--data_dir: the path is empty; give one"):
    local_path("", "--data_dir")


def test_local_paths_stay_what_they_are(tmp_path):
  for text in ("runs/x", "/data/x", "~/x", "./a:/b", "x:y"):
    assert os.fspath(user_path(text)) == os.fspath(local_path(text, "")) == os.path.normpath(text)
  with pytest.raises(UserError, match="another name"):
    user_path("/gs/x")  # which epath would make gs://x of
  assert str(absolute(epath.Path("gs://bucket/x"))) == "gs://bucket/x"
  assert absolute(Path("x")).as_posix() == str(Path("x").absolute())


def test_buckets_that_cannot_be_used_are_told_of_at_once(here, capfd):
  for path, write, message in (
    ("gs://no-such-bucket/x", False, "there is no bucket gs://no-such-bucket"),
    (f"gs://{PRIVATE}/x", False, r"may not list objects in it \(HTTP 401\); log in by"),
    (f"gs://{UNSEEN}/x", True, "may not look at it .*Legacy Bucket Reader.*HTTP 403"),
    (f"gs://{READ_ONLY}/x", True, r"may not write to it \(HTTP 403\); log in by"),
  ):
    with pytest.raises(UserError, match=message):
      user_path(path, write=write)
  user_path(f"gs://{READ_ONLY}/x")
  before = here.names()
  user_path("gs://bucket/new/run", write=True)
  assert here.names() == before, "the probe stayed"
  assert not capfd.readouterr().err


def test_a_storage_that_does_not_answer_is_one_line_in_seconds(unconnected, monkeypatch):
  monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://localhost:1")
  begin = time.monotonic()
  with pytest.raises(UserError, match="gs://bucket cannot be reached"):
    user_path("gs://bucket/x")
  assert time.monotonic() - begin < 20


def test_credentials_that_are_refused_are_one_line(unconnected, monkeypatch, tmp_path):
  url = os.environ["STORAGE_EMULATOR_HOST"]
  monkeypatch.delenv("STORAGE_EMULATOR_HOST")
  pem = rsa.generate_private_key(65537, 2048).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
  )
  key = {"type": "service_account", "client_email": "a@b", "private_key": pem.decode()}
  key["token_uri"] = f"{url}/token"
  (tmp_path / "key.json").write_text(json.dumps(key))
  monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "ours")  # which `connect` would set
  monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
  with pytest.raises(UserError, match=r"the Google credentials are refused .*gcloud auth"):
    user_path("gs://bucket/x")


def test_without_credentials_one_line_of_ours_is_logged(unconnected, monkeypatch, tmp_path, caplog, capfd):
  monkeypatch.delenv("STORAGE_EMULATOR_HOST")
  monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)
  for name in ("HOME", "CLOUDSDK_CONFIG"):
    monkeypatch.setenv(name, str(tmp_path))
  with caplog.at_level("DEBUG", "absl"):
    found = bucket.connect()
  assert "someone without credentials" in found.who
  assert len(caplog.records) == 1 and "no Google credentials" in caplog.text


def test_without_gcsfs_the_extra_is_named(unconnected, monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  with pytest.raises(UserError, match=r"need gcsfs: pip install -e '\.\[gcs\]'"):
    user_path("gs://bucket/x")


def test_no_bucket_is_made_where_a_folder_is(here):
  path = user_path(f"gs://{UNSEEN}/new/folder")
  for parents in (True, False):
    path.mkdir(parents=parents, exist_ok=True)  # which gcsfs does by looking at the bucket
  assert not path.exists()


def test_an_object_is_written_whole_or_not_at_all(here):
  path = user_path("gs://bucket/whole")
  with pytest.raises(ZeroDivisionError), whole_file(path) as file:
    file.write(b"half")
    raise ZeroDivisionError
  assert not path.exists()
  content = np.random.default_rng(0).bytes(12_000_000)  # in several parts
  with whole_file(path) as file:
    file.write(content)
  assert here.read("whole") == content


def test_a_damaged_checkpoint_is_set_aside(here):
  """With all its files, and without the numbers that begin alike; nothing of it stays behind."""
  workdir = user_path("gs://bucket/aside", write=True)
  written = {f"{step}/{name}": f"{step} {name}" for step in (5, 55) for name in ("a", "state/d/b")}
  for name, text in written.items():
    (workdir / "checkpoints" / name).write_text(text)
  where = Checkpoints(workdir)._set_aside(5)
  assert str(where) == "gs://bucket/aside/checkpoints_damaged/5"
  assert [(where / name).read_text() for name in ("a", "state/d/b")] == ["5 a", "5 state/d/b"]
  assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["55"]
  assert (workdir / "checkpoints/55/state/d/b").read_text() == "55 state/d/b"
