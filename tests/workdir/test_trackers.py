"""W&B and MLflow: the libraries themselves, offline; services that fail, hang, or are not there."""

import sys
import threading
import time
import types
from importlib.machinery import ModuleSpec

import pytest

from iou_det.config import TRACKERS, base_config
from iou_det.errors import UserError
from iou_det.storage import read_json
from iou_det.workdir import trackers
from iou_det.workdir.metrics import MetricsLog, read_metrics
from iou_det.workdir.trackers import OPEN, Opened, check_trackers, start_trackers

ROWS = {1: {"loss": 1.5, "learning_rate": 0.01}, 2: {"loss": 1.25, "learning_rate": 0.02}, 4: {"val/AP": 0.5}}


def log(workdir, *names, start_step=0, rows=None):
  config = base_config()
  config.train.log_to = names
  metrics = MetricsLog(workdir, start_step, start_trackers(config, workdir))
  for step, row in (rows or ROWS).items():
    metrics.write(step, row)
  metrics.close()


@pytest.fixture
def service(monkeypatch):
  """In place of W&B; what is in `broken` fails. Which runs were opened, and what they got."""
  seen = types.SimpleNamespace(opened=[], got=[], ended=0, broken=set(), hangs=threading.Event())
  seen.hangs.set()

  def open_run(config, workdir, known):
    seen.opened.append(known)
    if "open" in seen.broken:
      raise ConnectionError("no route\nto host")

    def send(step, row):
      seen.hangs.wait()
      if step in seen.broken:
        raise TimeoutError("gateway")
      seen.got.append((step, row))

    def end(failed):
      seen.ended += 1
      seen.failed = failed

    return Opened(known or "id1", send, end)

  monkeypatch.setitem(OPEN, "wandb", open_run)
  return seen


def test_every_row_is_sent_in_order_and_the_next_start_goes_on_in_the_same_run(service, tmp_path):
  log(tmp_path, "wandb")
  assert service.got == list(ROWS.items()) and service.ended == 1 and not service.failed
  log(tmp_path, "wandb", start_step=4, rows={5: {"loss": 1.0}})
  assert service.opened == [None, "id1"] and service.got[-1] == (5, {"loss": 1.0})
  assert read_json(tmp_path / "trackers.json", "") == {"wandb": "id1"}


def test_a_training_that_ends_by_an_error_is_told_as_one(service, tmp_path):
  config = base_config()
  config.train.log_to = ("wandb",)
  metrics = MetricsLog(tmp_path, 0, start_trackers(config, tmp_path))
  with pytest.raises(UserError):
    try:
      raise UserError("the loss is nan")
    finally:
      metrics.close()
  assert service.ended == 1 and service.failed


def test_rows_that_are_not_taken_are_said_once_and_counted(service, tmp_path, caplog):
  service.broken = {1, 2}
  log(tmp_path, "wandb")
  assert [step for step, _ in service.got] == [4]
  assert caplog.text.count("wandb (TimeoutError: gateway)") == 1
  assert "wandb did not take 2 rows; metrics.jsonl has them" in caplog.text
  assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 4]


def test_a_service_that_is_away_at_the_start_is_left_out(service, tmp_path, caplog):
  service.broken = {"open"}
  log(tmp_path, "wandb")
  assert "wandb (ConnectionError: no route to host): this start logs nothing there" in caplog.text
  assert not service.got and not (tmp_path / "trackers.json").exists()


def test_a_service_that_hangs_holds_up_neither_the_steps_nor_the_end(service, tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(trackers, "WAIT", 0.1)
  service.hangs.clear()
  log(tmp_path, "wandb")
  service.hangs.set()
  assert "wandb is still sending after 0.1 s" in caplog.text
  assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3


@pytest.mark.parametrize("name", TRACKERS)
def test_one_that_is_not_installed_is_one_line(name, monkeypatch):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(UserError, match=rf"log_to: '{name}' is not installed; pip install -e '.\[{name}\]'"):
    check_trackers([name])
  here = types.ModuleType(name)
  here.__spec__ = ModuleSpec(name, None)
  monkeypatch.setitem(sys.modules, name, here)
  check_trackers([name])
  assert list(OPEN) == list(TRACKERS)


def history(data):
  """Rows in a file of W&B's: 7 bytes, then blocks as of LevelDB's log, whose records are protocol buffers."""
  from wandb.proto.wandb_internal_pb2 import Record

  at, record = 7, b""
  while at < len(data):
    if (room := 2**15 - at % 2**15) < 7:
      at += room
      continue
    length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
    record += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # whole, or the last part
      read, record = Record.FromString(record), b""
      if read.WhichOneof("record_type") == "history":
        items = {i.key or i.nested_key[0]: float(i.value_json) for i in read.history.item}
        yield {name: value for name, value in items.items() if not name.startswith("_")}


def test_wandb_itself_writes_the_rows_offline_and_goes_on(tmp_path, monkeypatch, caplog):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  log(tmp_path, "wandb")
  time.sleep(1.1)  # W&B names a start's folder by the second
  log(tmp_path, "wandb", start_step=2, rows={3: {"loss": 1.0}})
  number = read_json(tmp_path / "trackers.json", "")["wandb"]
  got = []
  for file in sorted((tmp_path / "wandb").glob(f"offline-run-*-{number}/run-{number}.wandb")):
    got += history(file.read_bytes())
  expected = [{"step": step, **row} for step, row in [*ROWS.items(), (3, {"loss": 1.0})]]
  assert got == expected and not caplog.records


def test_mlflow_itself_keeps_the_rows_in_a_folder_and_goes_on(tmp_path, monkeypatch, caplog):
  pytest.importorskip("mlflow")
  monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
  monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
  from mlflow.tracking import MlflowClient

  log(tmp_path, "mlflow")
  log(tmp_path, "mlflow", start_step=2, rows={3: {"loss": 1.0}})
  client, number = MlflowClient(), read_json(tmp_path / "trackers.json", "")["mlflow"]
  history = lambda name: [(m.step, m.value) for m in client.get_metric_history(number, name)]
  assert history("loss") == [(1, 1.5), (2, 1.25), (3, 1.0)]
  assert history("val/AP") == [(4, 0.5)]
  run = client.get_run(number)
  assert run.info.status == "FINISHED" and run.data.params["train.epochs"] == "12"
  assert not [r for r in caplog.records if "this start" in r.message or "did not take" in r.message]
