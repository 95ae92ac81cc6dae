"""Counts what a compiled program moves, computes and exchanges, kernel by kernel.

Counted per scheduled instruction: what its operands must deliver, and what it writes. Within a fusion demand
runs backward: a slice or a gather asks its operand for no more than its own size, elementwise operations pass
on what they are asked for, a reduction or a concatenation asks for its share, a window or a product for all.
What is updated in place counts the update alone. A `while` counts as often as it is known to run (else once,
see `Count.unknown_loops`), of a `conditional` the dearest branch. A kernel is an instruction that is counted.

Not seen: what caches save, passes and workspaces within a library's call or a sort, operands that a window
reads twice. FLOPs are those of convolutions and matrix products, taps that fall on padding left out.
"""

import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from iou_det.aot.hlo import Array, Computation, Instruction, Program, read
from iou_det.aot.parts import NETWORK, Part, Parts

# recv: what a TPU gets from other slices; as much is sent.
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "recv")
FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
  "opt-barrier", "add-dependency", "domain", "get-dimension-size",
  "send",
}  # fmt: skip
WHOLE = {
  "dot", "convolution", "reduce-window", "sort", "custom-call", "call", "while", "conditional", "cholesky",
  "triangular-solve", "select-and-scatter", "map", "topk",
}  # fmt: skip
# TPU: buffers that the compiler reserves, no work.
RESERVED = ("AllocateBuffer", "AssumeGatherIndicesInBound")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
CUDNN = re.compile(r'custom_call_target="__cudnn\$conv(\w+)"')


class Kernel(NamedTuple):
  instruction: Instruction
  times: int
  bytes: int  # of the device's main memory, of one time
  flops: int
  part: Part
  convolutions: int  # bytes of operands and results of the convolutions in it, each once, without side inputs
  cycles: int = 0  # that XLA's TPU compiler reckons with


class Collective(NamedTuple):
  kind: str
  times: int
  bytes: int  # that it yields on a device
  overlapped: bool  # kernels run between its start and its end


@dataclass
class Count:
  kernels: list[Kernel] = field(default_factory=list)
  collectives: list[Collective] = field(default_factory=list)
  unknown_loops: int = 0  # `while`s of which it is not known how often they run

  @property
  def bytes(self) -> int:
    return sum(k.times * k.bytes for k in self.kernels)

  @property
  def flops(self) -> int:
    return sum(k.times * k.flops for k in self.kernels)

  @property
  def number(self) -> int:
    return sum(k.times for k in self.kernels)

  @property
  def convolution_floor(self) -> int:
    """Bytes of the network's convolutions alone: what they read and write, once."""
    return sum(k.times * k.convolutions for k in self.kernels if k.part.name in NETWORK)

  @property
  def cycles(self) -> int:
    return sum(k.times * k.cycles for k in self.kernels)

  def bound(self, flops: float, bandwidth: float) -> float:
    """Seconds below which no such chip is if caches save nothing: one kernel after another, at full speed.

    Args:
      flops, bandwidth: of the chip, a second; bytes of its main memory.
    """
    return sum(k.times * max(k.flops / flops, k.bytes / bandwidth) for k in self.kernels)


def exchanged(found: Count) -> dict[str, dict[str, int]]:
  """By kind of collective: how many, the bytes that they yield on a device, how many run beside kernels."""
  rows = {kind: {"count": 0, "bytes": 0, "overlapped": 0} for kind in COLLECTIVES}
  for c in found.collectives:
    rows[c.kind]["count"] += c.times
    rows[c.kind]["bytes"] += c.times * c.bytes
    rows[c.kind]["overlapped"] += c.times * c.overlapped
  return rows


def count(text: str, *, one_memory: bool) -> Count:
  """Of a program's text.

  Args:
    one_memory: whether all its memory spaces are the device's main memory (GPUs, CPUs); else only space 0
      is, and what lies in another (a TPU's VMEM) is moved for nothing.
  """
  counter = Counter(read(text), one_memory)
  found = Count()
  counter.walk(counter.program.entry, 1, found)
  return found


