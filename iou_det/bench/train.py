"""What a training step costs, whole and piece by piece."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from iou_det.bench import synthetic
from iou_det.bench.measure import (
  Compilation,
  Timing,
  calls_per_sample,
  compile_program,
  fresh_cache,
  report,
  time_calls,
)
from iou_det.detector import forward, make_model, network_inputs
from iou_det.models.resnet import ResNet
from iou_det.ops import matching
from iou_det.parallel import abstract, device_mesh, to_device
from iou_det.training.losses import detection_losses, loss_terms, make_targets
from iou_det.training.step import create_state, make_train_step

STEPS_PER_EPOCH = 1000  # only the learning rate depends on it


def bench_train(
  config: ConfigDict,
  num_classes: int,
  boxes: int,
  *,
  repeats: int,
  pieces: bool,
  orientations: bool,
  out: str | Path | None,
  devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
  """Reports the whole step, and on request its pieces and the compilation of both orientations.

  Args:
    boxes: of each image.
    devices: defaults to all.
    pieces: also a line for each part of the step compiled alone. Parts overlap less alone than in the step,
      and write results that the step never needs: they do not add up to it.
    orientations: also what compiling landscape and portrait together takes, cold and from the cache.

  Returns:
    The line of the whole step.
  """
  batch_size = config.train.batch_size
  mesh = device_mesh(batch_size, devices, **config.mesh.to_dict(), setting="--batch_size")
  model = make_model(config, num_classes)
  state, optimizer = create_state(config, model, STEPS_PER_EPOCH, mesh, pretrained=False)
  abstract_state = abstract(mesh, state)
  host = synthetic.batch(config, batch_size, num_classes, boxes)
  arrays = to_device(host, mesh)

  def compiled_step(portrait: bool) -> Compilation:
    batch = synthetic.batch(config, batch_size, num_classes, boxes, portrait=portrait)
    step = make_train_step(config, model, optimizer, STEPS_PER_EPOCH, mesh)
    return compile_program(step, abstract_state, batch, portrait, cold=False)

  def line(what: str, timing: Timing | None, compilation: Compilation | None, **more: Any) -> dict[str, Any]:
    return report(
      "train", what, timing=timing, images=batch_size, dtype=jnp.dtype(model.dtype).name,
      shapes=synthetic.describe(config, host, num_classes, boxes), compilation=compilation,
      devices=mesh.size, out=out, **more,
    )  # fmt: skip

  with fresh_cache():
    cold = [compiled_step(portrait) for portrait in ((False, True) if orientations else (False,))]
    cached = [compiled_step(portrait) for portrait in (False, True)] if orientations else []
  landscape = cold[0]
  losses = []

  def step():
    nonlocal state
    state, metrics = landscape.program(state, arrays)
    losses.append(metrics["loss"])
    return metrics["loss"]

  timing = time_calls(step, warmup=2, repeats=repeats, calls=calls_per_sample())
  # Random weights: numbers that are not finite would draw less power and flatter the chip.
  row = line("step", timing, landscape, loss_first=float(losses[0]), loss_last=float(losses[-1]))

  if orientations:
    for what, both in (("compile both, cold", cold), ("compile both, from the cache", cached)):
      line(what, None, None, lower_seconds=sum(c.lower_seconds for c in both),
           compile_seconds=sum(c.compile_seconds for c in both))  # fmt: skip
  if pieces:
    for what, (function, *arguments) in parts(config, model, state, arrays, mesh).items():
      piece = compile_program(jax.jit(function), *arguments, cold=True)
      call = partial(piece.program, *arguments)
      line(what, time_calls(call, warmup=2, repeats=repeats, calls=calls_per_sample()), piece)
  return row


def parts(
  config: ConfigDict, model: Any, state: Any, arrays: dict[str, jax.Array], mesh: Mesh
) -> dict[str, Any]:
  """The parts of a landscape step: name -> function and its arguments."""
  params, stats = state.params, state.batch_stats
  inputs, anchors, level_sizes = jax.jit(lambda b: network_inputs(config, b, False, train=True))(arrays)
  level_sizes = tuple(int(n) for n in level_sizes)
  out = jax.jit(lambda p, x: forward(model, state.variables | {"params": p}, x, mesh))(params, inputs.images)

  def with_backward(function):
    """The gradient of the parameters of half the square of the output."""

    def run(params, images):
      result, pull = jax.vjp(lambda p: function(p, images), params)
      return pull(result)

    return run

  def network(params, images):
    return forward(model, state.variables | {"params": params}, images, mesh)

  def backbone(params, images):
    resnet = ResNet(model.depth, model.width, model.norm, model.frozen_stages, model.dtype, model.remat)
    variables = {"params": params["backbone"], "batch_stats": stats.get("backbone", {})}
    return resnet.apply(variables, images)

  def loss(out, inputs):
    targets = make_targets(config, inputs, anchors, level_sizes, False)
    terms = detection_losses(loss_terms(*out, targets, config))
    return terms.classification + terms.localization

  def assignment(inputs):
    return jax.vmap(lambda b, v: matching.match(anchors, b, v, **config.match.to_dict()))(
      inputs.boxes, inputs.valid
    )

  trunk = {"backbone": params["backbone"]}
  return {
    "preprocessing": (lambda b: network_inputs(config, b, False, train=True)[0], arrays),
    "network forward": (network, params, inputs.images),
    "network forward and backward": (with_backward(network), params, inputs.images),
    "backbone forward": (backbone, trunk, inputs.images),
    "backbone forward and backward": (with_backward(backbone), trunk, inputs.images),
    "loss with assignment, forward and backward": (jax.value_and_grad(loss), out, inputs),
    "assignment": (assignment, inputs),
  }
