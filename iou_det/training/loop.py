"""The training loop, top to bottom: data, state, resume, steps, log, evaluate, save."""

import dataclasses
import json
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from iou_det import config as config_lib
from iou_det.data.pipeline import train_batches
from iou_det.data.plan import Plan, images_per_step
from iou_det.data.source import Source
from iou_det.detector import Detector
from iou_det.errors import Preempted, UserError
from iou_det.evaluation.coco import choose_backend
from iou_det.network import make_model
from iou_det.parallel import abstract, device_mesh, input_share, to_device
from iou_det.preemption import Preemption
from iou_det.processes import by_process_0
from iou_det.storage import AnyPath, user_path, write_whole
from iou_det.training.checks import open_data
from iou_det.training.diagnostics import as_row, make_diagnostics
from iou_det.training.own import settle_run
from iou_det.training.profiling import Profiler
from iou_det.training.progress import Progress
from iou_det.training.step import create_state, make_train_step
from iou_det.training.stopping import stops_early
from iou_det.training.validation import mean_loss, validation_loss
from iou_det.training.watch import Watch, before_training, say
from iou_det.training.wloc import resolve_w_loc
from iou_det.workdir.checkpoints import Checkpoints, has_checkpoint
from iou_det.workdir.lock import Lock
from iou_det.workdir.metrics import MetricsLog
from iou_det.workdir.place import is_full, no_room
from iou_det.workdir.probe import probe
from iou_det.workdir.run import check_same_config, check_workdir, note_epochs
from iou_det.workdir.trackers import check_trackers, start_trackers


def train(
  config: ConfigDict, workdir: str | os.PathLike[str], devices: Sequence[jax.Device] | None = None
) -> dict[str, Any]:
  """Trains to the last step, from the last checkpoint in `workdir` if there is one.

  Args:
    workdir: here or on gs://; gets config.json, metrics.jsonl, tensorboard/, checkpoints/ and eval/.
    devices: default: all.

  Returns:
    The last evaluation's metrics. After SIGTERM or Ctrl-C a `Preempted` is raised instead, with the state
    saved; for bad config or data, a workdir of another config or a loss that is not finite, a UserError.
  """
  # Both to the very end: what is being saved must not be interrupted, nor another run begin.
  with Preemption() as preemption, ExitStack() as at_end:
    try:
      return train_unless(preemption, at_end, config, user_path(workdir, write=True), devices)
    except OSError as error:
      if is_full(error):
        raise no_room(workdir) from None
      raise


