"""Says on one page what this machine, a config and a data set are fit for, and what is odd in them.

  iou-det doctor                                          the machine
  iou-det doctor --data=FOLDER                            and every split of a data set of any format
  iou-det doctor --config=FILE.py:ARG [--data=FOLDER]     and what training this config needs

Each oddity comes with what to do. The exit code is 0 if there are none but notes, 1 with warnings, 2 with
errors: what training would refuse, or what would make it worthless. Nothing is written, no device is taken.
See also `iou-det train --check_only`, which does what training does before its first step, and `iou-det
prepare`, which opens every picture.
"""

import contextlib
import os
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

from iou_det import machine
from iou_det.commands import flags as common
from iou_det.config import to_choose, validate
from iou_det.data import EXIF, NAMES, Reading, is_here
from iou_det.data.labels import Labels
from iou_det.data.look import Look, look
from iou_det.data.plan import make_plan
from iou_det.errors import UserError
from iou_det.evaluation.truth import ground_truth
from iou_det.finding import LEVELS, Finding, by_level, some
from iou_det.storage import SHARED
from iou_det.streams import one_line
from iou_det.training import fit
from iou_det.training.checks import SOME_CLASSES
from iou_det.training.own import settle, table

CONFIG = common.config(
  "Its data.path is looked at unless --data names another; --config.a.b=value as in train."
)
DATA = flags.DEFINE_string("data", None, "Folder of a data set of any known format; default: the config's.")
FORMAT_HELP = "Of the data set; auto: by looking. Default: the config's."
FORMAT = flags.DEFINE_enum("format", None, ["auto", *NAMES], FORMAT_HELP)
EXIF_HELP = "Whether pictures are turned as EXIF says, as in prepare. Default: the config's."
EXIF_FLAG = flags.DEFINE_enum("exif", None, EXIF, EXIF_HELP)
PICTURES_HELP = "So many pictures are opened at the most; 0: none, only annotations are read."
PICTURES = flags.DEFINE_integer("pictures", 1000, PICTURES_HELP, lower_bound=0)
WIDTH, LABEL = 110, 14  # columns
OWN = 16  # pictures of the data set whose decoding is timed


def main() -> int:
  jax.config.update("jax_platforms", "cpu")  # before JAX looks for devices: another run may have them
  logging.set_verbosity(logging.ERROR)  # what reading says is among the findings
  config = checked_config()
  path = DATA.value or (config.data.path if config else "")
  devices, limits = machine.ask_devices(), machine.limits()
  findings = [*devices.findings, *machine.few_cores(limits)]
  seen = Look("")
  if path and not (is_here(path) or DATA.value):
    todo = "give --data=FOLDER if it is here under another name"
    findings.append(
      Finding("warning", f"config.data.path={path} is not on this machine: not looked at", todo)
    )
  elif path:
    wanted = [config.data.train_split, config.data.val_split] if config else None
    if wanted and None in wanted:  # to be chosen
      wanted = None
    seen = look(path, wanted, reading(config), PICTURES.value)
    findings += seen.findings
  rooms, odd = machine.room([Path.cwd(), *([Path(path)] if seen.splits and os.path.isdir(path) else [])])
  findings += odd
  rows = [
    *machine.installed(),
    ("devices", machine.describe_devices(devices)),
    *machine.describe_limits(limits),
    *rooms,
    ("decodes", machine.decoding(own_pictures(seen), limits)),
  ]
  chosen: list[str] = []
  if config and to_choose(config):
    try:
      config, why = settle(config, sources=seen.sources)
      chosen = ["", *table(why, config)]
    except UserError as error:
      findings.append(Finding("error", f"nothing can be chosen by the data: {error}"))
      config = None
  if config:
    needed, odd = needs(config, devices, limits, seen)
    rows += needed
    findings += odd
  if seen.what:
    rows += [
      ("data", seen.what),
      *(describe(*item) for item in seen.splits.items()),
      ("pictures", seen.pictures),
    ]
  print(page(rows, findings), *chosen, sep="\n")
  worst = min((LEVELS.index(finding.level) for finding in findings), default=2)
  return 2 - worst


