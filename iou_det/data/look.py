"""What is in a data set, and what is odd in it, looked at without refusing anything: for `doctor`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from iou_det.data import Reading, format_of, read_labels
from iou_det.data.checks import check_pictures, content_number, remark_boxes
from iou_det.data.labels import REMEDY, Labels, Problem, list_problems
from iou_det.data.oddities import Contents, across, of_remarks, remark_oddities
from iou_det.data.source import Source
from iou_det.errors import UserError
from iou_det.finding import Finding
from iou_det.storage import local_path

KINDS = 3  # of bad records that are told; `prepare` tells all
MIX = np.uint64(0x9E3779B97F4A7C15)  # odd: a multiplication that sends different numbers to different ones


@dataclass
class Look:
  """What was seen: of each split that could be read its records, some pictures, and findings."""

  what: str  # the data set in words
  splits: dict[str, Labels] = field(default_factory=dict)
  sources: dict[str, Source] = field(default_factory=dict)
  findings: list[Finding] = field(default_factory=list)
  pictures: str = ""  # how many were looked at, in words


def look(path: str, wanted: Sequence[str] | None, reading: Reading, pictures: int) -> Look:
  """Looks at some splits of a data set; at all by default, and if one of these is not there.

  Args:
    pictures: so many are opened at the most, over all splits. Of more, those are chosen that have certain
      sizes in bytes: so images of the same content are chosen together.
  """
  try:
    known = format_of(local_path(path, "data path"), reading.format)
    there = known.splits(path)
    seen = Look(f"{path}: {known.WHAT} with {', '.join(there) or 'no splits'}")
  except UserError as error:
    return Look(path, findings=[Finding("error", str(error))])
  missing = [repr(split) for split in wanted or () if split not in there]
  if missing:
    what = f"there is no split {' or '.join(missing)} in {path}; there are: {', '.join(there) or 'none'}"
    todo = "name them by --config.data.train_split=... and --config.data.val_split=..."
    seen.findings.append(Finding("error", what, todo))
  for split in wanted if wanted and not missing else there:
    try:
      if hasattr(known, "read_split"):
        open_labels(seen, path, split, reading)
      else:
        source = known.open_split(path, split)
        seen.sources[split] = source
        seen.splits[split] = Labels(Path(path), source.categories, source.annotations)
    except UserError as error:
      seen.findings.append(Finding("error", f"{split}: {error}"))
    except OSError as error:
      seen.findings.append(Finding("error", f"{split}: {error.filename}: {error.strerror}"))
  contents = look_at_pictures(seen, reading, pictures)
  for labels in seen.splits.values():
    remark_boxes(labels)
    remark_oddities(labels)
  seen.findings += of_remarks(seen.splits)
  if seen.splits:
    seen.findings += across(seen.splits, contents)
  return seen


def open_labels(seen: Look, path: str, split: str, reading: Reading) -> None:
  """Adds a split in whose files there may be anything; its bad records are a finding."""
  labels = read_labels(path, split, reading)
  if labels.problems:
    seen.findings.append(bad(reading, split, f"records of {labels.records}", labels.problems))
  labels.settle(skip_bad=True)
  labels.problems = []
  seen.splits[split] = labels
  seen.sources[split] = labels.source(split, reading.exif)


def bad(reading: Reading, split: str, what: str, problems: Sequence[Problem]) -> Finding:
  """Of bad records, by what will be done with them."""
  level, todo = ("warning", "config.data.skip_bad drops them") if reading.skip_bad else ("error", REMEDY)
  return Finding(level, f"{split}: {len(problems)} bad {what}: {list_problems(problems, KINDS)}", todo)


def look_at_pictures(seen: Look, reading: Reading, number: int) -> dict[str, Contents]:
  """Opens some pictures as `prepare` does, adding bad ones to the findings and traits to the remarks.

  Prepared ones are good; those are only read.
  """
  contents = {split: np.zeros(len(labels.annotations), np.uint64) for split, labels in seen.splits.items()}
  chosen = choose(seen, number)
  for split, places in chosen.items():
    labels = seen.splits[split]
    if labels.files is None:
      read = seen.sources[split].read
      contents[split][places] = [content_number(read(i)) for i in places.tolist()]
      continue
    some = labels.select(places)
    contents[split][places] = check_pictures(some, reading.exif)
    labels.remarks |= some.remarks
    if some.problems:
      seen.findings.append(bad(reading, split, f"pictures of {len(places)}", some.problems))
  every, opened = (sum(map(len, x.values())) for x in (contents, chosen))
  if every:
    more = f" (--pictures={every} opens all)" if opened < every else ""
    seen.pictures = f"{opened} of {every} opened{more}"
  return contents


def choose(seen: Look, number: int) -> dict[str, Int64[np.ndarray, " chosen"]]:
  """Places of the pictures to open in each split."""
  lengths = {split: len(labels.annotations) for split, labels in seen.splits.items()}
  if sum(lengths.values()) <= number:
    return {split: np.arange(length) for split, length in lengths.items()}
  sizes = np.concatenate([size_in_bytes(labels) for labels in seen.splits.values()])
  chance = np.random.default_rng(0).permutation(len(sizes))  # among pictures of one size
  order = np.lexsort((chance, sizes * MIX))[:number]
  of_split = np.repeat(np.arange(len(lengths)), list(lengths.values()))[order]
  starts = np.cumsum([0, *lengths.values()])
  return {s: np.sort(order[of_split == k] - starts[k]) for k, s in enumerate(lengths)}


def size_in_bytes(labels: Labels) -> Contents:
  """Of each picture's file; 0 where there is none."""
  sizes = np.zeros(len(labels.annotations), np.uint64)
  if labels.files is None:
    return sizes
  for i in range(len(sizes)):
    try:
      sizes[i] = labels.files.path(i).stat().st_size
    except OSError:  # will be told if it is chosen
      pass
  return sizes