def train_unless(
  preemption: Preemption,
  at_end: ExitStack,
  config: ConfigDict,
  workdir: epath.Path,
  devices: Sequence[jax.Device] | None,
) -> dict[str, Any]:
  """See `train`."""
  config = settle_run(config, workdir, devices, preemption.requested)
  config_lib.validate(config)
  lead = jax.process_index() == 0
  make_mesh = lambda size, setting: device_mesh(size, devices, setting=setting)
  mesh = make_mesh(config.train.batch_size, "config.train.batch_size")
  make_mesh(config.eval.batch_size, "config.eval.batch_size")  # fail now, not at the first evaluation

  # Data: what there is, and the order of all batches as a function of (seed, step).
  d, t = config.data, config.train
  backend = choose_backend(config.eval.backend)
  check_trackers(t.log_to)
  source, val_source, truth, plan = open_data(config, workdir)
  last_step = t.epochs * plan.steps_per_epoch

  # State: fresh, or the last checkpoint.
  model = make_model(config, len(source.categories))
  resumes = by_process_0(lambda: has_checkpoint(workdir))
  start_from = None if resumes else source.categories
  state, optimizer = create_state(config, model, plan.steps_per_epoch, mesh, start_from)
  check_workdir(workdir, config)  # after all other checks: a config that cannot train leaves no trace
  multihost_utils.sync_global_devices("all have looked into the workdir")
  lock = at_end.enter_context(Lock(workdir))
  if by_process_0(lambda: has_checkpoint(workdir)) != resumes:
    raise UserError(f"--workdir={workdir}: another run saved there just now; give the same command again")
  probe(workdir)
  if lead and not (workdir / "config.json").exists():
    write_whole(workdir / "config.json", json.dumps(config.to_dict()) + "\n")
  multihost_utils.sync_global_devices("the workdir is there")
  checkpoints = Checkpoints(workdir, keep=t.keep_checkpoints)
  checkpoints.take_scores_of_process_0()
  fingerprint = source.fingerprint()
  if resumes:

    def check(run: dict[str, Any]) -> None:
      check_same_config(config, run, workdir)
      check_same_data(run, source, plan, fingerprint, workdir)

    state = checkpoints.resume(abstract(mesh, state), check)
  config = resolve_w_loc(config, source, workdir)
  start_step = int(state.step)
  if start_step > last_step:
    raise UserError(
      f"--workdir={workdir} has been trained for {start_step} steps, config.train.epochs={t.epochs} are "
      f"{last_step}; give --config.train.epochs={-(-start_step // plan.steps_per_epoch)} or more"
    )
  if lead:
    note_epochs(workdir, t.epochs)
  if stops_early(checkpoints.scores, t.stop_after):
    last_step = start_step
  train_step = make_train_step(config, model, optimizer, plan.steps_per_epoch, mesh, state)
  diagnose = make_diagnostics(config, model, mesh)
  millions = sum(x.size for x in jax.tree.leaves(state.params)) / 1e6
  what = f"{mesh.size} devices ({mesh.devices.flat[0].device_kind}), {millions:.1f} million parameters"
  logging.info(f"{what}, steps {start_step}..{last_step}, {plan.steps_per_epoch} an epoch")
  if lead:
    logging.info(f"{backend} scores the evaluations (config.eval.backend={config.eval.backend})")
  if lead and not start_step:
    say(before_training(config, source, val_source))

  also = validation_loss(config, model, mesh, val_source)
  detector = Detector(config, model, mesh, source.categories, also=also)
  log = MetricsLog(workdir, start_step, start_trackers(config, workdir)) if lead else None
  watch = Watch(config, log.rows if log else [], last_step)
  every = t.eval_epochs * plan.steps_per_epoch
  seconds_of = f"{d.val_split}/seconds"
  took = [row[seconds_of] for row in log.rows if seconds_of in row] if log else []
  progress = Progress(start_step, last_step, every, checkpoints.scores, took[-1] if took else None)
  profiler = Profiler(t.profile_steps, workdir / "tensorboard")

  def save(step: int) -> None:
    lock.check()
    run = {
      "data": {
        "step": step,
        "steps_per_epoch": plan.steps_per_epoch,
        "fingerprint": fingerprint,
        "images": len(source),
      },
      "config": config.to_dict(),
      "categories": [dataclasses.asdict(c) for c in source.categories],
    }
    if log:
      log.flush()  # first: rows behind the last checkpoint are dropped, missing ones are not made again
    checkpoints.save(step, state, run)

  def evaluate(step: int) -> dict[str, Any]:
    asked = preemption.requested
    detector.variables = state.averaged if t.ema else state.variables
    scored = detector.evaluate(val_source, truth, backend=backend, interrupted=asked)
    return scored.write(workdir / "eval" / d.val_split, step=step, split=d.val_split)

  def score(step: int) -> dict[str, Any]:
    began = time.monotonic()
    scores = evaluate(step)
    if scores["AP"] is not None:
      checkpoints.scores[step] = scores["AP"]
    figures = {k: v for k, v in scores.items() if isinstance(v, float)}
    figures |= mean_loss(also.values) | {"seconds": time.monotonic() - began}
    if log:
      log.write(step, {f"{d.val_split}/{k}": v for k, v in figures.items()})
    progress.scored(step, d.val_split, figures)
    return scores

  def due(step: int, every: int) -> bool:
    epoch, rest = divmod(step, plan.steps_per_epoch)
    return step == last_step or (rest == 0 and epoch % every == 0)

  metrics: dict[str, Any] | None = None
  batches = train_batches(source, plan, d, range(start_step, last_step), input_share(mesh))
  window: list[dict[str, jax.Array]] = []  # metrics of the steps since the last log line, on the device
  running: deque[jax.Array] = deque()
  try:
    preemption.watch(t.hang_minutes)
    if preemption.requested():  # while all this was made ready: there is nothing to save
      raise Preempted
    if start_step and due(start_step, t.eval_epochs) and start_step not in checkpoints.scores:
      metrics = score(start_step)  # its evaluation was cut off, or there is nothing left to train
    waited, since = 0.0, time.monotonic()
    for step in range(start_step + 1, last_step + 1):
      before = time.monotonic()
      batch, portrait = next(batches)
      waited += time.monotonic() - before
      arrays = to_device(batch, mesh)
      if t.diagnostics_every and step % t.diagnostics_every == 0:
        sums = jax.device_get(diagnose(state, arrays, portrait))
        if log:
          log.write(step, as_row(sums))
      profiler.before(step)
      with jax.transfer_guard("disallow"):
        state, out = train_step(state, arrays, portrait)
      profiler.after(step, out["loss"])
      window.append(out)
      running.append(out["loss"])
      if len(running) > 2:  # no more than two steps ahead of the device: bounds the memory of waiting batches
        jax.block_until_ready(running.popleft())
      progress.stepped()

      if step == start_step + 1:
        preemption.begin()
      stop = preemption.requested()
      to_score = due(step, t.eval_epochs)
      to_log = step % t.log_every == 0
      to_save = stop or to_score or due(step, t.checkpoint_epochs)
      to_save = to_save or checkpoints.overdue(t.checkpoint_minutes, time.monotonic() - since, to_log)
      if to_log or to_save or step == start_step + 1:
        rows = jax.device_get(window)
        check_finite(rows, step - len(rows), plan, source)
        checkpoints.check()
        seconds = time.monotonic() - since
        row = {k: float(np.mean([r[k] for r in rows])) for k in rows[0]}
        row["boxes_cropped_away"] = float(sum(r["boxes_cropped_away"] for r in rows))  # a count, not a mean
        row |= {
          "learning_rate": float(rows[-1]["learning_rate"]),
          "epoch": step / plan.steps_per_epoch,
          "images_per_second": len(rows) * images_per_step(t) / seconds,
          "input_wait_share": waited / seconds,
        }
        if log:
          log.write(step, row)
          say(watch.logged(step, rows, row))
        progress.logged(row, len(rows), seconds)
        window, waited, since = [], 0.0, time.monotonic()

      if to_save:
        save(step)
      if stop:
        checkpoints.wait()
        raise Preempted
      if to_score:
        metrics = score(step)
        if stops_early(checkpoints.scores, t.stop_after):
          break
      if to_save:
        since = time.monotonic()
      compiled = train_step._cache_size()  # type: ignore[attr-defined]
      assert compiled <= 2, "the step was compiled more than once for each orientation"
    return metrics or evaluate(start_step)  # nothing was left to train
  except Preempted:
    logging.warning(f"{preemption.reason}: what was trained is saved; the same command goes on from here")
    raise
  finally:
    try:
      progress.close()
      profiler.close()
      if log:
        log.close()
    finally:
      checkpoints.close()  # waits for what is being saved


