"""What the sections of a page tell of: runs that differ by their seed alone together, and their scores."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from iou_det import config as config_lib
from iou_det.errors import UserError
from iou_det.evaluation import coco, overlap
from iou_det.evaluation.bootstrap import Scored, bootstrap_ap, interval, score_detections
from iou_det.report.charts import Look
from iou_det.report.runs import Run

SAMPLES = 1000
SAME = 1e-6  # of AP: what two ways to add up may differ by


@dataclass(frozen=True, eq=False)
class Scores:
  """A run with its detections matched.

  Attributes:
    precision: at COCO's IoUs, 101 recalls, of each class by rising id; all areas, the best 100 detections of
      an image; -1 where a class has no objects.
    scorer: hotcoco's COCOeval; None without the extra `fast-eval`.
  """

  run: Run
  precision: Float[np.ndarray, "ious recalls classes"]
  matched: Scored
  scorer: Any

  @classmethod
  def of(cls, run: Run) -> "Scores":
    """A UserError if the run's metrics.json says otherwise: then its data are not what they were."""
    backend = coco.choose_backend("auto")
    truth, _ = coco.load_ground_truth(run.truth)
    image_ids = sorted(image["id"] for image in truth["images"])
    scorer = coco.accumulated(truth, run.detections, image_ids, backend)
    precision = np.asarray(scorer.eval["precision"])[..., 0, -1]
    scores = cls(
      run, precision, score_detections(run.truth, run.detections), scorer if backend == "hotcoco" else None
    )
    then, now = run.metrics["AP_per_iou"], scores.ap_per_iou
    for (iou, before), after in zip(then.items(), now, strict=True):
      if (before is None) != np.isnan(after) or (before is not None and abs(before - after) > SAME):
        raise UserError(
          f"{run.workdir} was scored against other boxes than {run.source.name} has now (AP at IoU {iou}: "
          f"{before} then, {after:.6f} now); run `iou-det eval --workdir={run.workdir} --split={run.split}` "
          "again"
        )
    return scores

  @cached_property
  def curves(self) -> Float[np.ndarray, "ious recalls"]:
    """Precision, the mean over the classes that have objects; NaN without any."""
    return mean_over(self.precision, axis=2)

  @property
  def ap_per_iou(self) -> Float[np.ndarray, " ious"]:
    return mean_over(self.precision, axis=(1, 2))

  @cached_property
  def overlaps(self) -> overlap.Overlaps:
    return overlap.best_ious(self.run.truth, self.run.detections)


def mean_over(table: Float[np.ndarray, "..."], axis: int | tuple[int, ...]) -> Float[np.ndarray, "..."]:
  """Mean of the entries that are not -1; NaN where all are."""
  there = table > -1
  count = there.sum(axis=axis)
  return np.where(count > 0, np.where(there, table, 0).sum(axis=axis) / np.maximum(count, 1), np.nan)


@dataclass(frozen=True, eq=False)
class Group:
  """A detector with all its seeds, drawn as one."""

  name: str
  seeds: list[Scores]
  look: Look

  def mean(self, figure: Callable[[dict[str, Any]], float | None]) -> float | None:
    """Of the seeds that have such a figure in their metrics."""
    known = [value for s in self.seeds if (value := figure(s.run.metrics)) is not None]
    return float(np.mean(known)) if known else None


def make_groups(runs: Sequence[Run]) -> list[Group]:
  """Runs that differ by their seed alone are one detector; all others are each of their own."""
  together: list[list[Run]] = []
  for run in runs:
    for members in together:
      if run.config.seed not in {m.config.seed for m in members} and same_but_seed(run, members[0]):
        members.append(run)
        break
    else:
      together.append([run])
  names = [common_name([run.name for run in members]) for members in together]
  if len(set(names)) < len(names):
    names = [", ".join(run.name for run in members) for members in together]
  return [
    Group(name, [Scores.of(run) for run in members], Look.of(i))
    for i, (name, members) in enumerate(zip(names, together, strict=True))
  ]


def same_but_seed(a: Run, b: Run) -> bool:
  names = [line.split(":")[0] for line in config_lib.differences(a.config, b.config)]
  known = config_lib.FIELDS
  return all(name == "seed" or (name in known and known[name].runtime) for name in names)


def common_name(names: Sequence[str]) -> str:
  """baseline of baseline/seed0 and baseline/seed1; all names where there is no such part."""
  parts = [name.split("/") for name in names]
  shared = [p[0] for p in zip(*parts, strict=True) if len(set(p)) == 1] if len(names) > 1 else parts[0]
  return "/".join(shared) or ", ".join(names)


class Intervals:
  """AP of groups and of their differences with 95 % intervals, by a bootstrap paired by image and seed."""

  def __init__(self, groups: Sequence[Group]):
    ap = bootstrap_ap([s.matched for g in groups for s in g.seeds], samples=SAMPLES)
    ends = np.cumsum([len(g.seeds) for g in groups])[:-1]
    self.samples = {g.name: part.mean(axis=0) for g, part in zip(groups, np.split(ap, ends), strict=True)}

  def of(self, group: Group, ious: Sequence[float] = coco.IOUS) -> tuple[float, float] | None:
    return self._interval(self.samples[group.name], ious)

  def between(
    self, group: Group, base: Group, ious: Sequence[float] = coco.IOUS
  ) -> tuple[float, float] | None:
    return self._interval(self.samples[group.name] - self.samples[base.name], ious)

  def _interval(self, samples: Any, ious: Sequence[float]) -> tuple[float, float] | None:
    """None where a resample had no object at all."""
    chosen = samples[:, [coco.IOUS.index(iou) for iou in ious]].mean(axis=1)
    return interval(chosen) if np.isfinite(chosen).all() else None


def settings_that_differ(configs: Sequence[ConfigDict]) -> dict[str, list[Any]]:
  """Fields by name that are not the same in all, with the value of each."""
  lines = [line for other in configs[1:] for line in config_lib.differences(configs[0], other)]
  flat = [json.loads(json.dumps(c.to_dict())) for c in configs]

  def value(node: Any, name: str) -> Any:
    for part in name.split("."):
      node = node.get(part) if isinstance(node, dict) else None
    return node

  return {
    name: [value(node, name) for node in flat] for name in dict.fromkeys(line.split(":")[0] for line in lines)
  }
