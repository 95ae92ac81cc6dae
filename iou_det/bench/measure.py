"""Timing, compilation, memory and FLOPs of one piece of work, and the JSON line that reports them.

A sample is the time of `calls` calls, issued one after another as a training loop does and waited for at the
end, divided by `calls`. The spread is the interquartile range of the samples. What is compared is sampled in
turn, one sample of each, so that whatever else the machine does meets all of them.
"""

import contextlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

# Dense bfloat16 matrix FLOP/s of one device as JAX counts devices, by the start of its `device_kind`.
# NVIDIA: the data sheets' tensor core figures (given with sparsity: halved). TPU: cloud.google.com/tpu/docs.
PEAK_BF16 = {
  "NVIDIA H100 80GB HBM3": 989.4e12,  # SXM5
  "NVIDIA H100 NVL": 835.5e12,
  "NVIDIA H100 PCIe": 756.5e12,
  "NVIDIA H200": 989.4e12,
  "NVIDIA A100": 312e12,
  "NVIDIA L4": 121e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
}
CALLS_ON_ACCELERATOR = 4  # in a sample: work is issued ahead, which hides Python's share as training does


def calls_per_sample() -> int:
  """Of throughput on this process's devices; a CPU does one thing after another anyway."""
  return 1 if jax.default_backend() == "cpu" else CALLS_ON_ACCELERATOR


@dataclass(frozen=True)
class Timing:
  """Seconds of a call, one number per sample."""

  samples: tuple[float, ...]
  warmup: int  # calls before the first sample
  calls: int  # per sample

  @property
  def median(self) -> float:
    return float(np.median(self.samples))

  @property
  def spread(self) -> float:
    """Interquartile range of the samples, seconds."""
    low, high = np.percentile(self.samples, [25, 75])
    return float(high - low)


def time_calls(call: Callable[[], Any], *, warmup: int, repeats: int, calls: int = 1) -> Timing:
  """Times a function; what it returns is waited for."""
  return time_in_turn({"": call}, warmup=warmup, repeats=repeats, calls=calls)[""]


def time_in_turn(
  functions: Mapping[str, Callable[[], Any]], *, warmup: int, repeats: int, calls: int = 1
) -> dict[str, Timing]:
  """Times several functions, one sample of each in turn."""
  for call in functions.values():
    for _ in range(warmup):
      jax.block_until_ready(call())
  samples: dict[str, list[float]] = {name: [] for name in functions}
  for _ in range(repeats):
    for name, call in functions.items():
      start = time.perf_counter()
      for _ in range(calls):
        result = call()
      jax.block_until_ready(result)
      samples[name].append((time.perf_counter() - start) / calls)
  return {name: Timing(tuple(s), warmup, calls) for name, s in samples.items()}


@dataclass(frozen=True)
class Compilation:
  """A compiled program and what compiling it told."""

  program: Any  # jax.stages.Compiled: called with the arguments that are not static
  lower_seconds: float  # tracing in Python
  compile_seconds: float  # XLA; reading it where the persistent cache has it
  flops: float | None  # of the program as written: before XLA removes, fuses or repeats anything
  memory_bytes: int | None  # per device: arguments, results and temporary buffers


def compile_program(function: Any, *arguments: Any, cold: bool) -> Compilation:
  """Compiles a jitted function for its arguments (values or shapes).

  A function that this process has compiled before for the same shapes costs nothing the second time.

  Args:
    cold: whatever JAX's persistent cache has; see `fresh_cache`.
  """
  start = time.perf_counter()
  lowered = function.lower(*arguments)
  lowered_at = time.perf_counter()
  with fresh_cache() if cold else contextlib.nullcontext():
    program = lowered.compile()
  end = time.perf_counter()
  cost, memory = lowered.cost_analysis(), program.memory_analysis()
  needed = memory and (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes  # results that lie in donated arguments
  )
  return Compilation(
    program=program,
    lower_seconds=lowered_at - start,
    compile_seconds=end - lowered_at,
    flops=float(cost["flops"]) if cost and "flops" in cost else None,
    memory_bytes=int(needed) if needed is not None else None,
  )


