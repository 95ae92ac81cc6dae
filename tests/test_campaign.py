"""The short form of the fault campaign: `python -m tests.campaign --out=DIR` is the whole."""

import json
import subprocess
import sys

import pytest

from tests.campaign import KINDS


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
  out = tmp_path_factory.mktemp("campaign") / "out"
  command = [sys.executable, "-m", "tests.campaign", f"--out={out}", "--short"]
  done = subprocess.run(command, capture_output=True, text=True)
  lost = out / "lost.md"
  return out, f"{done.stdout}\n{done.stderr}\n{lost.read_text() if lost.exists() else ''}"


@pytest.mark.parametrize(
  "kind", ["kill", "sigterm", pytest.param("full_disk", marks=pytest.mark.tmpfs), "files"]
)
def test_nothing_is_lost(campaign, kind):
  out, text = campaign
  path = out / f"{kind}.json"
  assert path.exists(), text
  outcome = json.loads(path.read_text())
  assert outcome["tried"] == KINDS[kind].short and not outcome["lost"], text
