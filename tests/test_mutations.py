"""The short form of mutated files: `python -m tests.mutations --out=DIR` is the whole."""

import json
import subprocess
import sys

import pytest

from tests.mutations.__main__ import KINDS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  out = tmp_path_factory.mktemp("mutations") / "out"
  command = [sys.executable, "-m", "tests.mutations", f"--out={out}", "--short"]
  done = subprocess.run(command, capture_output=True, text=True)
  cases = [json.loads(line) for path in out.glob("cases-*.jsonl") for line in path.read_text().splitlines()]
  return cases, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("kind", KINDS)
def test_taken_and_right_or_refused_in_a_line(run, kind):
  cases, text = run
  ours = [case for case in cases if case[0] == kind]
  assert len(ours) == KINDS[kind].short, text
  assert not any(faults for _, _, _, _, _, faults, *_ in ours), text