@contextlib.contextmanager
def fresh_cache() -> Iterator[None]:
  """JAX's persistent cache in an empty folder that goes away: what is compiled first is compiled cold."""
  from jax.experimental.compilation_cache import compilation_cache

  with tempfile.TemporaryDirectory() as folder:
    options = {"jax_compilation_cache_dir": folder, "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: jax.config.values[name] for name in options}
    try:
      for name, value in options.items():
        jax.config.update(name, value)
      compilation_cache.reset_cache()  # JAX looks at the folder once, then again only after this
      yield
    finally:
      for name, value in before.items():
        jax.config.update(name, value)
      compilation_cache.reset_cache()


def peak_flops(device_kind: str) -> float | None:
  """Dense bfloat16 FLOP/s of a device; None if PEAK_BF16 does not know it."""
  return next((peak for kind, peak in PEAK_BF16.items() if device_kind.startswith(kind)), None)


def hardware() -> dict[str, Any]:
  """What the measurement ran on."""
  device = jax.devices()[0]
  return {
    "platform": device.platform,
    "device": device.device_kind,
    "devices": jax.device_count(),
    "cpu": _cpu_model(),
    "cores": len(os.sched_getaffinity(0)),
  }


def _cpu_model() -> str:
  lines = Path("/proc/cpuinfo").read_text().splitlines()
  names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.machine()


def versions(*more: str) -> dict[str, str]:
  """Of Python and the packages that the figures depend on; `more`: of these distributions too."""
  names = ("iou-det", "jax", "jaxlib", "flax", *more)
  return {"python": platform.python_version()} | {name: _version(name) for name in names}


def _version(name: str) -> str:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:  # a checkout that was not installed
    return "not installed"


def report(
  bench: str,
  what: str,
  *,
  by: str = "iou-det",
  timing: Timing | None = None,
  images: int | None = None,
  dtype: str | None = None,
  shapes: dict[str, Any] | None = None,
  compilation: Compilation | None = None,
  devices: int | None = None,
  more_versions: tuple[str, ...] = (),
  out: str | Path | None = None,
  **more: Any,
) -> dict[str, Any]:
  """Prints a measurement as one JSON line; what was not measured is null.

  Args:
    bench: which benchmark: train, input, ...
    what: the piece measured; with `bench` and `by` the name of the row.
    by: whose code.
    images: per call, over all devices.
    dtype: of the computation; only of bfloat16 is the share of the peak stated.
    shapes: of the inputs, and what else sets the size of the work.
    devices: that took part; default: all.
    more_versions: distributions beside ours and JAX's.
    out: a file to append the line to as well.
    more: further fields of the line.
  """
  where = hardware() | ({"devices": devices} if devices else {})
  # On several devices the program as written has each device's share in some places and all in others.
  flops = compilation.flops if compilation and where["devices"] == 1 else None
  peak = peak_flops(where["device"]) if dtype == "bfloat16" else None
  per_second = flops / timing.median if flops and timing else None
  stats = jax.local_devices()[0].memory_stats() or {}
  row = {
    "bench": bench,
    "what": what,
    "by": by,
    "hardware": where,
    "versions": versions(*more_versions),
    "shapes": shapes,
    "batch": images,
    "dtype": dtype,
    "warmup": timing.warmup if timing else None,
    "repeats": len(timing.samples) if timing else None,
    "calls_per_repeat": timing.calls if timing else None,
    "seconds_median": timing.median if timing else None,
    "seconds_iqr": timing.spread if timing else None,
    "images_per_second": images / timing.median if images and timing else None,
    "program_memory_bytes": compilation.memory_bytes if compilation else None,  # per device, by the compiler
    "device_peak_bytes": stats.get("peak_bytes_in_use"),  # of the process so far, autotuning included
    "lower_seconds": compilation.lower_seconds if compilation else None,
    "compile_seconds": compilation.compile_seconds if compilation else None,
    "model_flops": flops,  # null on several devices
    "model_flops_per_second": per_second,
    "share_of_peak": per_second / (peak * where["devices"]) if per_second and peak else None,
  } | more
  print_line(row, out)
  return row


def print_line(row: dict[str, Any], out: str | Path | None) -> None:
  """Prints a row as JSON and appends it to `out` if that is given."""
  line = json.dumps(row)
  print(line, flush=True)
  if out:
    with Path(out).open("a") as file:
      file.write(line + "\n")
