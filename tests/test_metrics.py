"""metrics.jsonl: what is damaged is seen, and how often it is written."""

import json
import random
import types
import zlib

import psutil
import pytest

from iou_det.storage import on_object_store
from iou_det.workdir.metrics import MetricsLog, read_metrics

ROWS = [
  {"step": step, "loss": 1 / step, "val/AP": float("nan") if step == 2 else 0.5} for step in range(1, 6)
]


@pytest.fixture
def workdir(tmp_path):
  log = MetricsLog(tmp_path, 0)
  for row in ROWS:
    log.write(row["step"], {name: value for name, value in row.items() if name != "step"})
  log.close()
  return tmp_path


def same(rows, expected):
  return json.dumps(rows) == json.dumps(expected)  # where NaN is NaN


def test_rows_come_back_and_carry_a_checksum_of_the_rest(workdir):
  path = workdir / "metrics.jsonl"
  assert same(read_metrics(path), ROWS) and same(read_metrics(path, 3), ROWS[:3])
  for line, row in zip(path.read_text().splitlines(), ROWS, strict=True):
    *rest, (name, value) = json.loads(line).items()
    assert (name, value) == ("crc32", f"{zlib.crc32(json.dumps(dict(rest)).encode()):08x}")
    assert same(dict(rest), row)


def test_a_line_that_a_kill_cut_short_is_dropped_without_a_word(workdir, caplog):
  path = workdir / "metrics.jsonl"
  whole = path.read_bytes()
  begin = whole.rstrip(b"\n").rindex(b"\n") + 1
  for end in range(begin, len(whole) - 1):
    path.write_bytes(whole[:end])
    assert same(read_metrics(path), ROWS[:-1])
  path.write_bytes(whole[:-1])  # all but the line's end
  assert same(read_metrics(path), ROWS)
  assert not caplog.records


def test_no_flipped_bit_gives_a_wrong_row_and_each_damaged_line_is_told(workdir, caplog):
  path = workdir / "metrics.jsonl"
  whole, chance = path.read_bytes(), random.Random(0)
  known = [json.dumps(row) for row in ROWS]
  silent = 0
  for place in range(len(whole) - 1):
    damaged = bytearray(whole)
    damaged[place] ^= 1 << chance.randrange(8)
    path.write_bytes(damaged)
    caplog.clear()
    rows = [json.dumps(row) for row in read_metrics(path)]
    assert set(rows) <= set(known)
    assert rows == [row for row in known if row in rows]  # in order, none twice
    assert ("damaged of" in caplog.text) == (rows != known)
    silent += rows == known
  assert not silent


def test_a_damaged_line_in_the_middle_does_not_end_the_reading(tmp_path, caplog):
  lines = [json.dumps(row) for row in ROWS]  # as before there were checksums
  lines[1] = lines[1][:-9]
  (tmp_path / "metrics.jsonl").write_text("".join(line + "\n" for line in [*lines, "[]", '{"loss": 1.0}']))
  assert same(read_metrics(tmp_path / "metrics.jsonl"), [ROWS[0], *ROWS[2:]])
  assert "metrics.jsonl has 3 damaged of 7 lines (the first is line 2)" in caplog.text


@pytest.mark.parametrize("kind", ["ext4", "fuse.fuse-overlayfs", "fuse.gcsfuse", "fuse.rclone", "fuse"])
def test_where_a_change_uploads_the_file_it_is_written_at_checkpoints(kind, tmp_path, monkeypatch):
  mount = tmp_path / "a b"
  (mount / "run").mkdir(parents=True)
  point = lambda path, kind: types.SimpleNamespace(mountpoint=str(path), fstype=kind)
  other = tmp_path / "a"  # a name that the other one begins with
  mounts = [point("/", "overlay"), point(mount, kind), point(other, "fuse.sshfs")]
  monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
  local = kind in ("ext4", "fuse.fuse-overlayfs")
  assert on_object_store(mount / "run") != local
  assert not on_object_store(tmp_path / "elsewhere")
  path, events = mount / "run" / "metrics.jsonl", mount / "run" / "tensorboard"
  log = MetricsLog(mount / "run", 0)
  log.write(1, {"loss": 1.0})
  assert [row["step"] for row in read_metrics(path)] == ([1] if local else [])
  assert events.exists() == local
  log.flush()
  log.write(2, {"loss": 2.0})
  assert [row["step"] for row in read_metrics(path)] == ([1, 2] if local else [1])
  (event,) = events.iterdir()
  before = event.stat().st_size
  log.close()
  assert [row["step"] for row in read_metrics(path)] == [1, 2]
  (event,) = events.iterdir()
  assert event.stat().st_size > before or local


def test_rows_that_are_missing_are_told(tmp_path, caplog):
  with caplog.at_level("WARNING", "absl"):
    log = MetricsLog(tmp_path, 0)
    log.write(3, {"loss": 1.0})
    log.close()
    MetricsLog(tmp_path, 3).close()
    assert not caplog.records
    (tmp_path / "metrics.jsonl").unlink()
    MetricsLog(tmp_path, 3).close()
  assert "metrics.jsonl lacks rows before step 3" in caplog.text
