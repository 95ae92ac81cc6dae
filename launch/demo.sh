#!/usr/bin/env bash
# From nothing to boxes: installs into .venv, trains on the embedded shapes data (no download), prints the
# COCO table of held-out shapes, draws predictions and writes a report page. Usage: demo.sh [WORKDIR=runs/demo]
set -euo pipefail
cd "$(dirname "$0")/.."
workdir=${1:-runs/demo}
if [[ $workdir == -* ]]; then
  echo "demo.sh takes no flags, only a folder for the run (got $workdir): demo.sh runs/demo" >&2
  exit 2
fi
SECONDS=0
source launch/install.sh "[fast-eval]"
echo "training on shapes (installed after ${SECONDS} s)"
iou-det train --config=configs/shapes.py --workdir="$workdir"
iou-det predict --workdir="$workdir" --split=val --limit=12 --score=0.5 --out="$workdir/pictures"
iou-det report --workdirs="$workdir" --out="$workdir/report"
echo "done in ${SECONDS} s; pictures: $workdir/pictures, report: $workdir/report/index.html"
