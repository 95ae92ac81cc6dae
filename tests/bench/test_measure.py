"""Timing, compilation and FLOPs against what is known without measuring."""

import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iou_det.bench import measure
from iou_det.bench.measure import Measurement, Timing, compile_program, fresh_cache, peak_flops, time_calls


def test_median_and_interquartile_range():
  timing = Timing((5.0, 1.0, 2.0, 100.0, 3.0), warmup=0, calls=1)  # sorted: 1 2 3 5 100
  assert timing.median == 3.0
  assert timing.spread == 3.0  # 5 - 2


def test_times_of_sleeps_are_per_call():
  called = []

  def sleep():
    called.append(1)
    time.sleep(0.02)

  timing = time_calls(sleep, warmup=1, repeats=3, calls=2)
  assert len(called) == 1 + 3 * 2 and len(timing.samples) == 3 and timing.warmup == 1
  assert 0.02 <= timing.median < 0.05


def test_flops_and_memory_of_a_product_of_matrices():
  a, b = jnp.ones((64, 200)), jnp.ones((200, 30))
  compilation = compile_program(jax.jit(jnp.matmul), a, b)
  assert compilation.flops == 2 * 64 * 200 * 30
  assert compilation.memory_bytes >= 4 * (64 * 200 + 200 * 30 + 64 * 30)
  assert compilation.compile_seconds > 0
  np.testing.assert_array_equal(compilation.program(a, b), np.full((64, 30), 200.0))


def test_donated_arguments_are_counted_once():
  x = jnp.ones(100_000)
  once, twice = (compile_program(jax.jit(lambda v: v + 1, donate_argnums=d), x) for d in ((0,), ()))
  assert twice.memory_bytes - once.memory_bytes == 400_000


def test_fresh_cache_begins_empty_and_leaves_the_users_cache_alone(tmp_path):
  from jax.experimental.compilation_cache import compilation_cache

  folder = jax.config.values["jax_compilation_cache_dir"]
  try:
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    with fresh_cache():
      inside = Path(jax.config.values["jax_compilation_cache_dir"])
      compile_program(jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x)), jnp.ones((5, 5)))
      assert inside != tmp_path and any(inside.iterdir())
    assert not inside.exists() and not any(tmp_path.iterdir())
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path)
    compile_program(jax.jit(lambda x: jnp.cos(x) @ jnp.sin(x)), jnp.ones((5, 5)))
    assert any(tmp_path.iterdir()), "the user's cache is no longer used"
  finally:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()


@pytest.mark.parametrize(
  ("kind", "peak"),
  [("NVIDIA H100 80GB HBM3", 989.4e12), ("TPU v5 lite", 197e12), ("TPU v5e", 197e12), ("cpu", None)],
)
def test_peak_of_known_and_unknown_devices(kind, peak):
  assert peak_flops(kind) == peak


def test_a_report_is_one_json_line_with_derived_figures(capsys, tmp_path, monkeypatch):
  monkeypatch.setitem(measure.PEAK_BF16, "cpu", 1e9)
  compilation = compile_program(jax.jit(jnp.matmul), jnp.ones((50, 50)), jnp.ones((50, 50)))
  out = tmp_path / "lines.jsonl"
  for dtype in ("bfloat16", "float32"):
    fields = {"batch": 8, "dtype": dtype, "shapes": {"classes": 3}, "extra": 1}
    timing = Timing((0.01, 0.02, 0.02), 2, 4)
    Measurement("train", "step", "iou-det", timing, compilation, devices=1, fields=fields).print(out)
  printed = capsys.readouterr().out
  assert printed == out.read_text()
  first, second = map(json.loads, printed.splitlines())
  assert first["images_per_second"] == pytest.approx(400)
  assert first["model_flops_per_second"] == pytest.approx(2 * 50**3 / 0.02)
  assert first["share_of_peak"] == pytest.approx(2 * 50**3 / 0.02 / 1e9)
  assert second["share_of_peak"] is None  # of another type of number
  assert (first["warmup"], first["repeats"], first["calls_per_repeat"]) == (2, 3, 4)
  assert first["hardware"]["cores"] == len(os.sched_getaffinity(0))
  assert first["hardware"]["devices"] == 1 and first["versions"]["jax"] == jax.__version__
  assert first["extra"] == 1 and first["shapes"] == {"classes": 3}
