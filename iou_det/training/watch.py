"""Warnings of a run that does not learn, each once, with what to change."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from iou_det.data.oddities import classes
from iou_det.data.source import Source
from iou_det.finding import Finding
from iou_det.training.fit import tiny_objects, unmatched_classes

# The loss is compared with what it began at. A fresh network's falls below half of that in the first few
# hundred steps on every data set that the shipped configs were tried on.
BEGIN, RECENT = 50, 200  # steps: the highest row of the first, the mean of the last
PATIENCE = 500  # steps after the warm-up; at most a quarter of the run
FEWEST = 100  # steps that can tell anything
FALLEN, RISEN = (
  0.9,
  1.2,
)  # times the beginning: a fresh network's loss falls below, a trained one's stays below
CLIPPED = 0.95  # of the steps


def before_training(config: ConfigDict, source: Source, val_source: Source) -> list[Finding]:
  """What the data's boxes and classes tell beforehand; `iou-det doctor` finds the same."""
  d = config.data
  return [
    *tiny_objects(config, [source.annotations, val_source.annotations]),
    *unmatched_classes(config, source),
    *classes({d.train_split: source, d.val_split: val_source}),
  ]


def say(findings: Sequence[Finding]) -> None:
  for level, what, todo in findings:
    logging.log(logging.INFO if level == "note" else logging.WARNING, "%s; %s", what, todo)


class Watch:
  """Looks at each row of the log.

  Args:
    rows: that the run has logged already; what they would have been a warning of is not said again.
    last_step: of the run.
  """

  def __init__(self, config: ConfigDict, rows: Sequence[dict[str, Any]], last_step: int):
    self.train, self.fresh = config.train, not config.model.init
    self.since = self.train.warmup_steps + min(PATIENCE, max(last_step // 4, FEWEST))
    self.begin = 0.0
    self.recent: deque[tuple[int, int, float]] = deque()  # step, steps of the row, mean loss
    self.clipped: deque[float] = deque(maxlen=PATIENCE)  # norms of the gradient after the warm-up
    self.said: set[str] = set()
    before = 0
    for row in rows:
      if "loss" in row:
        self._loss(int(row["step"]), int(row["step"]) - before, row["loss"])
        before = int(row["step"])

  def logged(self, step: int, rows: Sequence[dict[str, Any]], row: dict[str, float]) -> list[Finding]:
    """What a row of the log, the mean of the steps' `rows` up to `step`, is a warning of."""
    found = [self._loss(step, len(rows), row["loss"])]
    first = step - len(rows) + 1
    self.clipped.extend(
      float(r["gradient_norm"]) for s, r in enumerate(rows, first) if s > self.train.warmup_steps
    )
    found.append(self._clipped())
    return [finding for finding in found if finding]

  def _loss(self, step: int, steps: int, loss: float) -> Finding | None:
    if step <= BEGIN or not self.begin:
      self.begin = max(self.begin, loss)
    self.recent.append((step, steps, loss))
    while self.recent[0][0] <= step - RECENT:
      self.recent.popleft()
    number = sum(n for _, n, _ in self.recent)
    mean = sum(n * x for _, n, x in self.recent) / number
    limit = (FALLEN if self.fresh else RISEN) * self.begin
    if step < self.since or number < FEWEST or mean < limit or not self._first("loss"):
      return None
    rate = self.train.learning_rate
    return Finding(
      "warning",
      f"the loss does not fall: {mean:.3f} in the last {number} steps, {self.begin:.3f} at the beginning",
      f"try --config.train.learning_rate={rate / 10:g} (now {rate:g}); if that changes nothing, the boxes "
      "may not fit the pictures: iou-det doctor --data=... looks at both",
    )

  def _clipped(self) -> Finding | None:
    limit, norms = self.train.clip_norm, np.array(self.clipped)
    above = int((norms > limit).sum())
    if len(norms) < min(PATIENCE, self.since) or above < CLIPPED * len(norms) or not self._first("clipped"):
      return None
    return Finding(
      "warning",
      f"the gradient was cut to train.clip_norm={limit:g} in {above} of the last {len(norms)} steps (median "
      f"norm {np.median(norms):.3g}): the learning rate is not what decides how far a step goes",
      f"--config.train.clip_norm={2 * np.median(norms):.2g}, or a lower --config.train.learning_rate if the "
      "loss jumps",
    )

  def _first(self, what: str) -> bool:
    """Whether it is the first time."""
    new = what not in self.said
    self.said.add(what)
    return new
