#!/usr/bin/env bash
# Installs into .venv, then lint (ruff, import-linter), types (mypy) and the tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
SECONDS=0
source launch/install.sh "[test]"
# For the export to ONNX: what jax2onnx imports, without what it would take back to an older orbax-checkpoint.
python -m pip install --quiet --disable-pip-version-check --no-deps \
  -c launch/constraints.txt jax2onnx onnx onnxruntime onnx-ir sympy mpmath
echo "== ruff (${SECONDS} s)"
ruff check .
ruff format --check .
lint-imports
echo "== mypy (${SECONDS} s)"
mypy
echo "== pytest (${SECONDS} s)"
python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder "$@"
echo "== done in ${SECONDS} s"
