"""What was counted, as a line of JSON and as a page."""

import math
from collections import defaultdict
from typing import Any

from iou_det.aot.count import exchanged
from iou_det.aot.program import Compiled

# Images a second that a core reads and decodes: 960 on two, see docs/performance.md.
INPUT_RATE = 480
BOUND = "a lower bound by arithmetic, no measurement"


def figures(c: Compiled, largest: int | None) -> dict[str, Any]:
  """Bytes, FLOPs and kernels are a chip's; what is not known is null.

  Args:
    largest: the most images a chip that fit, if that was asked for.
  """
  chip, memory, n = c.target.chip, c.memory, c.counted
  chips, hosts = len(c.target.devices), c.target.hosts
  row: dict[str, Any] = {"compile": c.what, "target": c.target.name, "chip": chip.kind, "chips": chips}
  row |= {"hosts": hosts, "slices": c.target.slices, "batch": c.images}
  row |= {"batch_per_chip": c.images / chips, "fits": c.fits, "refused": c.refused or None}
  row |= {"largest_batch_per_chip": largest, "chip_memory_bytes": chip.memory}
  for name in ("arguments", "temporaries", "peak"):
    row[f"{name}_bytes"] = getattr(memory, name) if memory else None
  row |= {"lower_seconds": round(c.lower_seconds, 1), "compile_seconds": round(c.compile_seconds, 1)}
  row["model_flops"] = c.model_flops
  if not n:
    return row
  parts: dict[str, dict[str, int]] = defaultdict(lambda: {"bytes": 0, "kernels": 0, "flops": 0, "cycles": 0})
  for kernel in n.kernels:
    part = parts[str(kernel.part)]
    part["bytes"] += kernel.times * kernel.bytes
    part["kernels"] += kernel.times
    part["flops"] += kernel.times * kernel.flops
    part["cycles"] += kernel.times * kernel.cycles
  row |= {"flops": n.flops, "model_share": c.model_flops / n.flops if n.flops else None}
  row |= {"bytes": n.bytes, "floor_bytes": n.convolution_floor + c.optimizer_floor, "kernels": n.number}
  row["estimated_cycles"] = n.cycles or None
  row |= {"loops_of_unknown_length": n.unknown_loops, "parts": dict(parts), "collectives": exchanged(n)}
  row |= {"bound_is": BOUND, "bound_seconds": None, "bound_images_per_second": None, "host_cores": None}
  if chip.flops and chip.bandwidth:
    seconds = row["bound_seconds"] = n.bound(chip.flops, chip.bandwidth)
    rate = row["bound_images_per_second"] = c.images / seconds
    row["host_cores"] = math.ceil(rate / hosts / INPUT_RATE)
  return row


def page(row: dict[str, Any]) -> str:
  """For people; GB are 1e9 bytes."""
  gb = lambda name: f"{row[name] / 1e9:.4g}"
  hosts = f"{row['hosts']} host{'s' * (row['hosts'] > 1)}"
  hosts += f", {row['slices']} slices" if row["slices"] > 1 else ""
  lines = [
    f"{row['compile']} for {row['target']}: {row['chips']} x {row['chip']} on {hosts}; "
    f"{row['batch']} images, {row['batch_per_chip']:g} a chip"
  ]
  say = lambda label, text: lines.append(f"  {label:<20}{text}")
  if row["peak_bytes"] is None:
    say("memory", f"does not fit: {row['refused']}")
  else:
    verdict = "fits" if row["fits"] else "DOES NOT FIT"
    say(
      "memory",
      f"peak {gb('peak_bytes')} GB of the chip's {gb('chip_memory_bytes')} (arguments "
      f"{gb('arguments_bytes')}, temporaries {gb('temporaries_bytes')}): {verdict}",
    )
  if row["largest_batch_per_chip"] is not None:
    say("largest batch", f"{row['largest_batch_per_chip']} images a chip")
  say("compiling", f"{row['lower_seconds']} s of tracing, {row['compile_seconds']} s of XLA")
  if "bytes" not in row:
    return "\n".join(lines)
  share = f"{row['model_share']:.0%} of them the model's" if row["model_share"] else "none counted"
  say("computes", f"{row['flops'] / 1e12:.4g} TFLOP a chip in convolutions and products, {share}")
  loops = row["loops_of_unknown_length"]
  unknown = f"; {loops} loops of unknown length count once" if loops else ""
  if row["bytes"] < row["floor_bytes"]:
    unknown += "; the rest stayed on the chip"
  say("moves", f"{gb('bytes')} GB a chip in {row['kernels']} kernels; floor {gb('floor_bytes')} GB{unknown}")
  for name, part in sorted(row["parts"].items(), key=lambda item: -item[1]["bytes"]):
    mega, giga = part["bytes"] / 1e6, part["flops"] / 1e9
    mega_cycles = f"{part['cycles'] / 1e6:9.2f} Mcycles" if row["estimated_cycles"] else ""
    lines.append(
      f"    {name:<24}{mega:11.1f} MB {part['kernels']:6d} kernels {giga:11.2f} GFLOP{mega_cycles}"
    )
  for kind, each in row["collectives"].items():
    if each["count"]:
      name = "from other slices" if kind == "recv" else kind
      say(name, f"{each['count']}, {each['bytes'] / 1e6:.1f} MB, {each['overlapped']} beside other work")
  if row["estimated_cycles"]:
    say("XLA's estimate", f"{row['estimated_cycles'] / 1e6:.1f} M cycles, one kernel after another")
  if row["bound_seconds"]:
    say(
      "bound",
      f"{row['bound_seconds'] * 1e3:.2f} ms a step, {row['bound_images_per_second']:.0f} images/s at the "
      f"most: {row['bound_is']}",
    )
    say("input", f"cores of a host that feed its chips at that bound: {row['host_cores']}")
  return "\n".join(lines)
