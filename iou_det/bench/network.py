"""`bench train` and `bench predict`: the programs of training and detection on made-up batches."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from iou_det.bench.measure import Timing, compile_program, device_memory, peak_share, time_calls
from iou_det.config import input_size
from iou_det.evaluation.evaluate import make_detect_step
from iou_det.models.resnet import ResNet
from iou_det.ops import matching
from iou_det.training.losses import detection_losses, loss_terms
from iou_det.training.mesh import device_mesh, to_device
from iou_det.training.state import create_state, forward, make_model
from iou_det.training.step import loss_arguments, make_anchors, make_train_step, network_inputs


def random_batch(config: ConfigDict, batch_size: int, boxes: int, classes: int) -> dict[str, np.ndarray]:
  """A landscape batch as the pipeline yields it: noise, with `boxes` random boxes in each image."""
  rng = np.random.default_rng(0)
  height, width = config.data.canvas
  shape = (batch_size, config.data.max_boxes)
  size = np.array([height, width], np.int32)
  corner = rng.uniform(0, 0.7, (*shape, 2))
  side = rng.uniform(0.05, 0.3, (*shape, 2))
  scale = np.array([width, height] * 2)
  return {
    "image": rng.integers(0, 256, (batch_size, height, width, 3), np.uint8),
    "image_size": np.tile(size, (batch_size, 1)),
    "original_size": np.tile(size, (batch_size, 1)),
    "boxes": (np.concatenate([corner, corner + side], -1) * scale).astype(np.float32),
    "labels": rng.integers(0, classes, shape, np.int32),
    "valid": np.tile(np.arange(shape[1]) < boxes, (batch_size, 1)),
    "index": np.arange(batch_size, dtype=np.int32),
    "epoch": np.zeros(batch_size, np.int32),
    "example": np.ones(batch_size, bool),
  }  # fmt: skip


def setting(config: ConfigDict, batch_size: int, boxes: int, classes: int) -> dict[str, Any]:
  """What a line says of the network and its input."""
  m = config.model
  return {
    "model": f"retinanet_r{m.depth}", "width": m.width, "norm": m.norm, "classes": classes,
    "dtype": jnp.dtype(make_model(config, classes).dtype).name, "batch_size": batch_size,
    "input_size": input_size(config, False), "canvas": tuple(config.data.canvas),
    "boxes": boxes, "max_boxes": config.data.max_boxes, "mesh": config.mesh.to_dict(),
    "remat": m.remat,
  }  # fmt: skip


def rates(timing: Timing, flops: float, batch_size: int) -> dict[str, Any]:
  return {
    **timing.row(),
    "images_per_second": batch_size / timing.median,
    "peak_flops_share": peak_share(flops / timing.median),
    "device_memory_peak_bytes": device_memory(),
  }


def bench_train(
  config: ConfigDict, batch_size: int, boxes: int, classes: int, repeats: int, pieces: bool
) -> Iterator[dict[str, Any]]:
  """The whole step (input, forward, assignment, losses, backward, update), then its pieces compiled alone.

  Args:
    boxes: ground truths of each image.
    pieces: False: only the step.
  """
  mesh = device_mesh(batch_size, **config.mesh.to_dict())
  model = make_model(config, classes)
  state, optimizer = create_state(config, model, 1000, mesh, pretrained=False)
  batch = to_device(random_batch(config, batch_size, boxes, classes), mesh)
  step = compile_program(make_train_step(config, model, optimizer, 1000, mesh), state, batch, False)
  holder = [jax.tree.map(jnp.copy, state)]  # the step gives its argument's memory to its result

  def run_step():
    holder[0], metrics = step.run(holder[0], batch)
    return metrics["loss"]

  same = {"bench": "train", **setting(config, batch_size, boxes, classes)}
  yield same | {"piece": "step"} | step.row() | rates(time_calls(run_step, repeats), step.flops, batch_size)
  if not pieces:
    return

  inputs = jax.jit(lambda b: network_inputs(config, b, False, train=True)[0])(batch)
  anchors, level_sizes = make_anchors(config, input_size(config, False))
  arguments = lambda inputs: loss_arguments(config, inputs, anchors, level_sizes, False)
  network = lambda params, inputs: forward(model, params, state.batch_stats, inputs.images, mesh)

  def loss(logits, deltas, inputs):
    out = detection_losses(loss_terms(logits, deltas, **arguments(inputs)))
    return out.classification + out.localization

  def sum_of_outputs(params, inputs):
    logits, deltas = network(params, inputs)
    return jnp.sum(logits) + jnp.sum(deltas)

  m = config.model
  backbone = ResNet(m.depth, m.width, m.norm, m.frozen_stages, model.dtype, m.remat)
  variables = {"params": state.params["backbone"], "batch_stats": state.batch_stats.get("backbone", {})}

  def sum_of_maps(variables, images):
    maps: Any = backbone.apply(variables, images)
    return jnp.sum(jnp.stack([jnp.sum(x.astype(jnp.float32)) for x in maps]))

  outputs = jax.eval_shape(network, state.params, inputs)
  logits, deltas = (jnp.zeros(x.shape, x.dtype) for x in outputs)
  match = jax.vmap(lambda b, v: matching.match(anchors, b, v, **config.match.to_dict()))
  programs: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "input": (lambda b: network_inputs(config, b, False, train=True)[0].images, (batch,)),
    "assignment": (match, (inputs.boxes, inputs.valid)),
    "loss with assignment, forward + backward": (jax.grad(loss, argnums=(0, 1)), (logits, deltas, inputs)),
    "backbone, forward": (sum_of_maps, (variables, inputs.images)),
    "backbone, forward + backward": (jax.grad(sum_of_maps), (variables, inputs.images)),
    "network, forward": (network, (state.params, inputs)),
    "network, forward + backward": (jax.grad(sum_of_outputs), (state.params, inputs)),
  }
  for name, (function, parameters) in programs.items():
    program = compile_program(jax.jit(function), *parameters)
    timing = time_calls(partial(program.run, *parameters), repeats)
    yield same | {"piece": name} | program.row() | rates(timing, program.flops, batch_size)


def bench_predict(
  config: ConfigDict, batch_size: int, classes: int, repeats: int
) -> Iterator[dict[str, Any]]:
  """Detection (input, forward, decode, NMS, in one program) for a batch, and for one image: latency."""
  for size in dict.fromkeys((batch_size, 1)):
    if size % jax.device_count():
      continue  # one image cannot be split over devices
    mesh = device_mesh(size, **config.mesh.to_dict())
    model = make_model(config, classes)
    state, _ = create_state(config, model, 1000, mesh, pretrained=False)
    # An untrained network scores every anchor at the prior, and nothing would enter NMS.
    batch = to_device(random_batch(config, size, 0, classes), mesh)
    inputs = network_inputs(config, batch, False, train=False)[0]
    network = partial(forward, model, mesh=mesh)
    logits, _ = jax.jit(network)(state.params, state.batch_stats, inputs.images)
    state = dataclasses.replace(state, params=with_spread_scores(state.params, logits))
    program = compile_program(make_detect_step(config, model, mesh), state, batch, False)
    timing = time_calls(partial(program.run, state, batch), repeats)
    yield {
      "bench": "predict", "piece": "detect", **setting(config, size, 0, classes), **program.row(),
      **rates(timing, program.flops, size), "nms": config.eval.nms,
    }  # fmt: skip


def with_spread_scores(params: PyTree, logits: Float[Array, "b anchors classes"]) -> PyTree:
  """Parameters whose logits spread by 1.5 and not by what `logits` do, so that NMS has something to do."""
  head = params["classification_head"]
  output = head["output"] | {"kernel": head["output"]["kernel"] * 1.5 / jnp.std(logits)}
  return params | {"classification_head": head | {"output": output}}
