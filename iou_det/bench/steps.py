"""What a training step costs, whole and piece by piece, what detecting costs, and what scoring costs."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from iou_det.bench import measure
from iou_det.bench.measure import Line, Timing, compile_program, fresh_cache, time_calls
from iou_det.bench.synthetic import Case, scored_dataset
from iou_det.data.pipeline import Stack, picture_row
from iou_det.data.source import Category
from iou_det.detector import Detector
from iou_det.evaluation import coco
from iou_det.forms import forms
from iou_det.models import backbone_class
from iou_det.network import forward, make_model, network_inputs
from iou_det.ops import matching
from iou_det.parallel import to_device
from iou_det.training.losses import detection_losses, loss_terms, make_targets

LISTED = 20  # images in the list that a detector is called on


def bench_train(case: Case, *, repeats: int, pieces: bool, orientations: bool, out: Path | None) -> Line:
  """Reports the whole step and returns its line.

  Args:
    pieces: also a line for each part of the step compiled alone. Parts overlap less alone than in the step,
      and write results that the step never needs: they do not add up to it.
    orientations: also what compiling landscape and portrait together takes, cold and from the cache.
  """
  with fresh_cache():
    cold = [case.compile_step(portrait) for portrait in ((False, True) if orientations else (False,))]
    cached = [case.compile_step(portrait) for portrait in (False, True)] if orientations else []
  timing, losses = case.time_step(cold[0], repeats)
  # Random weights: numbers that are not finite would draw less power and flatter the chip.
  step = case.measurement("train", "step", timing, cold[0], loss_first=losses[0], loss_last=losses[-1])
  row = step.print(out)

  if orientations:
    for what, both in (("compile both, cold", cold), ("compile both, from the cache", cached)):
      seconds = {name: sum(getattr(c, name) for c in both) for name in ("lower_seconds", "compile_seconds")}
      case.measurement("train", what, None, None, **seconds).print(out)
  if pieces:
    without_remat = case.without_remat()
    counted = parts(case, without_remat) if without_remat else {}
    for what, (function, *arguments) in parts(case, case.config).items():
      with fresh_cache():
        work = jax.jit(counted[what][0]) if counted else None
        piece = compile_program(jax.jit(function), *arguments, counted=work)
      timing = time_calls(partial(piece.program, *arguments), warmup=2, repeats=repeats)
      case.measurement("train", what, timing, piece).print(out)
  return row


def parts(case: Case, config: ConfigDict) -> dict[str, Any]:
  """The parts of a landscape step: name -> function and its arguments; `config` may change no shape."""
  model, state = make_model(config, case.num_classes), case.state
  params, stats = state.params, state.batch_stats
  make_inputs = lambda b: network_inputs(config, b, False, case.mesh, train=True)
  inputs, anchors, level_sizes = jax.jit(make_inputs)(case.arrays)
  level_sizes = tuple(int(n) for n in level_sizes)

  def with_backward(function):
    """The gradient of the parameters of half the square of the output."""

    def run(params, images):
      result, pull = jax.vjp(lambda p: function(p, images), params)
      return pull(result)

    return run

  network = lambda params, images: forward(model, state.variables | {"params": params}, images, case.mesh)

  def backbone(params, images):
    trunk = backbone_class(config.model.backbone)(model.settings, model.dtype, forms(case.mesh))
    variables = {"params": params["backbone"], "batch_stats": stats.get("backbone", {})}
    return trunk.apply(variables, images)

  def loss(out, inputs):
    targets = make_targets(config, inputs, anchors, level_sizes, False)
    logits, deltas, *ious = out
    terms = loss_terms(logits, deltas, targets, config, forms(case.mesh), *ious)
    return detection_losses(terms, config.loss).total

  match = lambda boxes, valid: matching.match(anchors, boxes, valid, **config.match.to_dict())
  out = jax.jit(network)(params, inputs.images)
  trunk = {"backbone": params["backbone"]}
  return {
    "preprocessing": (lambda b: make_inputs(b)[0], case.arrays),
    "network forward": (network, params, inputs.images),
    "network forward and backward": (with_backward(network), params, inputs.images),
    "backbone forward": (backbone, trunk, inputs.images),
    "backbone forward and backward": (with_backward(backbone), trunk, inputs.images),
    "loss with assignment, forward and backward": (jax.value_and_grad(loss), out, inputs),
    "assignment": (jax.vmap(match), inputs.boxes, inputs.valid),
  }


def bench_predict(
  config: ConfigDict, num_classes: int, devices: Sequence[jax.Device], *, repeats: int, out: Path | None
) -> list[Line]:
  """Reports batches of `config.eval.batch_size` on the devices and single images on one, and `bench_call`.

  Decoding and NMS are included. Returns the first two lines.
  """
  rows = []
  for batch_size in dict.fromkeys((config.eval.batch_size, 1)):
    if latency := batch_size == 1:
      case = Case(config, num_classes, 0, 1, devices[:1])
    else:
      case = Case(config, num_classes, 0, batch_size, devices)
    step = Detector(case.config, case.model, case.mesh, ()).step
    with fresh_cache():
      compilation = compile_program(step, case.state.variables, case.arrays, False)
    detect = partial(compilation.program, case.state.variables, case.arrays)
    found = float(detect().valid.sum(axis=1).mean())
    timing = time_calls(detect, warmup=2, repeats=repeats, calls=1 if latency else None)
    what = "latency" if latency else "throughput"
    line = case.measurement("predict", what, timing, compilation, detections_per_image=found)
    rows.append(line.print(out))
  bench_call(Case(config, num_classes, 0, config.eval.batch_size, devices), repeats=repeats, out=out)
  return rows


def bench_call(case: Case, *, repeats: int, out: Path | None) -> None:
  """Reports a detector called on a list of arrays, its program in a loop over ready batches, and the ratio.

  Both give results on the host. They are measured in turn.
  """
  categories = tuple(Category(k, f"class {k}") for k in range(case.num_classes))
  detector = Detector(case.config, case.model, case.mesh, categories, case.state.variables)
  height, width = case.host["image_size"][0]
  pixels = np.random.default_rng(0).integers(0, 256, (LISTED, height, width, 3), np.uint8)
  images = list(pixels)
  detector(images)  # sets the size of a batch
  size = detector.call_size
  assert size
  rows = [picture_row(image, tuple(case.config.data.canvas), False) for image in images]
  stack = Stack(tuple(case.config.data.canvas))
  parts = [rows[start : start + size] for start in range(0, LISTED, size)]
  batches = [to_device(stack([*part, *part[:1] * (size - len(part))]), case.mesh) for part in parts]
  loop = lambda: [jax.device_get(detector.step(detector.variables, b, False)) for b in batches]
  samples: dict[str, list[float]] = {"called on a list": [], "loop over ready batches": []}
  for _ in range(repeats):
    for call, name in ((partial(detector, images), "called on a list"), (loop, "loop over ready batches")):
      samples[name] += time_calls(call, warmup=0, repeats=1, calls=1).samples
  for name, seconds in samples.items():
    timing = Timing(tuple(seconds), 1, 1)
    case.measurement("predict", name, timing, None, batch=LISTED, images_in_a_batch=size).print(out)
  ratio = float(np.median(samples["called on a list"]) / np.median(samples["loop over ready batches"]))
  row: Line = {
    "bench": "predict",
    "what": "seconds",
    "by": "called on a list / loop",
    "batch": LISTED,
    "ratio": ratio,
  }
  measure.print_line(row, out)


def bench_eval(images: int, detections: int, num_classes: int, *, repeats: int, out: Path | None) -> Line:
  """Reports a line for each backend of scoring and one that compares their figures; returns the last.

  pycocotools, which takes most of a minute at COCO's size, is run once.
  """
  truth, results = scored_dataset(images, detections, num_classes)
  shapes = {"ground_truth": len(truth["annotations"]), "detections": detections, "classes": num_classes}
  figures, seconds = {}, {}
  for backend in coco.BACKENDS:

    def score(backend=backend):
      figures[backend] = coco.evaluate(truth, results, backend=backend)

    once = backend == "pycocotools"
    timing = time_calls(score, warmup=0 if once else 1, repeats=1 if once else repeats, calls=1)
    seconds[backend] = timing.median
    fields = {"batch": images, "shapes": shapes, "versions": measure.versions(backend)}
    measure.Measurement("eval", "scoring", backend, timing, fields=fields).print(out)

  every = np.array([[figures[b][name] for name in coco.FIGURES] for b in coco.BACKENDS], float)
  differences = np.ptp(np.nan_to_num(every, nan=-1.0), axis=0)  # -1: COCO's own mark for no ground truth
  row: Line = {"bench": "eval", "what": "scoring", "by": "pycocotools seconds / hotcoco seconds"}
  row |= {"ratio": seconds["pycocotools"] / seconds["hotcoco"]}
  row |= {"largest_difference_of_12_figures": float(differences.max()), "AP": figures["pycocotools"]["AP"]}
  measure.print_line(row, out)
  return row
