"""Timing, counting and reporting: every measurement is one JSON line that says what was measured on what."""

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

# Dense bfloat16 TFLOP/s of one device, from the makers' data sheets (without sparsity).
PEAKS = {
  "NVIDIA H200": 989.0,
  "NVIDIA H100 80GB HBM3": 989.0,
  "NVIDIA H100 PCIe": 756.0,
  "NVIDIA A100-SXM4-40GB": 312.0,
  "NVIDIA A100-SXM4-80GB": 312.0,
  "NVIDIA L4": 121.0,
  "Tesla T4": 65.0,  # float16: it has no bfloat16 units
  "TPU v4": 275.0,
  "TPU v5 lite": 197.0,
  "TPU v5p": 459.0,
  "TPU v6 lite": 918.0,
}


@dataclass(frozen=True)
class Timing:
  """Seconds of single calls."""

  seconds: tuple[float, ...]
  warmup: int

  @property
  def median(self) -> float:
    return float(np.median(self.seconds))

  @property
  def spread(self) -> float:
    """Distance between the quartiles."""
    low, high = np.percentile(self.seconds, [25, 75])
    return float(high - low)

  def row(self) -> dict[str, Any]:
    return {
      "warmup": self.warmup,
      "repeats": len(self.seconds),
      "median_s": self.median,
      "spread_s": self.spread,
    }


def time_calls(call: Callable[[], Any], repeats: int, warmup: int = 2) -> Timing:
  """Times single calls, each until the device has finished."""
  for _ in range(warmup):
    jax.block_until_ready(call())
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - start)
  return Timing(tuple(seconds), warmup)


@dataclass(frozen=True)
class Program:
  """A compiled function and what XLA says of it."""

  run: Callable[..., Any]
  compile_s: float
  flops: float  # of the program before XLA's rewriting, over all devices
  memory_bytes: int  # one device: arguments, results and the most that is in between
  text: str  # the compiled program

  def row(self) -> dict[str, Any]:
    return {"compile_s": self.compile_s, "flops": self.flops, "program_memory_bytes": self.memory_bytes}


def compile_program(function: Callable[..., Any], *arguments: Any) -> Program:
  """Compiles a jitted function for these arguments from cold, without JAX's cache on disk."""
  lowered = function.lower(*arguments)  # type: ignore[attr-defined]
  used = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
  finally:
    jax.config.update("jax_enable_compilation_cache", used)
  size = compiled.memory_analysis()
  memory = size.argument_size_in_bytes + size.output_size_in_bytes + size.temp_size_in_bytes
  flops = float(lowered.cost_analysis()["flops"])
  return Program(compiled, seconds, flops, memory - size.alias_size_in_bytes, compiled.as_text())


def peak_share(flops_per_second: float) -> float | None:
  """Share of the bfloat16 peak of all devices; None for a device that the table does not have."""
  peak = PEAKS.get(jax.devices()[0].device_kind)
  return None if peak is None else flops_per_second / (peak * 1e12 * jax.device_count())


def device_memory() -> int | None:
  """The most bytes that were ever in use on the first device; None where JAX does not know (CPU)."""
  statistics = jax.local_devices()[0].memory_stats()
  return None if statistics is None else statistics.get("peak_bytes_in_use")


def process_memory() -> int:
  """The most bytes of main memory that this process and its ended children ever held."""
  held = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
  return held * 1024  # Linux counts in KiB


def hardware() -> dict[str, Any]:
  device = jax.devices()[0]
  return {
    "device": device.device_kind,
    "devices": jax.device_count(),
    "cpu": cpu_name(),
    "cores": len(os.sched_getaffinity(0)),
    "python": platform.python_version(),
    **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "iou-det")},
  }


def cpu_name() -> str:
  """Model of the processor, as Linux names it."""
  information = Path("/proc/cpuinfo")
  lines = information.read_text().splitlines() if information.exists() else []
  return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine())


def report(row: dict[str, Any], out: str = "") -> dict[str, Any]:
  """Prints a measurement with the hardware and versions as one JSON line; appends it to the file `out`."""
  row = row | {"hardware": hardware()}
  line = json.dumps(row)
  print(line)
  sys.stdout.flush()
  if out:
    with open(out, "a") as file:
      file.write(line + "\n")
  return row
