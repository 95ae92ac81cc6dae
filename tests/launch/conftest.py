"""Stubs in place of the tools that launchers call, and of iou-det."""

import os

import pytest

# Every stub writes down what it was called with, then ends with the next code of its queue.
STUB = """#!/usr/bin/env bash
name=${0##*/}
exec 9> "$STUBS/lock"; flock 9
{ printf '%s\\0' "$name" "$@"; printf '\\n\\0'; } >> "$STUBS/calls"
take() { head -n1 "$STUBS/$1" 2> /dev/null; [ ! -e "$STUBS/$1" ] || sed -i 1d "$STUBS/$1"; }
"""
STUBS = {
  "iou-det": """env | grep -E '^(JAX|XLA)_' | sort | tr '\\n' ' ' >> "$STUBS/env"; echo >> "$STUBS/env"
case "$*" in *--check_only*) exit "$(take checks | grep . || echo 0)" ;; esac
code=$(take codes); flock -u 9; exec 9>&-
if [ "$code" = wait ]; then trap 'exit 75' TERM; while :; do sleep 0.05; done; fi
exit "${code:-0}" """,
  "srun": 'flock -u 9; while [[ $1 == --* ]]; do shift; done; "$@"',
  "scontrol": "",
  "xpk": "",
  "gcloud": """case "$*" in *" list "*) take states ;; *"iou-det train"*) exit "$(take codes)" ;; esac""",
}


@pytest.fixture
def stubs(tmp_path, monkeypatch):
  """A folder with the stubs, on PATH."""
  for name, body in STUBS.items():
    (tmp_path / name).write_text(STUB + body)
    (tmp_path / name).chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  monkeypatch.setenv("STUBS", str(tmp_path))
  monkeypatch.setenv("TPU_POLL_SECONDS", "0")
  monkeypatch.delenv("XLA_FLAGS")
  monkeypatch.delenv("SLURM_JOB_ID", raising=False)
  return tmp_path
