"""What is said of the machine, where it can be made to be something."""

import re
import tomllib
from pathlib import Path

import psutil
import pytest

from iou_det import machine


def test_devices_that_do_not_answer_are_an_error():
  (only,) = machine.ask_devices(seconds=0.01).findings
  assert (
    only.level == "error"
    and "did not answer in 0.01 seconds" in only.what
    and "JAX_PLATFORMS=cpu" in only.todo
  )


def test_devices_that_cannot_be_had_are_an_error(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "no_such_platform")
  found = machine.ask_devices()
  assert found.number == 0 and found.findings[0].level == "error"
  assert (
    found.findings[0].what.startswith("JAX finds no devices: ")
    and "no_such_platform" in found.findings[0].what
  )


@pytest.mark.parametrize(
  ("files", "memory", "available"),
  [
    (
      {"memory.max": "1000000", "memory.current": "300000", "memory.stat": "anon 5\ninactive_file 200000"},
      10**6, 9 * 10**5,
    ),
    ({"memory.limit_in_bytes": "1000000", "memory.usage_in_bytes": "300000"}, 10**6, 7 * 10**5),
    ({"memory.max": "max"}, None, None),
  ],
)  # fmt: skip
def test_memory_is_what_the_control_group_gives(tmp_path, monkeypatch, files, memory, available):
  for name, content in files.items():
    (tmp_path / name).write_text(content)
  monkeypatch.setattr(machine, "control_groups", lambda controller: [tmp_path])
  found = machine.limits()
  assert found.memory == (memory or psutil.virtual_memory().total)
  assert available is None or found.available == available


@pytest.mark.parametrize(
  "files",
  [{"cpu.max": "50000 100000"}, {"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"}],
)
def test_cores_are_what_the_control_group_gives(tmp_path, monkeypatch, files):
  for name, content in files.items():
    (tmp_path / name).write_text(content)
  monkeypatch.setattr(machine, "control_groups", lambda controller: [tmp_path])
  found = machine.limits()
  assert found.share == 0.5
  (few,) = machine.few_cores(found)
  assert "gets the time of 0.5" in few.what and few.todo.startswith("--config.data.threads=3 ")


def test_every_extra_is_looked_for():
  text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
  extras = tomllib.loads(text)["project"]["optional-dependencies"]
  assert set(extras) - {"test"} <= set(machine.EXTRAS)
  assert re.match(r"python \d", dict(machine.installed())["versions"])
