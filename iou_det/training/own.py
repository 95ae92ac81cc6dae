"""Open fields of a config (configs/own.py): filled by data and measured speed, then as config.json says."""

import contextlib
import math
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from iou_det.config import get_field, to_choose, validate, with_loss
from iou_det.data import WHAT_A_PATH_MAY_BE, Reading, format_of, open_dataset
from iou_det.data.pipeline import train_batches
from iou_det.data.plan import Plan, images_per_step, make_plan
from iou_det.data.source import Source
from iou_det.errors import Preempted, UserError
from iou_det.network import make_model
from iou_det.parallel import device_mesh, input_share, to_device
from iou_det.processes import of_process_0
from iou_det.storage import AnyPath, local_path
from iou_det.training.choice import Boxes, Chooser, Row, choose
from iou_det.training.step import create_state, make_train_step
from iou_det.workdir.run import read_config

VALIDATION = ("val", "valid", "validation", "test")
EVALUATIONS = 4  # at the most
EVALUATION_SHARE = 0.15  # of the time, at the most
FORWARD = 0.4  # of a training step's time: what detecting in as many images takes
WARM_UP, SECONDS, STEPS = 3, 10, (5, 200)  # steps before timing; how long is timed; at least and at most
FEW_STEPS = 500
WARM_UP_STEPS = 200  # of the learning rate, at the most
WIDTH = 110  # columns


def settle(
  config: ConfigDict, workdir: AnyPath | None = None, sources: dict[str, Source] | None = None
) -> tuple[ConfigDict, list[Row]]:
  """A valid config without open fields, and what was chosen now; nothing is measured.

  Open fields are filled as the workdir's config.json has them, or by the data, with a schedule of one epoch.

  Args:
    sources: splits that are open already; default: they are read from config.data.path.
  """
  fields = to_choose(config)
  if not fields:
    return config, []
  config = ConfigDict(config.to_dict())
  chooser = Chooser(config)
  if workdir and (workdir / "config.json").exists():
    stored = {name: get_field(read_config(workdir), name) for name in fields}
    with config.ignore_type():
      config.update_from_flattened_dict(stored)
    logging.info(f"as {workdir}/config.json has it: {', '.join(f'{k}={v}' for k, v in stored.items())}")
  else:
    choose_by_data(chooser, sources)
    why = f"until training measures it: what fits into {config.own.minutes:g} minutes"
    chooser.fill(why, train__epochs=1)
    chooser.fill("", train__warmup_steps=1, train__eval_epochs=1, train__checkpoint_epochs=1)
  validate(config)
  return config, chooser.rows


def settle_run(
  config: ConfigDict,
  workdir: AnyPath,
  devices: Sequence[jax.Device] | None,
  stopped: Callable[[], bool],
) -> ConfigDict:
  """The same for training: what the workdir's config.json does not say is chosen, measured, and told.

  Args:
    stopped: whether it was told to stop, as `Preemption.requested`: then a `Preempted` is raised.
  """
  if not to_choose(config) or (workdir / "config.json").exists():
    return settle(config, workdir)[0]
  chooser = Chooser(ConfigDict(config.to_dict()))
  if config.train.epochs is None and not config.own.minutes > 0:
    raise UserError(f"minutes={config.own.minutes:g}: must be above 0; or give --config.train.epochs")
  if config.data.path:
    logging.info(f"looking at {config.data.path} to choose what fits it")
  with quiet():  # training says the same of the data again
    source = choose_by_data(chooser, None)
  if chooser.config.train.epochs is None:
    logging.info(
      "compiling a training step, then timing it for about ten seconds: what fits into the minutes"
    )
  try:
    with quiet():
      choose_schedule(chooser, source, devices, stopped)
  finally:  # also before a refusal: what to change
    logging.info("%s", "\n".join(table(chooser.rows, chooser.config)))
  return chooser.config


def choose_by_data(chooser: Chooser, sources: dict[str, Source] | None) -> Source:
  """Fills all but the schedule; the training split."""
  d = chooser.config.data
  if not d.path:
    raise UserError(f"config.data.path is empty: give {WHAT_A_PATH_MAY_BE}")
  if None in (d.train_split, d.val_split):
    choose_splits(
      chooser, list(sources or format_of(local_path(d.path, "data path"), d.format).splits(d.path))
    )
  if sources is None:
    source = open_dataset(d.path, d.train_split, Reading.of(d))
  elif d.train_split in sources:
    source = sources[d.train_split]
  else:
    raise UserError(
      f"{d.path} has no split {d.train_split!r} that can be read; there are: {', '.join(sources)}"
    )
  choose(chooser, Boxes.of(source, d))
  return source


def choose_splits(chooser: Chooser, there: list[str]) -> None:
  """The first whose name is, or starts with, a usual one; where there is none, the usual name."""

  def find(usual: Sequence[str], taken: str | None = None) -> str:
    free = [split for split in there if split != taken]
    named = (split for name in usual for split in sorted(free, key=len) if split.lower().startswith(name))
    return next(named, usual[0])

  train = find(("train",), chooser.config.data.val_split)
  why = f"of {', '.join(there)}" if there else "usual"
  chooser.fill(why, data__train_split=train)
  val = find(VALIDATION, chooser.config.data.train_split)
  only = val.lower().startswith("test") and val in there
  chooser.fill("none is called val: the best step is chosen on it too" if only else "", data__val_split=val)


