"""What a run says while it trains: a bar in a terminal, a line a minute elsewhere, a line an evaluation."""

import sys
import time
from collections import deque
from statistics import median
from typing import Any

import jax
from absl import logging

from iou_det.parallel import progress_bar
from iou_det.workdir.checkpoints import best_step

QUIET = 60.0  # seconds between lines where there is no terminal
WINDOWS = 20  # of the log: the last so many tell how long a step takes


class Progress:
  """Process 0 says it.

  Args:
    every: steps between evaluations; one is at the end.
    scores: AP by step, which the run adds to.
    evaluation: seconds of this run's last one; None: there was none.
  """

  def __init__(
    self, start_step: int, last_step: int, every: int, scores: dict[int, float], evaluation: float | None
  ):
    self.step, self.last_step, self.every = start_step, last_step, every
    self.scores, self.evaluation = scores, evaluation
    self.windows: deque[float] = deque(maxlen=WINDOWS)  # seconds of a step
    self.compiled = False  # the first step is not counted: it compiles
    self.text, self.said = "", -QUIET
    self.lead, terminal = jax.process_index() == 0, sys.stderr.isatty()
    self.lines = self.lead and not terminal
    self.bar = progress_bar(
      hide=not terminal, total=last_step, initial=start_step, unit="step", desc="train",
      bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]")  # fmt: skip

  def stepped(self) -> None:
    self.step += 1
    if self.text:
      self.bar.set_postfix_str(self.text + self.eta(), refresh=False)
    self.bar.update()

  def logged(self, row: dict[str, float], steps: int, seconds: float) -> None:
    """A row of the log, of so many steps that took so long."""
    if self.compiled:
      self.windows.append(seconds / steps)
    self.compiled = True
    parts = [f"loss {row['loss']:.3f}"]
    parts += [f"AP {self.scores[max(self.scores)]:.3f}"] if self.scores else []
    self.text = ", ".join([*parts, f"{row['images_per_second']:.1f} img/s"])
    now = time.monotonic()
    if self.lines and now - self.said >= QUIET:
      self.said = now
      where = f"step {self.step} of {self.last_step}, epoch {row['epoch']:.2f}"
      logging.info(f"{where}: {self.text}{self.eta()}")

  def scored(self, step: int, split: str, row: dict[str, Any]) -> None:
    """The figures of an evaluation that took row["seconds"]."""
    self.evaluation = row["seconds"]
    parts = [f"{name} {row[name]:.3f}" for name in ("AP", "AP50", "AP75") if row.get(name) is not None]
    best = best_step(self.scores, list(self.scores))
    if parts and best is not None and best != step:
      parts[0] += f" (best: {self.scores[best]:.3f}, step {best})"
    if "loss" in row:
      of = [name for name in ("classification", "localization", "other") if f"loss_{name}" in row]
      numbers = " + ".join(f"{row[f'loss_{name}']:.3f}" for name in of)
      parts.append(f"loss {row['loss']:.3f} ({' + '.join(of)}: {numbers})")
    if self.lead:
      logging.info(f"step {step}, {split}: {', '.join(parts) or 'nothing to score'}; {row['seconds']:.1f} s")

  def eta(self) -> str:
    """Time to the end: with the evaluations, or beside them as long as none has shown how long it takes."""
    if not self.windows:
      return ""
    seconds = (self.last_step - self.step) * median(self.windows)
    left = evaluations_left(self.step, self.last_step, self.every)
    if self.evaluation is None and left:
      return f", ETA {duration(seconds)} + {left} evaluation{'s' if left > 1 else ''}"
    return f", ETA {duration(seconds + left * (self.evaluation or 0.0))}"

  def close(self) -> None:
    self.bar.close()


def evaluations_left(step: int, last_step: int, every: int) -> int:
  """Behind `step`: there is one each time that so many steps are done, and one behind the last."""
  return -(-last_step // every) - step // every if step < last_step else 0


def duration(seconds: float) -> str:
  """For people: 40 s, 12 min, 3 h 05 min."""
  minutes = round(seconds / 60)
  if seconds < 99.5:
    return f"{seconds:.0f} s"
  return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
