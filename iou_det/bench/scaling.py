"""`bench scaling`: how a training step's time and memory grow, and what devices exchange in it."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from iou_det.aot import target
from iou_det.aot.count import count, exchanged
from iou_det.bench.measure import Line, fresh_cache, print_line
from iou_det.bench.synthetic import Case, changed
from iou_det.data.plan import images_per_step

# Bytes a second that a chip can send while it receives as many.
LINKS = {
  "NVLink (H100)": target.CHIPS["h100"].link,
  "InfiniBand (DGX H100)": 50e9,  # a 400 Gb/s port for each GPU, by the maker's page
  "ICI (TPU v5e)": target.CHIPS["v5e"].link,
  "ICI (TPU v5p)": target.CHIPS["v5p"].link,
}
CHIPS = (8, 16, 32, 64, 128, 256)


def bench_scaling(
  config: ConfigDict, num_classes: int, boxes: int, *, repeats: int, out: Path | None
) -> list[Line]:
  """Reports training steps with one thing changed at a time; returns the lines that were measured.

  On one device: batch, image size, boxes, classes. On several: number of devices, with what
  the compiled step exchanges, and from it an estimate for more chips. Draws `out` with the ending .png.
  """
  devices_there, batch_size, d = jax.device_count(), images_per_step(config.train), config.data
  config = changed(config, {"data.max_boxes": boxes})

  def step(what, fields=None, *, batch=batch_size, classes=num_classes, boxes=boxes, devices=1):
    own = changed(config, fields or {})  # checked before anything is measured
    return what, partial(Case, own, classes, boxes, batch, jax.devices()[:devices])

  if devices_there == 1:
    sizes = [{"data.short": d.short * k // 2, "data.long": d.long * k // 2} for k in (1, 2, 3)]
    steps = [
      *(step("batch", batch=batch_size * k) for k in (1, 2, 4)),
      *(step("image size", size) for size in sizes),
      *(step("boxes", {"data.max_boxes": k}, boxes=k) for k in (8, 30, 100, 300)),
      *(step("classes", classes=k) for k in (1, 80, 400, 1200)),
    ]
  else:
    steps = [step("devices", devices=n) for n in (1, 2, 4, 8) if n <= devices_there]
  rows = [measure_step(make_case(), what, repeats=repeats, out=out) for what, make_case in steps]
  several = [row for row in rows if row["what"] == "devices"]
  if several:
    for line in estimates(several[-1]["collectives"]["all-reduce"]["bytes"]):
      print_line(line, out)
  if out:
    plot(rows, out.with_suffix(".png"))
  return rows


def measure_step(case: Case, what: str, *, repeats: int, out: Path | None) -> Line:
  with fresh_cache():
    compilation = case.compile_step()
  timing, _ = case.time_step(compilation, repeats)
  one_memory = case.mesh.devices.flat[0].platform != "tpu"
  collectives = exchanged(count(compilation.program.as_text(), one_memory=one_memory))
  return case.measurement("scaling", what, timing, compilation, collectives=collectives).print(out)


def estimates(gradient_bytes: int) -> Iterator[Line]:
  """On paper: seconds a step that a ring all-reduce of the counted bytes takes over published links.

  Each chip sends 2 (n - 1) / n times the bytes; nothing is hidden behind computing.
  """
  row = {"bench": "scaling", "what": "estimate, not measured", "all_reduce_bytes": gradient_bytes}
  for link, speed in LINKS.items():
    for chips in CHIPS:
      seconds = 2 * (chips - 1) / chips * gradient_bytes / speed
      yield row | {"link": link, "link_bytes_per_second": speed, "chips": chips, "all_reduce_s": seconds}


def plot(rows: list[Line], path: Path) -> None:
  """Milliseconds and megabytes an image against what was changed, a panel for each."""
  figures = {
    "batch": ("images in a batch", lambda r: r["batch"]),
    "image size": ("thousand pixels of the input", lambda r: math.prod(r["shapes"]["network_input"]) / 1e3),
    "boxes": ("boxes of an image", lambda r: r["shapes"]["boxes"]),
    "classes": ("classes", lambda r: r["shapes"]["classes"]),
    "devices": ("devices (simulated ones share the cores)", lambda r: r["hardware"]["devices"]),
  }
  shown = {what: mine for what in figures if (mine := [r for r in rows if r["what"] == what])}
  across = min(2, len(shown))
  down = math.ceil(len(shown) / across)
  figure = Figure(figsize=(4 * across, 0.4 + 2.8 * down), layout="constrained")
  panels = figure.subplots(down, across, squeeze=False).ravel().tolist()
  for panel in panels[len(shown) :]:
    panel.remove()
  for panel, (what, mine) in zip(panels, shown.items(), strict=False):
    label, x_of = figures[what]
    x = [x_of(r) for r in mine]
    (time,) = panel.plot(x, [1e3 / r["images_per_second"] for r in mine], "o-", color="#0072B2", label="time")
    panel.set(xlabel=label, ylabel="ms an image", ylim=(0, 1.08 * panel.get_ylim()[1]))
    right = panel.twinx()
    held = [r["program_memory_bytes"] * r["hardware"]["devices"] / r["batch"] / 1e6 for r in mine]
    (memory,) = right.plot(x, held, "s--", color="#D55E00", label="memory (right)")
    right.set(ylabel="MB an image, all devices", ylim=(0, 1.08 * right.get_ylim()[1]))
  figure.legend(handles=[time, memory], loc="outside upper left", ncols=2, frameon=False)
  figure.savefig(path, dpi=200)
