"""W&B and MLflow beside metrics.jsonl (`config.train.log_to`); where, or offline, their own variables say.

Rows are sent by a thread: what a service that does not answer costs is rows there, said once and counted.
"""

import importlib.util
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from absl import logging
from ml_collections import ConfigDict

from iou_det.config import FIELDS, get_field
from iou_det.errors import Preempted, UserError
from iou_det.storage import AnyPath, in_bucket, read_json, write_json

IDS = "trackers.json"  # in the workdir: the run's id in each, so that it goes on there too
PROJECT = "iou-det"
WAIT = 60.0  # seconds at the end for what was not sent
WAIT_TOLD = 5.0  # the same for a process that was told to stop: a spot machine is off after 30
PARAMETERS = 100  # that MLflow takes at once

Row = dict[str, float]


class Opened(NamedTuple):
  """A run of a service: how it is found again, gets a row of a step, and ends."""

  id: str
  send: Callable[[int, Row], None]
  end: Callable[[bool], None]  # told whether training failed, or was told to stop


def open_wandb(config: ConfigDict, workdir: AnyPath, known: str | None) -> Opened:
  import wandb

  os.environ.setdefault("WANDB_FINISH_TIMEOUT", f"{WAIT:g}")  # else a service that is away holds up the end
  number = known or secrets.token_hex(4)
  run = wandb.init(
    project=os.environ.get("WANDB_PROJECT", PROJECT),
    name=os.environ.get("WANDB_NAME", workdir.name),
    dir=None if in_bucket(workdir) or "WANDB_DIR" in os.environ else os.fspath(workdir),
    id=number,
    resume="allow",
    config=config.to_dict(),
    settings=wandb.Settings(console="off"),  # output is ours, see `iou_det.streams`
  )
  # W&B's own steps may only rise, but what a killed run logged after its last checkpoint comes again.
  run.define_metric("step")
  run.define_metric("*", step_metric="step")
  return Opened(
    number, lambda step, row: run.log({"step": step, **row}), lambda failed: run.finish(int(failed))
  )


def open_mlflow(config: ConfigDict, workdir: AnyPath, known: str | None) -> Opened:
  os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # its 7 would hold up the start for minutes
  os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds
  from mlflow.entities import Metric, Param
  from mlflow.tracking import MlflowClient

  client = MlflowClient()
  if known:
    client.update_run(known, status="RUNNING")
    number = known
  else:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    there = client.get_experiment_by_name(name)
    experiment = there.experiment_id if there else client.create_experiment(name)
    number = client.create_run(experiment, run_name=workdir.name).info.run_id
    settings = [Param(name, str(get_field(config, name))) for name in FIELDS]
    for first in range(0, len(settings), PARAMETERS):
      client.log_batch(number, params=settings[first : first + PARAMETERS])

  def send(step: int, row: Row) -> None:
    now = int(1000 * time.time())
    client.log_batch(number, metrics=[Metric(name, value, now, step) for name, value in row.items()])

  end = lambda failed: client.set_terminated(number, "FAILED" if failed else "FINISHED")
  return Opened(number, send, end)


OPEN = {"wandb": open_wandb, "mlflow": open_mlflow}  # the config's TRACKERS


def check_trackers(names: Iterable[str]) -> None:
  """A UserError for one that is not installed."""
  for name in names:
    if importlib.util.find_spec(name) is None:
      raise UserError(f"config.train.log_to: {name!r} is not installed; pip install -e '.[{name}]'")


def start_trackers(config: ConfigDict, workdir: AnyPath) -> list["Tracker"]:
  """Those of the config, for process 0; one that cannot be reached is left out, with a warning."""
  path, started = workdir / IDS, []
  ids = read_json(path, "remove it: the run then begins anew in W&B and MLflow") if path.exists() else {}
  for name in config.train.log_to:
    try:
      opened = OPEN[name](config, workdir, ids.get(name))
    except Exception as error:  # of any kind: it must not end a training
      lost(name, error, "this start logs nothing there")
      continue
    started.append(Tracker(name, opened))
    if ids.get(name) != opened.id:
      ids[name] = opened.id
      write_json(path, ids)
  return started


def lost(name: str, error: Exception, what: str) -> None:
  reason = " ".join(str(error).split())[:300]
  logging.warning(f"{name} ({type(error).__name__}: {reason}): {what}; metrics.jsonl has all")


class Tracker:
  """Takes rows at once and sends them one after another."""

  def __init__(self, name: str, opened: Opened):
    self.name, self.opened, self.lost, self.failed = name, opened, 0, False
    self.rows: queue.SimpleQueue[tuple[int, Row] | None] = queue.SimpleQueue()
    self.thread = threading.Thread(target=self._send, name=name, daemon=True)
    self.thread.start()

  def write(self, step: int, row: Row) -> None:
    self.rows.put((step, row))

  def close(self) -> None:
    error = sys.exc_info()[0]  # on the way out of a training that did not come to its end
    self.failed, wait = error is not None, WAIT_TOLD if error is Preempted else WAIT
    self.rows.put(None)
    self.thread.join(wait)
    if self.thread.is_alive():
      logging.warning(f"{self.name} is still sending after {wait:g} s: what it lacks is in metrics.jsonl")
    if self.lost:
      logging.warning(f"{self.name} did not take {self.lost} rows; metrics.jsonl has them")

  def _send(self) -> None:
    while (item := self.rows.get()) is not None:
      self._try(partial(self.opened.send, *item))
    self._try(partial(self.opened.end, self.failed))

  def _try(self, act: Callable[[], None]) -> None:
    try:
      act()
    except Exception as error:
      self.lost += 1
      if self.lost == 1:
        lost(self.name, error, "it does not take what is logged; it is asked again for each row")
