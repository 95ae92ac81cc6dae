"""The project's own training step and detection, compiled for a target from shapes: nothing is allocated."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from iou_det.aot.count import Count, count, taps
from iou_det.aot.target import Target, quiet
from iou_det.data.plan import images_per_step
from iou_det.detector import Detector
from iou_det.models.retinanet import trainable_mask
from iou_det.network import make_model
from iou_det.parallel import abstract, device_mesh, split_batch
from iou_det.training.step import TrainState, create_state, make_train_step

WHATS = ("train", "detect")
STEPS_PER_EPOCH = 1000  # only the learning rate depends on it


@dataclass(frozen=True)
class Memory:
  """Bytes of a chip, as the compiler plans them."""

  arguments: int  # state and batch
  temporaries: int
  peak: int  # with results that do not lie in arguments, and the program


@dataclass(frozen=True)
class Compiled:
  target: Target
  what: str
  images: int  # of a step, on all chips
  refused: str  # why the compiler found no place in a chip's memory, or nothing
  memory: Memory | None
  counted: Count | None
  model_flops: float  # of a chip: what the step as written computes, without what model.remat does again
  optimizer_floor: int  # bytes of a chip: state read and written, gradients read, once
  lower_seconds: float
  compile_seconds: float

  @property
  def fits(self) -> bool:
    return self.memory is not None and self.memory.peak <= self.target.chip.memory


def compile_for(target: Target, config: ConfigDict, classes: int, what: str) -> Compiled:
  """For landscape images. A UserError if chips and batch do not go together.

  Args:
    what: train: a step of images_per_step(config.train) images; detect: a batch of config.eval.batch_size.
  """
  config = ConfigDict(config.to_dict())
  if config.model.dtype == "auto":  # of the target, not of this process
    config.model.dtype = "float32" if target.cpu else "bfloat16"
  images, mesh = mesh_of(target, config, what)
  start = time.perf_counter()
  state, traced = trace(config, classes, what, images, mesh)
  written = trace(without_remat(config), classes, what, images, mesh)[1] if config.model.remat else traced
  lowered = traced.lower()
  lowered_at = time.perf_counter()
  refused, program = "", None
  try:
    with quiet():
      program = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    found = re.search(r"Used [^.]*\.?\d*\w* of [\d.]+\w* hbm[^.]*", str(error))
    refused = found[0] if found else str(error).splitlines()[0]
  end = time.perf_counter()
  return Compiled(
    target=target,
    what=what,
    images=images,
    refused=refused,
    memory=program and planned(program.memory_analysis()),
    counted=program and count(program.as_text(), one_memory=not target.tpu),
    model_flops=model_flops(written.jaxpr.jaxpr, mesh.size),
    optimizer_floor=optimizer_floor(state, config) if what == "train" else nbytes(state.variables),
    lower_seconds=lowered_at - start,
    compile_seconds=end - lowered_at,
  )


def mesh_of(target: Target, config: ConfigDict, what: str) -> tuple[int, Mesh]:
  """Images of a step, and the mesh; a UserError if they do not go together."""
  images = images_per_step(config.train) if what == "train" else config.eval.batch_size
  return images, device_mesh(images, target.devices, setting=f"--target={target.name}: --batch_size")


def without_remat(config: ConfigDict) -> ConfigDict:
  config = ConfigDict(config.to_dict())
  config.model.remat = False
  return config


def trace(
  config: ConfigDict, classes: int, what: str, images: int, mesh: Mesh
) -> tuple[TrainState, jax.stages.Traced]:
  """The shapes of the state, and the program with its arguments."""
  model = make_model(config, classes)
  optimizers: list[Any] = []

  def make() -> TrainState:
    state, optimizer = create_state(config, model, STEPS_PER_EPOCH, mesh, None)
    optimizers.append(optimizer)
    return state

  state: Any = abstract(mesh, jax.eval_shape(make))
  batch = batch_shapes(config, images, mesh)
  if what == "detect":
    return state, Detector(config, model, mesh, ()).step.trace(state.variables, batch, False)  # type: ignore
  step: Any = make_train_step(config, model, optimizers[0], STEPS_PER_EPOCH, mesh, state)
  return state, step.trace(state, batch, False)


def batch_shapes(config: ConfigDict, images: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Of a batch of the pipeline."""
  boxes = config.data.max_boxes
  shapes = {
    "image": ((*config.data.canvas, 3), jnp.uint8),
    "image_size": ((2,), jnp.int32),
    "original_size": ((2,), jnp.int32),
    "boxes": ((boxes, 4), jnp.float32),
    "labels": ((boxes,), jnp.int32),
    "valid": ((boxes,), jnp.bool_),
    "index": ((), jnp.int32),
    "epoch": ((), jnp.int32),
    "seed": ((), jnp.int32),
    "example": ((), jnp.bool_),
  }
  place = split_batch(mesh)
  return {k: jax.ShapeDtypeStruct((images, *s), t, sharding=place) for k, (s, t) in shapes.items()}


