"""Chips that programs are compiled for without having them, and what is known of these."""

import contextlib
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import psutil
from jax.experimental import topologies

from iou_det.errors import UserError


class Chip(NamedTuple):
  """Of one chip, from its maker's pages; None: not known."""

  kind: str  # the start of what JAX calls it
  flops: float | None  # dense bfloat16 a second
  bandwidth: float | None  # bytes a second of its memory
  memory: int  # bytes of it
  host: int  # chips that a machine has at the most
  link: float  # bytes a second that it sends to its neighbours while it receives as many; 0: none


# Google: cloud.google.com/tpu/docs/v5e, v5p, v6e (links are given there for both ways together; memory in GB,
# taken as GiB). NVIDIA: the data sheets of the SXM modules (FLOPs with sparsity there: halved), memory and
# bandwidth as the cards say them of themselves (XLA's xla/backends/gpu/target_config/specs).
CHIPS = {
  "v5e": Chip("TPU v5 lite", 197e12, 819e9, 16 * 2**30, 8, 200e9),
  "v5p": Chip("TPU v5", 459e12, 2765e9, 95 * 2**30, 4, 600e9),
  "v6e": Chip("TPU v6 lite", 918e12, 1638e9, 32 * 2**30, 8, 400e9),
  "h100": Chip("NVIDIA H100 80GB HBM3", 989.4e12, 3352.32e9, 84942979072, 8, 450e9),
  "h200": Chip("NVIDIA H200", 989.4e12, 4800e9, 151397597184, 8, 450e9),
  "a100": Chip("NVIDIA A100", 312e12, 2039.04e9, 85100068864, 8, 300e9),
  "cpu": Chip("cpu", None, None, psutil.virtual_memory().total, 1, 0.0),  # this machine's
}
# What XLA asks of a GPU beside that (its GpuTargetConfigProto), from the same specs.
HOPPER = {"major": 9, "cores": 132, "units": 128, "clock": 1.98, "cache": 52428800, "shared": 233472}
AMPERE = {"major": 8, "cores": 108, "units": 64, "clock": 1.41, "cache": 41943040, "shared": 167936}
GPUS = {"h100": HOPPER, "h200": HOPPER, "a100": AMPERE}
CUDNN = (9, 10)  # the version that is compiled for
# Slices that Google rents of v5e (v5litepod-1 to -256) and v6e; of v5p any number of hosts.
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
FORMS = (
  f"{', '.join(CHIPS)}, with their number behind a colon: h100:2x8 (hosts x chips), cpu:4, a TPU's topology: "
  "v5e:4x4 (Google's v5litepod-16), v6e:4x4 (v6e-16), v5p:2x2x4 (v5p-32)"
)


class Target(NamedTuple):
  name: str  # as given, with the number of slices
  chip: Chip
  devices: Sequence[jax.Device]
  slices: int

  @property
  def tpu(self) -> bool:
    return self.devices[0].platform == "tpu"

  @property
  def cpu(self) -> bool:
    return self.devices[0].platform == "cpu"

  @property
  def hosts(self) -> int:
    slice_and_host = {(getattr(d, "slice_index", 0), d.process_index) for d in self.devices}
    return len(slice_and_host)