def check_finite(rows: list[dict[str, Any]], before: int, plan: Plan, source: Source) -> None:
  """Raises a UserError with the first step (after `before`) whose loss is not finite, and its images."""
  for step, row in enumerate(rows, before + 1):
    if not (math.isfinite(row["loss"]) and math.isfinite(row["gradient_norm"])):
      ids = source.annotations.image_id[plan.batch(step - 1).records].tolist()
      raise UserError(
        f"step {step}: the loss is {row['loss']}, its gradient norm {row['gradient_norm']}, on the images "
        f"with ids {', '.join(map(str, ids))}; lower train.learning_rate, lengthen train.warmup_steps or "
        "look at the boxes of these images; earlier checkpoints are kept"
      )


def check_same_data(
  saved: dict[str, Any], source: Source, plan: Plan, fingerprint: str, workdir: AnyPath
) -> None:
  """Refuses to go on with other data than a checkpoint was trained on: its order would mean other images."""
  then = (saved["categories"], saved["data"]["steps_per_epoch"])
  now = ([dataclasses.asdict(c) for c in source.categories], plan.steps_per_epoch)
  if then != now:
    raise UserError(
      f"--workdir={workdir} was trained on other data ({len(then[0])} categories and {then[1]} steps an "
      f"epoch; {source.name} has {len(now[0])} and {now[1]}, or other names); give the same data, or another "
      "--workdir"
    )
  if "fingerprint" not in saved["data"]:
    logging.info(
      f"{workdir}: an earlier version, which did not note on which images and boxes it was trained"
    )
  elif saved["data"]["fingerprint"] != fingerprint:
    raise UserError(
      f"--workdir={workdir} was trained on other data: image ids, sizes, boxes, classes or crowds of "
      f"{source.name} have changed since; give the data as they were, or another --workdir"
    )
