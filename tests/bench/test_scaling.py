"""What is counted in compiled programs, and the estimate on paper."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from iou_det.bench.scaling import collectives, estimates, measure_step, plot
from iou_det.bench.synthetic import Case
from iou_det.parallel import device_mesh
from tests.tiny import tinier_config


def text(function, out, x):
  return jax.jit(function, out_shardings=out).lower(x).compile().as_text()


def test_collectives_of_known_programs():
  """A sum over 8 devices is one all-reduce of a float; gathering 64 floats one all-gather of 256 bytes."""
  mesh = device_mesh(8)
  split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
  x = jax.device_put(jnp.arange(64.0), split)
  assert collectives(text(jnp.sum, whole, x))["all-reduce"] == {"count": 1, "bytes": 4}
  assert collectives(text(lambda x: x + 1, whole, x))["all-gather"] == {"count": 1, "bytes": 256}
  started = "%r = (f32[2,3]{1,0}, bf16[]) all-reduce-start(%a, %b)"
  assert collectives(started)["all-reduce"] == {"count": 1, "bytes": 26}
  # What is started asynchronously names its operands too: only the results are counted.
  started = "%g = (f32[2]{0}, f32[16]{0}) all-gather-start(%a)"
  assert collectives(started)["all-gather"] == {"count": 1, "bytes": 64}
  started = "%p = (u16[8]{0}, u16[8]{0}, u32[], u32[]) collective-permute-start(%a)"
  assert collectives(started)["collective-permute"] == {"count": 1, "bytes": 16}


def test_estimate_of_a_ring():
  rows = {(r["link"], r["chips"]): r["all_reduce_s"] for r in estimates(900_000_000)}
  assert rows["NVLink (H100)", 8] == pytest.approx(2 * 7 / 8 * 2e-3)
  assert rows["InfiniBand (DGX H100)", 256] == pytest.approx(2 * 255 / 256 * 18e-3)


def test_a_step_on_eight_devices_exchanges_its_gradients_once(tmp_path):
  out = tmp_path / "scaling.jsonl"
  case = Case(tinier_config("made up"), num_classes=4, boxes=5, batch_size=8)
  row = measure_step(case, "devices", repeats=1, out=out)
  assert row["mesh"] == {"data": 8, "fsdp": 1, "space": 1}
  gradients = 4 * 202_000  # bytes of the tiny network's parameters, about
  assert 0.9 * gradients < row["collectives"]["all-reduce"]["bytes"] < 1.3 * gradients
  assert json.loads(out.read_text())["collectives"] == row["collectives"]
  plot([row], tmp_path / "scaling.png")
  assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
