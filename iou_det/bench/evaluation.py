"""Scoring with pycocotools and with hotcoco: seconds, and whether the figures agree."""

from pathlib import Path
from typing import Any

from iou_det.bench import synthetic
from iou_det.bench.measure import print_line, report, time_calls
from iou_det.evaluation import coco


def bench_eval(
  images: int, detections: int, num_classes: int, *, repeats: int, out: str | Path | None
) -> dict[str, Any]:
  """Reports a line for each backend and one that compares them; returns the last.

  pycocotools, which takes most of a minute at COCO's size, is run once.
  """
  truth, results = synthetic.scored_dataset(images, detections, num_classes)
  figures, seconds = {}, {}
  for backend in coco.BACKENDS:

    def score(backend=backend):
      figures[backend] = coco.evaluate(truth, results, backend=backend)

    once = backend == "pycocotools"
    timing = time_calls(score, warmup=0 if once else 1, repeats=1 if once else repeats)
    seconds[backend] = timing.median
    report(
      "eval", "scoring", by=backend, timing=timing, images=images, more_versions=(backend,), out=out,
      shapes={"ground_truth": len(truth["annotations"]), "detections": detections, "classes": num_classes},
    )  # fmt: skip
  difference = max(abs(_figure(figures[b], n) - _figure(figures["pycocotools"], n))
                   for n in coco.FIGURES for b in coco.BACKENDS)  # fmt: skip
  row = {
    "bench": "eval",
    "what": "scoring",
    "by": "pycocotools seconds / hotcoco seconds",
    "ratio": seconds["pycocotools"] / seconds["hotcoco"],
    "largest_difference_of_12_figures": difference,
    "AP": figures["pycocotools"]["AP"],
  }
  print_line(row, out)
  return row


def _figure(metrics: dict[str, Any], name: str) -> float:
  """A figure; -1, COCO's own mark, where there is no ground truth for it."""
  return -1.0 if metrics[name] is None else metrics[name]
