#!/usr/bin/env bash
# Makes .venv with this project in it, at the releases of constraints.txt: source launch/install.sh [EXTRAS]
# PYTHON names another interpreter; Python 3.11 or newer is needed.
python=""
for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
  if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "Python 3.11 or newer is needed (found: $(python3 --version 2>&1)); name it with PYTHON=..." >&2
  exit 2
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
echo "installing iou-det${1:-} into .venv (about a minute)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e ".${1:-}"
PATH="$PWD/.venv/bin:$PATH"