class Counter:
  def __init__(self, program: Program, one_memory: bool) -> None:
    self.program = program
    self.parts = Parts(program)
    self.one_memory = one_memory
    self.shares = functools.cache(self._shares)

  def size(self, found: tuple[Array, ...]) -> int:
    """Bytes that these arrays take in main memory."""
    return sum(a.physical for a in found if self.one_memory or a.space == 0)

  def walk(self, name: str, times: int, found: Count) -> None:
    """Adds what a computation does, so many times."""
    computation = self.program.computations[name]
    started: dict[str, tuple[int, int]] = {}  # collectives that run -> their place, and kernels before
    for i in computation.values():
      if i.op in FREE:
        continue
      if i.op.endswith(("-done", "-update")):
        if (start := self.started_by(i, computation)) in started:
          place, before = started.pop(start)
          if len(found.kernels) - len(found.collectives) > before:  # a collective is a kernel too
            found.collectives[place] = found.collectives[place]._replace(overlapped=True)
        continue
      body = self.body(i)
      kind = self.collective(i, body)
      if kind:
        started[i.name] = len(found.collectives), len(found.kernels) - len(found.collectives)
        found.collectives.append(
          Collective(kind, times, sum(a.logical for a in self.yielded(i, kind)), False)
        )
      elif i.op == "while":
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', i.attributes)
        found.unknown_loops += not trips
        for part in re.findall(r"\b(?:body|condition)=%?([\w.\-]+)", i.attributes):
          self.walk(part, times * (int(trips[1]) if trips else 1), found)
        continue
      elif i.op == "conditional":
        branches = [Count() for _ in self.branches(i)]
        for taken, branch in zip(self.branches(i), branches, strict=True):
          self.walk(taken, times, branch)
        dearest = max(branches, key=lambda b: b.bytes)
        found.kernels += dearest.kernels
        found.collectives += dearest.collectives
        found.unknown_loops += dearest.unknown_loops
        continue
      elif body and i.op in ("call", "async-start"):
        self.walk(body, times, found)
        continue
      if i.op == "custom-call" and any(name in i.attributes for name in RESERVED):
        continue
      inner = list(self.inside(i, computation))
      found.kernels.append(
        Kernel(
          i,
          times,
          self.moved(i, computation),
          sum(flops(j, within) for j, within in inner),
          self.parts.of(i, name),
          sum(convolution_bytes(j, within) for j, within in inner),
          int((CYCLES.search(i.attributes) or [0, 0])[1]),
        )
      )

  def body(self, i: Instruction) -> str | None:
    name = i.called("calls", "to_apply")
    return name if name in self.program.computations else None

  @staticmethod
  def branches(i: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
    return re.findall(r"%?([\w.\-]+)", listed[1]) if listed else re.findall(
      r"(?:true|false)_computation=%?([\w.\-]+)", i.attributes)  # fmt: skip

  def collective(self, i: Instruction, body: str | None) -> str | None:
    """The kind, if it is one, starts one or has one fused into it (of whose result a part is kept)."""
    op = i.op.removesuffix("-start")
    if op in ("async", "fusion") and body:
      inner = [j.op for j in self.program.computations[body].values()]
      op = next((name for name in COLLECTIVES if name in inner), op)
    return op if op in COLLECTIVES else None

  @staticmethod
  def yielded(i: Instruction, kind: str) -> tuple[Array, ...]:
    """A collective's results; what is started names operands before them, and counters behind."""
    if kind == "recv":
      return i.arrays[:1]
    if i.op.endswith("-start") and kind == "collective-permute":
      return i.arrays[len(i.operands) : 2 * len(i.operands)]
    if i.op.endswith("-start") and kind != "all-reduce":
      return i.arrays[len(i.arrays) // 2 :]
    return i.arrays

  @staticmethod
  def started_by(i: Instruction, computation: Computation) -> str:
    """The start that an end (or a chain of updates) belongs to."""
    while i.op.endswith(("-done", "-update")) and i.operands and i.operands[0] in computation:
      i = computation[i.operands[0]]
    return i.name

  def inside(self, i: Instruction, computation: Computation) -> Iterator[tuple[Instruction, Computation]]:
    """The instruction, or those of a fusion, nested ones too, each with the computation that it stands in."""
    body = self.body(i) if i.op == "fusion" else None
    if body is None:
      yield i, computation
      return
    within = self.program.computations[body]
    for j in within.values():
      yield from self.inside(j, within)

  def moved(self, i: Instruction, computation: Computation) -> int:
    """Bytes that a kernel reads from main memory and writes there."""
    shape = lambda name: computation[name].arrays if name in computation else ()
    own = self.size(i.arrays)
    if i.op == "fusion":
      reads, writes = self.shares(i.called("calls"))
      by: dict[str, float] = defaultdict(float)  # what is given twice is read once, at most
      for place, name in enumerate(i.operands):
        by[name] = min(1.0, by[name] + reads.get(place, 0.0))
      written = zip(i.arrays, writes if len(writes) == len(i.arrays) else [1.0] * len(i.arrays), strict=True)
      parts = [share * self.size(shape(name)) for name, share in by.items()]
      return math.ceil(sum(parts) + sum(share * self.size((a,)) for a, share in written))
    if i.op.endswith("copy-start") or i.op.endswith("slice-start"):
      # copy-start yields target, source, counter; slice-start source, target, counter
      target = i.arrays[0 if i.op == "copy-start" else 1]
      there = self.one_memory or any(a.space == 0 for a in shape(i.operands[0]))
      return self.size((target,)) + target.physical * there
    if (kind := i.op.removesuffix("-start")) in COLLECTIVES:
      own = self.size(
        self.yielded(i, kind)
      )  # without the operands that what is started names among its results
      if kind == "recv":
        return 2 * own
    if i.op in ("slice", "dynamic-slice", "gather"):
      return 2 * own
    if i.op in ("dynamic-update-slice", "scatter"):
      return 2 * self.size(shape(i.operands[1 if i.op == "dynamic-update-slice" else 2]))
    if i.op == "custom-call":  # beside its result a library's workspace: u8
      own = self.size(tuple(a for a in i.arrays if a.dtype != "u8" or len(i.arrays) == 1))
    return own + sum(self.size(shape(name)) for name in dict.fromkeys(i.operands))

  def _shares(self, name: str) -> tuple[dict[int, float], list[float]]:
    """The share that a fused computation reads of each parameter, and writes of each result."""
    computation = self.program.computations[name]
    full = {i.name: max(i.elements, 1) for i in computation.values()}
    root = next(i for i in computation.values() if i.root)
    results = [computation[o] for o in root.operands] if root.op == "tuple" else [root]
    in_place: dict[str, str] = {}  # what updates a parameter -> the update
    writes = []
    for result in results:
      at = behind(result, computation)
      update = {"dynamic-update-slice": 1, "scatter": 2}.get(at.op)
      if update and behind(computation[at.operands[0]], computation).op == "parameter":
        in_place[at.name] = at.operands[update]
        writes.append(min(1.0, full[at.operands[update]] / full[at.name]))
      else:
        writes += [1.0] * len(result.arrays)
    need = defaultdict(int, {result.name: full[result.name] for result in results})
    for i in reversed(computation.values()):
      wanted = min(need[i.name], full[i.name])
      if not wanted or i.op == "tuple":
        continue
      for place, operand in enumerate(i.operands):
        if operand in full:
          asked = self.asked(i, place, wanted, full, in_place)
          need[operand] = min(need[operand] + asked, full[operand])
    reads = {i.index: need[i.name] / full[i.name] for i in computation.values() if i.index is not None}
    return reads, writes

  def asked(
    self, i: Instruction, place: int, wanted: int, full: dict[str, int], in_place: dict[str, str]
  ) -> int:
    """Elements of an operand that an instruction needs so that so many of its own are known."""
    all_of_it, share = full[i.operands[place]], wanted / full[i.name]
    if i.name in in_place and place == 0:
      return full[in_place[i.name]] if i.op == "scatter" else 0
    if i.op in ("slice", "dynamic-slice", "gather") and place == 0:
      return wanted
    if i.op == "reduce":
      return math.ceil(all_of_it * share) if place < len(i.operands) // 2 else all_of_it
    if i.op == "fusion":
      read = self.shares(i.called("calls"))[0].get(place, 1.0)
      # Elementwise ones, which yield what they are given, also where only a part is wanted.
      return math.ceil(all_of_it * read * (share if all_of_it == full[i.name] else 1.0))
    if i.op in WHOLE:
      return all_of_it
    if i.op in ("concatenate", "pad", "dynamic-update-slice"):
      return math.ceil(all_of_it * share)
    return min(all_of_it, wanted)


def behind(i: Instruction, computation: Computation) -> Instruction:
  """What an instruction shows, seen through changes of form."""
  while i.op in ("bitcast", "copy", "reshape"):
    i = computation[i.operands[0]]
  return i


def windows(i: Instruction, computation: Computation) -> tuple[Array, Array, Array] | None:
  """Input, kernel and output of a convolution in the roles that its window is written in; None if it is none.

  The calls of cuDNN for gradients have the window of the forward convolution.
  """
  call = CUDNN.search(i.attributes) if i.op == "custom-call" else None
  if i.op != "convolution" and not call:
    return None
  first, second = (computation[name].arrays[0] for name in i.operands[:2])
  result = i.arrays[0]
  kind = call[1] if call else ""
  if kind == "BackwardInput":
    return result, second, first
  return (first, result, second) if kind == "BackwardFilter" else (first, second, result)


def convolution_bytes(i: Instruction, computation: Computation) -> int:
  found = windows(i, computation)
  return sum(a.logical for a in found) if found else 0


def flops(i: Instruction, computation: Computation) -> int:
  """Of a convolution or a matrix product; 0 of all else."""
  if i.op == "dot":
    left = computation[i.operands[0]].arrays[0].sides
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)
    axes = contracted[1].split(",") if contracted else []
    return 2 * i.elements * math.prod(left[int(k)] for k in axes if k)
  found = windows(i, computation)
  if not found:
    return 0
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
  window = re.search(r"window=\{([^}]*)\}", i.attributes)
  if not labels:
    return 0
  side = lambda which, label: found[which].sides[labels[which + 1].index(label)]
  given = dict(item.split("=") for item in (window[1] if window else "").split())
  pairs = 1
  for k in range(len(labels[1]) - 2):  # spatial axes
    one = lambda name, default, k=k: given[name].split("x")[k] if name in given else default
    low = int(one("pad", "0_0").split("_")[0])
    steps = (int(one(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    pairs *= taps(side(0, str(k)), side(1, str(k)), side(2, str(k)), low, *steps)
  groups = re.search(r"batch_group_count=(\d+)", i.attributes)
  batch = side(0, "b") // (int(groups[1]) if groups else 1)
  return 2 * batch * pairs * side(1, "i") * side(1, "o")


@functools.cache
def taps(size: int, kernel: int, output: int, low: int, stride: int, dilate: int, kernel_dilate: int) -> int:
  """Pairs of an output's place and a kernel's that fall on a value of the input, along an axis."""
  places = (o * stride + k * kernel_dilate - low for o in range(output) for k in range(kernel))
  return sum(0 <= at <= (size - 1) * dilate and at % dilate == 0 for at in places)
