#!/usr/bin/env bash
# Gets DeepPCB (github.com/tangsanli5201/DeepPCB; its authors ask for research use) as a COCO-format folder.
# DEEPPCB_REPOSITORY names a mirror or a local clone instead.
# Usage: get_deeppcb.sh DEST    Expected: train 1000 images, 6873 boxes; test 500 images, 3140 boxes.
set -euo pipefail
if [ $# -ne 1 ]; then
  echo "usage: get_deeppcb.sh DEST" >&2
  exit 2
fi
if [ -e "$1" ]; then
  echo "get_deeppcb.sh: $1 exists already; give another folder" >&2
  exit 2
fi
python=python3
if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
if ! "$python" -c "import iou_det" 2>/dev/null; then
  echo "get_deeppcb.sh: $python has no iou_det; install it first, or activate its environment" >&2
  exit 2
fi
clone=$(mktemp -d)
trap 'rm -rf "$clone"' EXIT
git clone --depth 1 "${DEEPPCB_REPOSITORY:-https://github.com/tangsanli5201/DeepPCB}" "$clone/DeepPCB"
mkdir -p "$(dirname "$1")"
"$python" "$(dirname "$0")/deeppcb.py" "$clone/DeepPCB" "$1"
