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

from iou_det import config as config_lib
from iou_det.bench import synthetic
from iou_det.bench.measure import calls_per_sample, compile_program, print_line, report, time_calls
from iou_det.bench.train import STEPS_PER_EPOCH
from iou_det.detector import make_model
from iou_det.parallel import device_mesh, to_device
from iou_det.training.step import create_state, make_train_step

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
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
  config = changed(config, {"data.max_boxes": boxes})
  short, long = config.data.short, config.data.long
  plain: dict[str, Any] = {"batch_size": batch_size, "num_classes": num_classes, "boxes": boxes}
  steps: list[tuple[ConfigDict, str, dict[str, Any]]] = []
  if jax.device_count() == 1:
    steps += [(config, "batch", {"batch_size": batch_size * k}) for k in (1, 2, 4)]
    sizes = [{"data.short": short * k // 2, "data.long": long * k // 2} for k in (1, 2, 3)]
    steps += [(changed(config, size), "image size", {}) for size in sizes]
    numbers = (8, 30, 100, 300)
    steps += [(changed(config, {"data.max_boxes": k}), "boxes", {"boxes": k}) for k in numbers]
    steps += [(config, "classes", {"num_classes": k}) for k in (1, 80, 400, 1200)]
  else:
    count = jax.device_count()
    steps += [(config, "devices", {"devices": n}) for n in (1, 2, 4, 8) if n <= count]
    axes = ("mesh.fsdp", "mesh.space")
    steps += [(changed(config, {axis: 2}), "mesh", {"devices": count}) for axis in axes]
  rows = []
  for changed_config, what, change in steps:
    rows.append(measure_step(changed_config, what, **(plain | change), repeats=repeats, out=out))
  several = [row for row in rows if row["what"] == "devices"]
  if several:
    for line in estimates(several[-1]["collectives"]["all-reduce"]["bytes"]):
      print_line(line, out)
  if out:
    plot(rows, Path(out).with_suffix(".png"))
  return rows


def changed(config: ConfigDict, fields: dict[str, Any]) -> ConfigDict:
  """A validated copy of a config with other values of some fields."""
  config = ConfigDict(config.to_dict())
  config.update_from_flattened_dict(fields)
  config_lib.validate(config)
  return config


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
) -> dict[str, Any]:
  """Reports time, memory and collectives of one training step."""
  mesh = device_mesh(batch_size, jax.devices()[:devices], **config.mesh.to_dict())
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
      sizes = [bits(kind) // 8 * math.prod(int(n) for n in sides.split(",") if n) for kind, sides in shapes]
      if match[3] and match[2] == "all-gather":  # what is started yields operands, then results
        sizes = sizes[len(sizes) // 2 :]
      elif match[3] and match[2] == "collective-permute":  # operand, result, two counters
        sizes = sizes[1:2]
      found[match[2]]["count"] += 1
      found[match[2]]["bytes"] += sum(sizes)
  return found


def bits(kind: str) -> int:
  """Of a value of one of XLA's types: the number in its name (pred has none, and a byte)."""
  number = re.search(r"\d+", kind)
  return int(number[0]) if number else 8


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
