"""What is checked before training: by `train`, and by `--check_only` as far as it needs no devices."""

from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from iou_det import config as config_lib
from iou_det.data import Reading, is_here, open_dataset
from iou_det.data.plan import Plan, make_plan
from iou_det.data.source import Source, describe_difference
from iou_det.errors import UserError
from iou_det.evaluation.coco import choose_backend
from iou_det.evaluation.truth import ground_truth
from iou_det.network import make_model
from iou_det.parallel import device_mesh
from iou_det.storage import AnyPath, in_bucket, user_path
from iou_det.training.own import settle, table
from iou_det.training.step import create_state
from iou_det.weights.files import TORCH, library
from iou_det.weights.pretrained import find_pretrained, load_pretrained
from iou_det.weights.start import detector_to_start_from
from iou_det.workdir.checkpoints import has_checkpoint
from iou_det.workdir.lock import Lock
from iou_det.workdir.probe import probe
from iou_det.workdir.run import check_workdir, of_other_data
from iou_det.workdir.trackers import check_trackers

SOME_CLASSES = 80  # where the data are elsewhere: only the last class convolution depends on their number


class Data(NamedTuple):
  """What a run is trained and scored on, and the order of its batches."""

  source: Source
  val_source: Source
  truth: dict[str, Any]  # to score val_source against
  plan: Plan


def open_data(config: ConfigDict, workdir: AnyPath) -> Data:
  """Opens both splits and plans the batches: what is wrong with them is said before the first step.

  A refusal also says if the workdir is of a run that was trained on others.
  """
  try:
    return _open_data(config)
  except UserError as error:
    raise UserError(f"{error}{of_other_data(workdir, config)}") from None


def _open_data(config: ConfigDict) -> Data:
  d = config.data
  source, val_source = (open_dataset(d.path, s, Reading.of(d)) for s in (d.train_split, d.val_split))
  if source.categories != val_source.categories:
    both = f"{d.train_split!r} and {d.val_split!r} of {d.path}"
    difference = describe_difference({s.name: s.categories for s in (source, val_source)})
    raise UserError(f"splits {both} have different category tables ({difference})")
  truth = ground_truth(val_source, d.val_annotations, d.skip_bad)
  return Data(source, val_source, truth, make_plan(source, config))


def check_without_devices(config: ConfigDict, workdir: AnyPath) -> list[str]:
  """Does what `train` does before its first step as far as it can be done here; leaves nothing behind.

  Returns:
    Lines: what was not checked as it is not on this machine, each with why; the last says what was.

  Raises:
    UserError: training would refuse it.
  """
  config, chosen = settle(config, workdir)
  config_lib.validate(config)
  choose_backend(config.eval.backend)
  check_trackers(config.train.log_to)
  lines, checked = table(chosen, config) if chosen else [], ["flags", "config", "extras"]
  not_here = lambda name: lines.append(
    f"not checked: config.{name}={config_lib.get_field(config, name)} is not on this machine"
  )
  classes, steps = SOME_CLASSES, 1
  if is_here(config.data.path):
    data = open_data(config, workdir)
    classes, steps = len(data.source.categories), data.plan.steps_per_epoch
    checked.append(f"data ({classes} classes, {steps} steps an epoch)")
  else:
    not_here("data.path")

  mesh = device_mesh(1, jax.devices()[:1])
  make = lambda: create_state(config, make_model(config, classes), steps, mesh, None)[0]
  state: Any = jax.eval_shape(make)
  millions = sum(x.size for x in jax.tree.leaves(state.params)) / 1e6
  checked.append(f"network ({millions:.1f} million parameters)")
  if has_checkpoint(workdir):
    pass  # which it goes on from
  elif config.model.init:
    if user_path(config.model.init).exists():
      detector_to_start_from(config)
      checked.append("model.init")
    else:
      not_here("model.init")
  elif config.model.pretrained:
    path = find_pretrained(config.model)
    if path is None:
      lines.append(f"not checked: the download of config.model.pretrained={config.model.pretrained}")
    elif path.is_file():
      load_pretrained(config.model, state.variables)
      checked.append("model.pretrained")
    else:
      not_here("model.pretrained")
      if path.suffix == ".pth":
        library("torch", TORCH)

  check_workdir(workdir, config)
  if in_bucket(workdir) or workdir.is_dir() or workdir.parent.is_dir():
    with Lock(workdir) if workdir.is_dir() else nullcontext():  # another run may be at it
      probe(workdir)
    checked.append("workdir (a small checkpoint was written, read and removed)")
  else:
    lines.append(f"not checked: that --workdir={workdir} can be written; {workdir.parent} is not there")
  sizes = [f"config.{s}.batch_size={config[s].batch_size}" for s in ("train", "eval")]
  lines.append(f"not checked: that {' and '.join(sizes)} divide over the devices")
  return [*lines, f"checked: {', '.join(checked)}"]
