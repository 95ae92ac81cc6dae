"""`bench scaling`: how a training step's time and memory grow, and what devices exchange in it."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from iou_det.bench import synthetic
from iou_det.bench.measure import calls_per_sample, compile_program, print_line, report, time_calls
from iou_det.bench.train import STEPS_PER_EPOCH
from iou_det.training.mesh import device_mesh, to_device
from iou_det.training.state import create_state, make_model
from iou_det.training.step import make_train_step

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}
# Bytes a second that a chip can send while it receives as many, from the makers' pages.
LINKS = {
  "NVLink (H100)": 450e9,  # 900 GB/s both ways together
  "InfiniBand (DGX H100)": 50e9,  # a 400 Gb/s port for each GPU
  "ICI (TPU v5e)": 200e9,  # 400 GB/s both ways together
  "ICI (TPU v5p)": 600e9,  # 1,200 GB/s
}
CHIPS = (8, 16, 32, 64, 128, 256)


def bench_scaling(
  config: ConfigDict, num_classes: int, boxes: int, *, repeats: int, out: str | Path | None
) -> list[dict[str, Any]]:
  """Reports training steps with one thing changed at a time.

  On one device: batch, image size, boxes, classes. On several: number of devices and mesh axes, with what
  the compiled step exchanges, and from it an estimate for more chips. Draws `out` with the ending .png.

  Returns:
    The lines that were measured.
  """
  batch_size = config.train.batch_size
  short, long = config.data.short, config.data.long
  changes: list[tuple[str, dict[str, Any]]] = []
  if jax.device_count() == 1:
    changes += [("batch", {"batch_size": batch_size * k}) for k in (1, 2, 4)]
    changes += [("image size", {"size": (short * k // 2, long * k // 2)}) for k in (1, 2, 3)]
    changes += [("boxes", {"boxes": k}) for k in (8, 30, 100, 300)]
    changes += [("classes", {"num_classes": k}) for k in (1, 80, 400, 1200)]
  else:
    changes += [("devices", {"devices": n}) for n in (1, 2, 4, 8) if n <= jax.device_count()]
    changes += [("mesh", {"devices": jax.device_count(), axis: 2}) for axis in ("fsdp", "space")]
  plain = {"batch_size": batch_size, "num_classes": num_classes, "boxes": boxes}
  rows = []
  for what, change in changes:
    rows.append(measure_step(config, what, **(plain | change), repeats=repeats, out=out))
  several = [row for row in rows if row["what"] == "devices"]
  if several:
    for line in estimates(several[-1]["collectives"]["all-reduce"]["bytes"]):
      print_line(line, out)
  if out:
    plot(rows, Path(out).with_suffix(".png"))
  return rows


def measure_step(
  config: ConfigDict,
  what: str,
  *,
  batch_size: int,
  num_classes: int,
  boxes: int,
  repeats: int,
  out: str | Path | None,
  devices: int = 1,
  fsdp: int = 1,
  space: int = 1,
  size: tuple[int, int] | None = None,
) -> dict[str, Any]:
  """Reports time, memory and collectives of one training step."""
  config = ConfigDict(config.to_dict())
  config.data.max_boxes = boxes
  if size:
    config.data.update(short=size[0], long=size[1])
  mesh = device_mesh(batch_size, jax.devices()[:devices], fsdp=fsdp, space=space)
  model = make_model(config, num_classes)
  state, optimizer = create_state(config, model, STEPS_PER_EPOCH, mesh, pretrained=False)
  host = synthetic.batch(config, batch_size, num_classes, boxes)
  arrays = to_device(host, mesh)
  step = make_train_step(config, model, optimizer, STEPS_PER_EPOCH, mesh)
  compilation = compile_program(step, state, arrays, False, cold=True)

  def run():
    nonlocal state
    state, metrics = compilation.program(state, arrays)
    return metrics["loss"]

  timing = time_calls(run, warmup=2, repeats=repeats, calls=calls_per_sample())
  return report(
    "scaling", what, timing=timing, images=batch_size, dtype=jnp.dtype(model.dtype).name,
    shapes=synthetic.describe(config, host, num_classes, boxes), compilation=compilation, devices=devices,
    out=out, mesh=dict(mesh.shape), collectives=collectives(compilation.program.as_text()),
  )  # fmt: skip


def collectives(program: str) -> dict[str, dict[str, int]]:
  """How many of each kind of collective a compiled program has, and the bytes that they yield on a device."""
  found = {name: {"count": 0, "bytes": 0} for name in COLLECTIVES}
  for line in program.splitlines():
    match = re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
    if match:
      shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
      sizes = [BYTES[kind] * math.prod(int(n) for n in sides.split(",") if n) for kind, sides in shapes]
      found[match[2]]["count"] += 1
      found[match[2]]["bytes"] += sum(sizes)
  return found


def estimates(gradient_bytes: int) -> Iterator[dict[str, Any]]:
  """On paper: seconds a step that a ring all-reduce of the counted bytes takes over published links.

  Each chip sends 2 (n - 1) / n times the bytes; nothing is hidden behind computing.
  """
  for link, speed in LINKS.items():
    for chips in CHIPS:
      yield {
        "bench": "scaling", "what": "estimate, not measured", "link": link, "link_bytes_per_second": speed,
        "chips": chips, "all_reduce_bytes": gradient_bytes,
        "all_reduce_s": 2 * (chips - 1) / chips * gradient_bytes / speed,
      }  # fmt: skip


def plot(rows: list[dict[str, Any]], path: Path) -> None:
  """Milliseconds and megabytes an image against what was changed, a panel for each."""
  figures = {
    "batch": ("images in a batch", lambda r: r["batch"]),
    "image size": ("thousand pixels of the input", lambda r: math.prod(r["shapes"]["network_input"]) / 1e3),
    "boxes": ("boxes of an image", lambda r: r["shapes"]["boxes"]),
    "classes": ("classes", lambda r: r["shapes"]["classes"]),
    "devices": ("devices (simulated ones share the cores)", lambda r: r["mesh"]["data"]),
  }
  shown = [what for what in figures if any(r["what"] == what for r in rows)]
  figure = Figure(figsize=(3.8 * len(shown), 3.2), layout="constrained")
  for panel, what in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
    label, x_of = figures[what]
    mine = [r for r in rows if r["what"] == what]
    x = [x_of(r) for r in mine]
    (time,) = panel.plot(x, [1e3 / r["images_per_second"] for r in mine], "o-", color="C0", label="time")
    panel.set(xlabel=label, ylabel="ms an image", ylim=(0, None))
    right = panel.twinx()
    held = [r["program_memory_bytes"] * r["hardware"]["devices"] / r["batch"] / 1e6 for r in mine]
    (memory,) = right.plot(x, held, "s--", color="C1", label="memory")
    right.set(ylabel="MB an image, all devices", ylim=(0, None))
    panel.legend(handles=[time, memory], loc="lower right")
  figure.savefig(path, dpi=100)