def choose_schedule(
  chooser: Chooser, source: Source, devices: Sequence[jax.Device] | None, stopped: Callable[[], bool]
) -> None:
  """Fills epochs and what depends on them, by the time of a training step on these devices."""
  config, t = chooser.config, chooser.config.train
  plan = make_plan(source, config)
  evaluations = EVALUATIONS
  if t.epochs is None:
    d, minutes = config.data, config.own.minutes
    val = open_dataset(d.path, d.val_split, Reading.of(d))
    seconds = of_process_0(step_seconds(config, source, plan, devices, stopped))
    evaluation = FORWARD * len(val) * seconds / images_per_step(t)
    epoch = plan.steps_per_epoch * seconds
    evaluations = max(1, min(EVALUATIONS, int(EVALUATION_SHARE * 60 * minutes / evaluation)))
    epochs = int((60 * minutes - evaluations * evaluation) / epoch)
    speed = f"a step of {images_per_step(t)} images takes {seconds:.3g} s here"
    if epochs < 1:
      needed = math.ceil((epoch + evaluation) / 6) / 10
      raise UserError(
        f"minutes={minutes:g}: {speed}, so an epoch of {plan.steps_per_epoch} steps with evaluation "
        f"takes {needed:g} minutes; give minutes={needed:g} or more, smaller --config.data.short and "
        "--config.data.long, or --config.train.epochs"
      )
    evaluations = min(evaluations, epochs)
    steps = epochs * plan.steps_per_epoch
    why = (
      f"{speed}: {epochs} epochs of {plan.steps_per_epoch} steps and {evaluations} evaluations in "
      f"{minutes:g} minutes, without compiling"
    )
    if steps < FEW_STEPS and not config.model.init:
      why += f"; {steps} steps are few from scratch: give more minutes or init=DETECTOR"
    chooser.fill(why, train__epochs=epochs)
  every = -(-int(t.epochs) // evaluations)
  warm = max(1, min(WARM_UP_STEPS, round(t.epochs * plan.steps_per_epoch / 20)))
  chooser.fill("a twentieth of the steps, at most 200", train__warmup_steps=warm)
  chooser.fill("", train__eval_epochs=every, train__checkpoint_epochs=every)


def step_seconds(
  config: ConfigDict,
  source: Source,
  plan: Plan,
  devices: Sequence[jax.Device] | None,
  stopped: Callable[[], bool],
) -> float:
  """Seconds of a training step with its input, as the training loop runs it; compiling does not count."""
  config = with_loss(config, w_loc=1.0)
  with config.ignore_type():
    config.train.update(epochs=1, warmup_steps=1)
  mesh = device_mesh(config.train.batch_size, devices, setting="config.train.batch_size")
  model = make_model(config, len(source.categories))
  state, optimizer = create_state(config, model, plan.steps_per_epoch, mesh, None)
  train_step = make_train_step(config, model, optimizer, plan.steps_per_epoch, mesh, state)
  batches = train_batches(source, plan, config.data, range(plan.steps_per_epoch * 10**6), input_share(mesh))

  def run(steps: int) -> float:
    """Seconds of so many steps."""
    nonlocal state
    start, running = time.monotonic(), deque[jax.Array]()
    for _ in range(steps):
      if stopped():
        raise Preempted
      batch, portrait = next(batches)
      state, out = train_step(state, to_device(batch, mesh), portrait)
      running.append(out["loss"])
      if len(running) > 2:
        jax.block_until_ready(running.popleft())
    jax.block_until_ready(running)
    return time.monotonic() - start

  run(WARM_UP)
  one = run(WARM_UP) / WARM_UP
  least, most = STEPS
  steps = of_process_0(max(least, min(int(SECONDS / one), most)))
  compiled = -1
  while compiled != (compiled := train_step._cache_size()):  # type: ignore[attr-defined]  # the other orientation came
    seconds = run(steps)
  return seconds / steps


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  logger = logging.get_absl_logger()
  before = logger.level
  logger.setLevel("ERROR")
  try:
    yield
  finally:
    logger.setLevel(before)


def table(rows: Sequence[Row], config: ConfigDict) -> list[str]:
  """Lines: what was chosen and why, and how to change it."""
  lines = [f"chosen for {config.data.path}; any of it can be given: --config.FIELD=VALUE"]
  names, values = (max(len(str(row[i])) for row in rows) for i in (0, 1))
  for row in rows:
    head = f"  {row.field:<{names}}  {row.value!s:<{values}}  "
    whole: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    first, *more = textwrap.wrap(row.why, WIDTH - len(head), **whole) or [""]
    lines += [f"{head}{first}".rstrip(), *(" " * len(head) + line for line in more)]
  return lines
