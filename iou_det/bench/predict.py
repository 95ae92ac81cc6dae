"""What detecting costs: throughput of a batch and latency of one image, decoding and NMS included."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from iou_det.bench import synthetic
from iou_det.bench.measure import calls_per_sample, compile_program, report, time_calls
from iou_det.bench.train import STEPS_PER_EPOCH
from iou_det.detector import Detector, make_model
from iou_det.parallel import device_mesh, to_device
from iou_det.training.step import create_state


def bench_predict(
  config: ConfigDict,
  num_classes: int,
  *,
  repeats: int,
  out: str | Path | None,
  devices: Sequence[jax.Device] | None = None,
) -> list[dict[str, Any]]:
  """Reports a line for batches of `config.eval.batch_size` on all devices, one for single images on one.

  Args:
    devices: defaults to all.

  Returns:
    The lines.
  """
  rows = []
  devices = jax.devices() if devices is None else devices
  for batch_size in dict.fromkeys((config.eval.batch_size, 1)):
    latency = batch_size == 1
    axes = {} if latency else config.mesh.to_dict()
    mesh = device_mesh(batch_size, devices[:1] if latency else devices, **axes, setting="--batch_size")
    model = make_model(config, num_classes)
    state, _ = create_state(config, model, STEPS_PER_EPOCH, mesh, pretrained=False)
    host = synthetic.batch(config, batch_size, num_classes, boxes=0)
    arrays = to_device(host, mesh)
    compilation = compile_program(
      Detector(config, model, mesh, ()).step, state.variables, arrays, False, cold=True
    )
    detect = lambda program=compilation.program, s=state.variables, a=arrays: program(s, a)
    found = float(detect().valid.sum(axis=1).mean())
    timing = time_calls(detect, warmup=2, repeats=repeats, calls=1 if latency else calls_per_sample())
    row = report(
      "predict", "latency" if latency else "throughput", timing=timing, images=batch_size,
      dtype=jnp.dtype(model.dtype).name, shapes=synthetic.describe(config, host, num_classes, boxes=0),
      compilation=compilation, devices=mesh.size, out=out, detections_per_image=found,
    )  # fmt: skip
    rows.append(row)
  return rows
