#!/usr/bin/env bash
# Installs into .venv, then lint (ruff, import-linter), types (mypy) and the tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
SECONDS=0
source launch/install.sh "[test]"
# For the export to ONNX: what jax2onnx imports, without what it would take back to an older orbax-checkpoint.
python -m pip install --quiet --disable-pip-version-check --no-deps \
  -c launch/constraints.txt jax2onnx onnx onnxruntime onnx-ir sympy mpmath
# XLA's compilers for TPUs and GPUs that are not here: in a folder of their own, see tests/compilers.py.
compilers=.venv/aot-$(python -c "import jaxlib; print(jaxlib.__version__)")
if [ ! -d "$compilers" ]; then
  rm -rf .venv/aot*
  if python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/aot.part \
    -c launch/constraints.txt libtpu jax-cuda12-plugin jax-cuda12-pjrt; then
    mv .venv/aot.part "$compilers"
  else
    echo "no compilers for absent chips could be installed: their tests are left out" >&2
  fi
fi
# Where the tests run on a machine of their own: the browser that they drive. Without one they leave these out.
if [ -n "${CI:-}" ] && [ "$EUID" = 0 ] && [ -n "$(type -P apt-get)" ] &&
  [ -z "${IOU_DET_CHROMIUM:-}$(type -P chromium chromium-browser google-chrome)" ]; then
  echo "== apt-get install chromium, for the tests of the report's page (${SECONDS} s)"
  { apt-get update && apt-get install --yes --no-install-recommends chromium; } > /dev/null ||
    echo "no chromium could be installed" >&2
fi
echo "== ruff (${SECONDS} s)"
ruff check .
ruff format --check .
lint-imports
echo "== mypy (${SECONDS} s)"
mypy
echo "== pytest (${SECONDS} s)"
python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder "$@"
echo "== done in ${SECONDS} s"
