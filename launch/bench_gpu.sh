#!/usr/bin/env bash
# Measures training, prediction, scoring (and input, if given images) on this machine's GPU; where torch and
# torchvision are installed, theirs beside ours. Writes DIR/bench.jsonl and DIR/bench.md.
# Usage: bench_gpu.sh [--toy] [DIR=runs/bench] [COCO_FOLDER]      --toy: tiny sizes, to see that all of it runs
# Run for real so far: --toy on a CPU. On a GPU: not yet.
set -euo pipefail
toy=""
if [ "${1:-}" = --toy ]; then
  toy=1
  shift
fi
case "${1:-}" in -*) echo "usage: bench_gpu.sh [--toy] [DIR] [COCO_FOLDER]" >&2; exit 2 ;; esac
out=${1:-runs/bench}
images=${2:-}
mkdir -p "$out"
lines=$out/bench.jsonl
rm -f "$lines"
against=""
if python3 -c "import torch, torchvision" 2>/dev/null; then against=--against=torchvision; else
  echo "torch and torchvision are not installed: no comparison" >&2
fi
bench() {
  echo "== bench $* (${SECONDS} s)" >&2
  iou-det bench "$@" --out="$lines" >/dev/null
}
config=configs/retinanet.py
if [ -n "$toy" ]; then
  sizes="--config.model.width=8 --config.model.fpn_channels=8 --config.model.head_convs=1 --config.model.max_level=5
    --config.data.short=64 --config.data.long=96 --config.data.canvas=(64,96) --repeats=2"
  # shellcheck disable=SC2086  # several flags
  {
    bench train --config=$config $sizes --batch_size=2 --classes=3 $against
    bench predict --config=$config $sizes --batch_size=2 --classes=3 $against
    bench eval --images=50 --detections=1000 --classes=3
  }
else
  # shellcheck disable=SC2086  # empty without torchvision
  {
    bench train --config=$config:short=800 $against
    bench train --config=$config:short=800 --batch_size=32 --nopieces
    bench train --config=$config:backbone=r101,short=800 --nopieces
    bench train --config=$config:short=800 --nopieces --config.data.long=800
    bench train --config=$config:short=800,eta=0,lambd=0 --nopieces # what IoU balancing costs
    bench predict --config=$config:short=800 $against
    bench eval
  }
fi
if [ -n "$images" ]; then
  bench input --config=$config --config.data.path="$images" --repeats=5
fi
python3 -m iou_det.bench.table "$lines" > "$out/bench.md"
echo "wrote $lines and $out/bench.md (${SECONDS} s)"
cat "$out/bench.md"
