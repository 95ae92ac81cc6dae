"""Timing, compilation, memory and FLOPs of one piece of work, and the JSON line that reports them.

A sample is the time of `calls` calls, issued one after another as a training loop does and waited for at the
end, divided by `calls`. The spread is the interquartile range of the samples.
"""

import contextlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import stats

from iou_det.aot.target import CHIPS

# Dense bfloat16 matrix FLOP/s of one device as JAX counts devices, by the start of its `device_kind`: of the
# chips that can be compiled for, and of others, from the same sources.
PEAK_BF16 = {
  "NVIDIA H100 NVL": 835.5e12,
  "NVIDIA H100 PCIe": 756.5e12,
  "NVIDIA L4": 121e12,
  "TPU v4": 275e12,
  "TPU v5e": CHIPS["v5e"].flops,  # also so called; before the "TPU v5" of a v5p
} | {chip.kind: chip.flops for chip in CHIPS.values()}
Line = dict[str, Any]  # of JSON, that a benchmark prints
CALLS_ON_ACCELERATOR = 4  # in a sample: work is issued ahead, which hides Python's share as training does


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
    return float(stats.iqr(self.samples))


def time_calls(call: Callable[[], Any], *, warmup: int, repeats: int, calls: int | None = None) -> Timing:
  """Times a function; what it returns is waited for. Default `calls`: for throughput on these devices."""
  if calls is None:  # a CPU does one thing after another anyway
    calls = 1 if jax.default_backend() == "cpu" else CALLS_ON_ACCELERATOR
  for _ in range(warmup):
    jax.block_until_ready(call())
  samples = []
  for _ in range(repeats):
    start = time.perf_counter()
    for _ in range(calls):
      result = call()
    jax.block_until_ready(result)
    samples.append((time.perf_counter() - start) / calls)
  return Timing(tuple(samples), warmup, calls)


@dataclass(frozen=True)
class Compilation:
  """A compiled program and what compiling it told."""

  program: Any  # jax.stages.Compiled: called with the arguments that are not static
  lower_seconds: float  # tracing in Python
  compile_seconds: float  # XLA; reading it where the persistent cache has it
  flops: float | None  # of the program as written: before XLA removes, fuses or repeats anything
  memory_bytes: int | None  # per device: arguments, results and temporary buffers


def compile_program(function: Any, *arguments: Any, counted: Any = None) -> Compilation:
  """Compiles a jitted function for its arguments (values or shapes); cold only within `fresh_cache`.

  A function that this process has compiled before for the same shapes costs nothing the second time.
  If it repeats work that the function `counted` does once, the FLOPs are that one's.
  """
  start = time.perf_counter()
  lowered = function.lower(*arguments)
  lowered_at = time.perf_counter()
  program = lowered.compile()
  end = time.perf_counter()
  cost = (counted.lower(*arguments) if counted else lowered).cost_analysis()
  memory, needed = program.memory_analysis(), None
  if memory:
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    needed -= memory.alias_size_in_bytes  # results that lie in donated arguments
  flops = float(cost["flops"]) if cost and "flops" in cost else None
  return Compilation(program, lowered_at - start, end - lowered_at, flops, needed)


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
  return next((peak for kind, peak in PEAK_BF16.items() if device_kind.startswith(kind)), None)


def cpu_model() -> str:
  lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
  names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.machine()


def versions(*more: str) -> dict[str, str]:
  """Of Python and the packages that the figures depend on; `more`: of these distributions too."""
  found = {"python": platform.python_version()}
  for name in ("iou-det", "jax", "jaxlib", "flax", *more):
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:  # a checkout that was not installed
      found[name] = "not installed"
  return found


FIELDS = (
  "bench what by hardware versions shapes batch dtype warmup repeats calls_per_repeat seconds_median "
  "seconds_iqr images_per_second program_memory_bytes device_peak_bytes lower_seconds compile_seconds "
  "model_flops model_flops_per_second share_of_peak"
).split()


@dataclass(frozen=True)
class Measurement:
  """A line of a benchmark; FIELDS that were not measured are null, FLOPs on several devices too.

  `program_memory_bytes` is the compiler's figure for a device, `device_peak_bytes` that of the process so
  far, autotuning included. The share of the peak is bfloat16's.
  """

  bench: str  # which benchmark: train, input, ...
  what: str  # the piece measured; with `bench` and `by` the name of the row
  by: str  # whose code
  timing: Timing | None = None
  compilation: Compilation | None = None
  devices: int | None = None  # that took part; default: all
  # Others of FIELDS (batch: images of a call over all devices), further ones, or other values.
  fields: dict[str, Any] = field(default_factory=dict)

  def print(self, out: Path | None) -> Line:
    """Prints the line as JSON, appends it to the file `out` if that is given, and returns it."""
    device, devices = jax.devices()[0], self.devices or jax.device_count()
    row = dict.fromkeys(FIELDS) | {"bench": self.bench, "what": self.what, "by": self.by}
    where = {"platform": device.platform, "device": device.device_kind, "devices": devices}
    row["hardware"] = where | {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0))}
    row["device_peak_bytes"] = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    row |= {"versions": versions()} | self.fields
    if self.timing:
      median = row["seconds_median"] = self.timing.median
      row |= {"seconds_iqr": self.timing.spread, "calls_per_repeat": self.timing.calls}
      row |= {"warmup": self.timing.warmup, "repeats": len(self.timing.samples)}
      row["images_per_second"] = row["batch"] / median if row["batch"] else None
    if self.compilation:
      c = self.compilation
      row |= {"lower_seconds": c.lower_seconds, "compile_seconds": c.compile_seconds}
      row["program_memory_bytes"] = c.memory_bytes
      # On several devices the program as written has each device's share in some places and all in others.
      flops = row["model_flops"] = c.flops if devices == 1 else None
      if flops and self.timing:
        peak = peak_flops(device.device_kind) if row["dtype"] == "bfloat16" else None
        row |= {"model_flops_per_second": flops / median, "share_of_peak": peak and flops / median / peak}
    print_line(row, out)
    return row


def print_line(row: Line, out: Path | None) -> None:
  """Prints a row as JSON and appends it to `out` if that is given."""
  line = json.dumps(row)
  print(line, flush=True)
  if out:
    with out.open("a", encoding="utf-8") as file:
      file.write(line + "\n")
