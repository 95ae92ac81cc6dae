"""What commands say: where letters cannot be shown, to readers that have left, with anything in names."""

import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from iou_det import streams
from iou_det.evaluation import coco
from tests.command import iou_det

NAME = "K\u00e4fer \u7ea2 \udcff \x1b[2J"  # also a byte that is not UTF-8, and what clears a terminal
SAY = f"""
import sys, warnings
from absl import logging
from tqdm import tqdm
from iou_det import cli, leaving, streams
streams.set_up()
cli.set_up_logging()
name = {NAME!a}
print("printed", name)
logging.warning("logged %s", name)
warnings.warn("warned " + name)
list(tqdm([1], desc="bar " + name[:9]))
cli.fail("say", "failed\\n" + name)
"""


@pytest.mark.parametrize(
  "encoding, environment",
  [
    ("ascii", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ("ascii", {"PYTHONIOENCODING": "ascii"}),
    ("latin-1", {"PYTHONIOENCODING": "latin-1:strict"}),
    ("utf-8", {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}),
  ],
)
def test_names_are_shown_as_far_as_the_terminal_can(encoding, environment):
  fresh = {k: v for k, v in os.environ.items() if k not in ("PYTHONUNBUFFERED", "PYTHONUTF8")}
  done = subprocess.run([sys.executable, "-c", SAY], env=fresh | environment, capture_output=True)
  out, errors = done.stdout.decode(encoding), done.stderr.decode(encoding)
  assert done.returncode == 2 and "Traceback" not in errors and "Error" not in errors
  as_shown = {
    "ascii": r"K\xe4fer \u7ea2 \udcff \x1b[2J",
    "latin-1": "K\u00e4fer \\u7ea2 \\udcff \\x1b[2J",
    "utf-8": "K\u00e4fer \u7ea2 \\udcff \\x1b[2J",
  }[encoding]
  assert out == f"printed {as_shown}\n"
  assert f"logged {as_shown}\n" in errors
  locale = (
    environment.get("LC_ALL") and " (names of files are taken as ascii in this locale; PYTHONUTF8=1 takes "
  )
  assert f"\niou-det say: failed {as_shown}{locale or ''}" in errors and errors.endswith("\n")
  assert as_shown.split(" \\x")[0].split(" \\udc")[0] in errors.split("bar ")[1]


def test_a_table_of_classes_keeps_its_columns():
  names = ["a", "\u7ea2\u7ec6\u80de", "e\u0301", "line\nbreak \x1b[31m"]
  figures = {name: 0.5 for name in coco.FIGURES} | {"AP_per_iou": {"0.50": 0.5}, "images": 1, "detections": 2}
  table = coco.table(figures | {"AP_per_class": dict.fromkeys(names, 0.25)})
  lines = table.split("AP of each class\n")[1].splitlines()[: len(names)]
  assert [streams.columns_of(line) for line in lines] == [len(r" line break \x1b[31m  0.250")] * 4
  assert "\x1b" not in table and lines[1].startswith(" \u7ea2\u7ec6\u80de ")


def closed_pipe():
  reader, writer = os.pipe()
  os.close(reader)
  return writer


def gone_terminal():
  master, terminal = os.openpty()
  os.close(master)
  return terminal


def test_what_nobody_reads_is_no_failure_but_a_full_disk_is():
  full = os.open("/dev/full", os.O_WRONLY)
  for number, error in ((closed_pipe(), None), (gone_terminal(), None), (full, errno.ENOSPC)):
    stream = streams.Steady(number)
    assert [stream.write(b"abc"), stream.write(b"de")] == [3, 2]
    assert (stream.failure and stream.failure.errno) == error
    os.close(number)


def test_a_pipe_that_does_not_wait_gets_all():
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  got = bytearray()

  def read():
    while piece := os.read(reader, 2**14):
      time.sleep(0.001)
      got.extend(piece)

  thread = threading.Thread(target=read)
  thread.start()
  sent = os.urandom(2**20)
  assert streams.Steady(writer).write(sent) == len(sent)
  os.close(writer)
  thread.join()
  os.close(reader)
  assert got == sent


# Where stdout and stderr (a file otherwise, so that it can be read) lead to.
READER_LEFT = "import os; r, w = os.pipe(); os.dup2(w, 1); os.close(r); os.close(w)"
TERMINAL_GONE = "import os; m, t = os.openpty(); [os.dup2(t, n) for n in (0, 1, 2)]; os.close(m); os.close(t)"
CLOSED = (
  "import os, sys; os.closerange(0, 3); sys.stdout = sys.__stdout__ = sys.stderr = sys.__stderr__ = None"
)
FULL = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"


@pytest.mark.parametrize(
  "before, code",
  [
    (READER_LEFT, 0),
    (TERMINAL_GONE, 0),
    (CLOSED, 0),
    (FULL, 2),
  ],
  ids=["reader left", "terminal gone", "closed", "disk full"],
)
def test_no_work_is_lost_where_nobody_listens(reference, before, code):
  workdir, metrics = reference
  folder = workdir / "eval" / "val"
  written = [folder / "metrics.json", folder / "detections.json"]
  for path in written:
    path.unlink()
  done = iou_det("eval", f"--workdir={workdir}", before=before)
  assert done.returncode == code, done.stderr
  figures, detections = (json.loads(path.read_text()) for path in written)
  assert figures["AP"] == pytest.approx(metrics["AP"], abs=1e-6)
  assert len(detections) == figures["detections"]
  assert not done.stdout
  for word in ("Traceback", "Exception ignored", "make room", "Broken pipe"):
    assert word not in done.stderr
  if before == FULL:
    last = "iou-det eval: all is done and written, but what it prints is lost (No space left on device)"
    assert done.stderr.splitlines()[-1] == last


def test_an_error_stays_one_line_whatever_is_in_a_name(tmp_path):
  done = iou_det("eval", f"--workdir={tmp_path}/no\nsuch\x1b[2J\r\u202e\u2028run")
  assert done.returncode == 2
  assert len(done.stderr.splitlines()) == 1
  assert r"such\x1b[2J" in done.stderr and r"\u202e" in done.stderr and "\x1b" not in done.stderr
