"""`bench scaling`: how a training step's time and memory grow, and what devices exchange in it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import matplotlib
from ml_collections import ConfigDict

from iou_det.bench.measure import compile_program, time_calls
from iou_det.bench.network import random_batch, rates, setting
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
  config: ConfigDict, batch_size: int, boxes: int, classes: int, repeats: int, out: str
) -> Iterator[dict[str, Any]]:
  """Training steps with one thing changed at a time: batch, image size, boxes, classes, devices.

  With several devices also the collectives of the compiled step, for the mesh axes `data`, `fsdp`, `space`,
  and from them an estimate for more chips. Draws OUT's name with .png if `out` is given.
  """
  plain: dict[str, Any] = {"batch_size": batch_size, "boxes": boxes, "classes": classes}
  plain |= {"devices": 1, "fsdp": 1, "space": 1}
  short, long = config.data.short, config.data.long
  changes: list[tuple[str, dict[str, Any]]]
  changes = [("batch size", {"batch_size": batch_size * k}) for k in (1, 2, 4)]
  changes += [("image size", {"size": (short * k // 2, long * k // 2)}) for k in (1, 2, 3)]
  changes += [("boxes", {"boxes": k}) for k in (8, 30, 100, 300)]
  changes += [("classes", {"classes": k}) for k in (1, 80, 400, 1200)]
  available = [n for n in (1, 2, 4, 8) if n <= jax.device_count() and batch_size % n == 0]
  changes += [("devices", {"devices": n}) for n in available]
  if 8 in available:
    changes += [("mesh", {"devices": 8, "fsdp": 8}), ("mesh", {"devices": 8, "space": 2})]
  rows = []
  for name, change in changes:
    rows.append({"bench": "scaling", "piece": name, **measure_step(config, repeats, **(plain | change))})
    yield rows[-1]
  counted = [r for r in rows if r["piece"] == "devices" and r["devices_used"] > 1]
  if counted:
    yield from estimates(counted[-1]["all-reduce bytes"])
  if out:
    plot(rows, Path(out).with_suffix(".png"))


def measure_step(
  config: ConfigDict,
  repeats: int,
  *,
  batch_size: int,
  boxes: int,
  classes: int,
  devices: int,
  fsdp: int,
  space: int,
  size: tuple[int, int] | None = None,
) -> dict[str, Any]:
  """Time, memory and collectives of one training step."""
  config = ConfigDict(config.to_dict())
  if size:
    config.data.update(short=size[0], long=size[1])
  config.data.max_boxes = max(boxes, 1)
  config.mesh.update(fsdp=fsdp, space=space)
  mesh = device_mesh(batch_size, jax.devices()[:devices], fsdp=fsdp, space=space)
  model = make_model(config, classes)
  state, optimizer = create_state(config, model, 1000, mesh, pretrained=False)
  batch = to_device(random_batch(config, batch_size, boxes, classes), mesh)
  program = compile_program(make_train_step(config, model, optimizer, 1000, mesh), state, batch, False)
  holder = [state]

  def run():
    holder[0], metrics = program.run(holder[0], batch)
    return metrics["loss"]

  timing = time_calls(run, repeats)
  exchanged = collectives(program.text)
  return {
    **setting(config, batch_size, boxes, classes), "devices_used": devices, **program.row(),
    **rates(timing, program.flops, batch_size), "s_per_image": timing.median / batch_size,
    "collectives": {name: count for name, (count, _) in exchanged.items()},
    "all-reduce bytes": exchanged["all-reduce"][1],
    "collective_bytes": sum(size for _, size in exchanged.values()),
  }  # fmt: skip


def collectives(program: str) -> dict[str, tuple[int, int]]:
  """Number of each kind of collective in a compiled program, and the bytes that they yield on a device."""
  found = dict.fromkeys(COLLECTIVES, (0, 0))
  for line in program.splitlines():
    match = re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
    if match:
      shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
      size = 0
      for kind, sides in shapes:
        values = 1
        for side in filter(None, sides.split(",")):
          values *= int(side)
        size += values * BYTES[kind]
      count, total = found[match[2]]
      found[match[2]] = (count + 1, total + size)
  return found


def estimates(gradient_bytes: int) -> Iterator[dict[str, Any]]:
  """On paper: seconds a step that a ring all-reduce of the counted bytes takes over published links.

  Each chip sends 2 (n - 1) / n times the bytes; nothing is hidden behind computing.
  """
  for link, speed in LINKS.items():
    for chips in CHIPS:
      yield {
        "bench": "scaling", "piece": "estimate, not measured", "link": link, "link_bytes_per_second": speed,
        "chips": chips, "all_reduce_bytes": gradient_bytes,
        "all_reduce_s": 2 * (chips - 1) / chips * gradient_bytes / speed,
      }  # fmt: skip


def plot(rows: list[dict[str, Any]], path: Path) -> None:
  """Seconds and bytes per image against what was changed, a panel for each."""
  matplotlib.use("agg")
  from matplotlib import pyplot

  keys = {
    "batch size": "batch_size", "image size": "input_size", "boxes": "boxes", "classes": "classes",
    "devices": "devices_used",
  }  # fmt: skip
  figure, panels = pyplot.subplots(1, len(keys), figsize=(4 * len(keys), 3.2), layout="constrained")
  for panel, (name, key) in zip(panels, keys.items(), strict=True):
    mine = [r for r in rows if r["piece"] == name]
    x = [r[key] if not isinstance(r[key], tuple) else r[key][0] * r[key][1] / 1e3 for r in mine]
    panel.plot(x, [1e3 * r["s_per_image"] for r in mine], "o-", color="C0")
    label = "thousand pixels" if name == "image size" else name
    panel.set(xlabel=label, ylabel="ms an image", ylim=(0, None))
    memory = panel.twinx()
    per_image = [r["program_memory_bytes"] * r["devices_used"] / r["batch_size"] / 1e6 for r in mine]
    memory.plot(x, per_image, "s--", color="C1")
    memory.set(ylabel="MB an image, all devices", ylim=(0, None))
  panels[0].plot([], [], "s--", color="C1", label="memory")
  panels[0].plot([], [], "o-", color="C0", label="time")
  panels[0].legend()
  figure.savefig(path, dpi=100)
  pyplot.close(figure)