def get_target(text: str, slices: int) -> Target:
  """The chips of `v5e:4x4`, `h100:1x8`, `a100`, `cpu:2`; a UserError if there are none such.

  Args:
    slices: of TPUs: so many of the topology, with a data-center network between them.
  """
  text = text.lower()
  name, colon, shape = text.partition(":")
  if name not in CHIPS:
    raise UserError(f"--target={text}: there is no {name!r}; known: {FORMS}")
  sides = [int(n) for n in shape.split("x")] if re.fullmatch(r"\d+(x\d+)*", shape) else []
  if colon and (not sides or 0 in sides):
    raise UserError(f"--target={text}: {shape!r} is no number of chips; allowed: {FORMS}")
  chip = CHIPS[name]
  if name.startswith("v"):
    return Target(text if slices == 1 else f"{text} x {slices}", chip, tpus(text, sides, slices), slices)
  if slices > 1:
    raise UserError(
      f"--slices={slices}: {name} has none, TPUs have; several hosts are written h100:{slices}x8"
    )
  if name == "cpu":
    number, there = (sides or [1])[0], len(jax.devices("cpu"))
    if len(sides) > 1 or number > there:
      todo = "XLA_FLAGS=--xla_force_host_platform_device_count=N simulates N"
      raise UserError(f"--target={text}: there are {there} CPU devices, allowed: cpu:N up to that; {todo}")
    return Target(text, chip, jax.devices("cpu")[:number], 1)
  hosts, per_host = {0: (1, 1), 1: (1, *sides), 2: tuple(sides)}.get(len(sides), (0, 0))
  if not hosts or per_host > chip.host:
    raise UserError(f"--target={text}: allowed are {name}:HOSTSxCHIPS with up to {chip.host} chips a host")
  return Target(text, chip, gpus(name, hosts, per_host), 1)


def tpus(text: str, sides: list[int], slices: int) -> Sequence[jax.Device]:
  if not find_spec("libtpu"):
    raise UserError(f"--target={text} needs libtpu; pip install -e '.[aot-tpu]'")
  # For libtpu: not to look for the machine's own chips, nor to lock them (two may compile at a time).
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  name, cube = text.partition(":")[0], text.startswith("v5p")
  if not sides:
    sides = [1] * (3 if cube else 2)
    text = f"{name}:{'x'.join(map(str, sides))}"
  if cube and len(sides) != 3:
    raise UserError(f"--target={text}: its chips lie along 3 axes; allowed are v5p:2x2x1, v5p:2x2x4, ...")
  if not cube and (shape := "x".join(map(str, sides))) not in FLAT:
    raise UserError(f"--target={text}: there is no slice of {shape} chips; there are {', '.join(FLAT)}")
  options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  if set(sides) == {1}:
    options["chips_per_host_bounds"] = (1, 1, 1)
  try:
    with quiet():
      return topologies.get_topology_desc(text, "tpu", **options).devices
  except jax.errors.JaxRuntimeError as error:
    why = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
    raise UserError(f"--target={text}: {why}; allowed are whole hosts, as v5p:2x2x4") from None


def gpus(name: str, hosts: int, per_host: int) -> Sequence[jax.Device]:
  if not find_spec("jax_cuda12_plugin"):
    raise UserError(f"--target={name} needs XLA's CUDA compiler; pip install -e '.[aot-gpu]'")
  topology = f"1x{hosts}x{per_host}"
  with quiet():
    made = topologies.get_topology_desc(
      topology, "cuda", topology=topology, target_config=specification(name)
    )
  return made.devices


def specification(name: str) -> str:
  """A GPU as XLA's GpuTargetConfigProto, in text."""
  chip, gpu = CHIPS[name], GPUS[name]
  return f"""
    gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      registers_per_core_limit: 65536 registers_per_block_limit: 65536 shared_memory_per_block: 49152
      shared_memory_per_core: {gpu["shared"]} shared_memory_per_block_optin: {gpu["shared"] - 1024}
      core_count: {gpu["cores"]} fpus_per_core: {gpu["units"]} clock_rate_ghz: {gpu["clock"]}
      l2_cache_size: {gpu["cache"]} memory_bandwidth: {chip.bandwidth:.0f} device_memory_size: {chip.memory}
      cuda_compute_capability {{ major: {gpu["major"]} minor: 0 }}
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} }}
    device_description_str: "{chip.kind}"
  """


@contextlib.contextmanager
def quiet():
  """Without what a library in C++ writes to stderr (that there is no driver), unless Python fails."""
  kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(nowhere, 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nowhere)