def planned(stats: Any) -> Memory:
  """Of `memory_analysis`; results that lie in donated arguments take nothing."""
  arguments, temporaries = stats.argument_size_in_bytes, stats.temp_size_in_bytes
  results = stats.output_size_in_bytes - stats.alias_size_in_bytes
  return Memory(
    arguments, temporaries, arguments + temporaries + results + stats.generated_code_size_in_bytes
  )


def nbytes(tree: PyTree) -> int:
  """Of a device's share of arrays' shapes."""
  share = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
  return sum(map(share, jax.tree.leaves(tree)))


def optimizer_floor(state: TrainState, config: ConfigDict) -> int:
  """Parameters and the optimizer's state read once, what trains of them written, its gradients read once."""
  trains = trainable_mask(state.params, config.model)
  trained = jax.tree.map(lambda x, keep: x if keep else None, state.params, trains)
  return nbytes(state.params) + 2 * nbytes(state.opt_state) + 2 * nbytes(trained)


def model_flops(jaxpr: Any, devices: int) -> float:
  """Of convolutions and matrix products of a program as it is written, a device's share.

  Args:
    devices: that share its convolutions; products are the optimizer's, which each device does whole.
  """
  total = 0.0
  for equation in jaxpr.eqns:
    params, name = equation.params, equation.primitive.name
    if name == "dot_general":
      (contracted, _), _ = params["dimension_numbers"]
      left = equation.invars[0].aval.shape
      total += 2 * equation.outvars[0].aval.size * math.prod(left[k] for k in contracted)
    elif name == "conv_general_dilated":
      total += convolution_flops(equation) / devices
    times = params["length"] if name == "scan" else 1
    within = 1 if name == "shard_map" else devices  # there arrays have a device's shape
    parts = [model_flops(j, within) for j in subprograms(params)]
    total += times * (max(parts, default=0.0) if name == "cond" else sum(parts))
  return total


def subprograms(params: dict[str, Any]) -> list[Any]:
  found = []
  for value in params.values():
    for one in value if isinstance(value, tuple | list) else (value,):
      one = getattr(one, "jaxpr", one)
      if hasattr(one, "eqns"):
        found.append(one)
  return found


def convolution_flops(equation: Any) -> int:
  (left, right), params = (v.aval.shape for v in equation.invars), equation.params
  (batch, _, *sides), (out, into, *window), (_, _, *result) = params["dimension_numbers"]
  shape = equation.outvars[0].aval.shape
  settings = zip(
    params["padding"], params["window_strides"], params["lhs_dilation"], params["rhs_dilation"], strict=True
  )
  pairs = 1
  for k, ((low, _), *steps) in enumerate(settings):
    pairs *= taps(left[sides[k]], right[window[k]], shape[result[k]], low, *steps)
  return 2 * left[batch] // params["batch_group_count"] * pairs * right[into] * right[out]


def largest_batch(peak_of: Callable[[int], int | None], first: int, peak: int | None, memory: int) -> int:
  """The most images a chip that fit, 0 if not even one does: by bisection, where a straight line would end.

  Args:
    peak_of: bytes that a number of images a chip takes, None if the compiler refuses it.
    first, peak: a number and its bytes.
    memory: of a chip.
  """
  peaks = {0: 0, first: peak}
  while True:
    fitting = sorted(n for n, found in peaks.items() if found is not None and found <= memory)
    beyond = min((n for n in peaks if n not in fitting), default=0)
    most = fitting[-1]
    if beyond - most == 1:
      return most
    if beyond and not (most and peaks[beyond]):
      number = (most + beyond) // 2
    else:
      # The line through the last that fits and the first that does not, or through the last two that fit.
      a, b = (most, beyond) if beyond else fitting[-2:]
      low, high = peaks[a] or 0, peaks[b] or 0
      number = a + int((memory - low) * (b - a) / max(high - low, 1))
      # A little more may take a little less: of such a line no end can be told. That from 0 ends too early.
      if not beyond and a:
        number = min(number, 2 * most)
    number = max(number, most + 1)
    number = min(number, beyond - 1) if beyond else number
    peaks[number] = peak_of(number)