def checked_config() -> ConfigDict | None:
  """The config, valid; or None."""
  config = CONFIG.value
  if config is None:
    return None
  if DATA.value:
    config.data.path = DATA.value
  unsaid = not config.data.path
  if unsaid:
    config.data.path = "made up"  # the rest can be checked
  if not to_choose(config):
    validate(config)
  if unsaid:
    config.data.path = ""
  return config


def reading(config: ConfigDict | None) -> Reading:
  given: dict[str, Any] = {"format": FORMAT.value, "exif": EXIF_FLAG.value}
  found = Reading.of(config.data) if config else Reading()
  return found._replace(**{name: value for name, value in given.items() if value})


def needs(
  config: ConfigDict, devices: machine.Devices, limits: machine.Limits, seen: Look
) -> tuple[list[tuple[str, str]], list[Finding]]:
  """The memory that a config needs, and whether data and machine fit it."""
  findings = list(fit.objects_and_images(config, seen.splits)) if seen.splits else []
  d, sources = config.data, seen.sources
  try:
    if d.train_split in sources:
      make_plan(sources[d.train_split], config)
    if d.val_split in sources and d.val_annotations:
      ground_truth(sources[d.val_split], d.val_annotations, d.skip_bad)
  except UserError as error:
    findings.append(Finding("error", f"training refuses the data: {error}"))
  classes = max((len(labels.categories) for labels in seen.splits.values()), default=SOME_CLASSES)
  host = fit.host_memory(config, seen.splits)
  kind, number = devices.platform or "cpu", devices.number or 1
  try:
    device = fit.device_memory(config, classes, kind, number)
  except UserError as error:
    return [], [*findings, Finding("error", str(error))]
  findings += fit.memory(host, device, limits.available, machine.shared_free(), devices.memory)
  size = machine.size
  shared = f", {size(host.shared)} of {SHARED}" if host.shared else ""
  return [
    ("config", f"batches read ahead take up to {size(host.ram)} of memory{shared}"),
    (
      "",
      f"a step of {config.train.batch_size} images on {number} x {kind} takes {size(device.total)} a device, "
      f"{size(device.state)} of it parameters and optimizer: counted, without what the compiler adds "
      "(`iou-det bench train` measures it)",
    ),
  ], findings


def own_pictures(seen: Look) -> list[bytes]:
  """Some pictures of the data set."""
  for source in seen.sources.values():
    with contextlib.suppress(OSError):
      return [source.read(i) for i in np.linspace(0, len(source) - 1, OWN, dtype=int).tolist()]
  return []


def describe(split: str, labels: Labels) -> tuple[str, str]:
  """A row of the page."""
  a = labels.annotations
  sizes, times = np.unique(np.stack([a.width, a.height], axis=1), axis=0, return_counts=True)
  most = "x".join(map(str, sizes[times.argmax()].tolist()))
  counts = np.bincount(a.label, minlength=len(labels.categories))
  order = np.argsort(-counts, kind="stable")
  per_class = some((f"{labels.categories[k].name} {counts[k]}" for k in order.tolist()), 8)
  size = f"of {most}" if len(sizes) == 1 else f"of {len(sizes)} sizes (mostly {most})"
  return f"  {split}", f"{len(a)} images {size}, {len(a.bbox)} boxes of {len(counts)} classes: {per_class}"


def page(rows: list[tuple[str, str]], findings: list[Finding]) -> str:
  """What there is, then what is odd, the worst first."""

  def wrap(text: str, label: str) -> str:
    label, more = f"{label:<{LABEL}}", " " * LABEL
    whole: dict[str, Any] = {
      "break_long_words": False,
      "break_on_hyphens": False,
    }  # flags and paths can be copied
    return textwrap.fill(one_line(text), WIDTH, initial_indent=label, subsequent_indent=more, **whole)

  lines = [wrap(text, label) for label, text in rows if text]
  numbers = Counter(finding.level for finding in findings)
  lines += ["", ", ".join(f"{level}s: {numbers[level]}" for level in LEVELS)]
  for level, what, todo in by_level(findings):
    lines.append(wrap(what, level))
    if todo:
      lines.append(wrap(todo, "  what to do"))
  return "\n".join(lines)
