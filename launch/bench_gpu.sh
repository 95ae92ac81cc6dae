#!/usr/bin/env bash
# Measures training, detection, scoring and (with a COCO folder) the input pipeline on one GPU, beside torchvision
# where it is installed; writes OUT/bench.jsonl and OUT/bench.md. Needs an installed iou-det (pip install
# -c launch/constraints.txt -e '.[cuda12,fast-eval]'). What has not begun after 6 1/2 minutes is left out, and listed.
# Usage: bench_gpu.sh [--toy] [OUT=runs/bench] [COCO_FOLDER]
# --toy runs all of it on a CPU at toy size in one or two minutes, to see that it works; its figures mean nothing.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
toy=""
if [ "${1:-}" = --toy ]; then
  toy=1
  shift
fi
if [ $# -gt 2 ] || [[ "${1:-}" == -* ]]; then
  echo "usage: bench_gpu.sh [--toy] [OUT=runs/bench] [COCO_FOLDER]" >&2
  exit 2
fi
out=${1:-runs/bench}
coco=${2:-}
if [ -x .venv/bin/python ]; then PATH="$PWD/.venv/bin:$PATH"; fi
mkdir -p "$out" || exit 2
lines=$out/bench.jsonl
if [ -e "$lines" ]; then
  echo "bench_gpu.sh: $lines is there already; move it away or give another folder" >&2
  exit 2
fi

small=() # what makes a network small
sizes=(--repeats=10 --batch_size=16)
eval=(--repeats=5)
input=(--repeats=3 "--config.data.path=$coco")
if [ "$toy" ]; then
  export JAX_PLATFORMS=cpu
  small=(--config.model.depth=18 --config.data.short=64 --config.data.long=96 "--config.data.canvas=(64,96)")
  small+=(--classes=3 --boxes=3)
  sizes=(--repeats=2 --batch_size=2)
  eval=(--repeats=2 --images=50 --detections=2000)
  input=(--repeats=1 --images=32 --batch_size=8 --config.data.path=shapes --config.data.train_split=train)
  input+=("--config.data.canvas=(128,160)" --config.data.short=128 --config.data.long=160)
fi
against=()
if python -c "import torch, torchvision" 2>/dev/null; then
  against=(--against=torchvision)
else
  echo "bench_gpu.sh: torch and torchvision are not installed: no comparison with them" >&2
fi

SECONDS=0
failed=()
left_out=()
bench() {
  if [ "$SECONDS" -gt 390 ]; then
    left_out+=("iou-det bench $*")
    return
  fi
  echo "== ${SECONDS} s: iou-det bench $*" >&2
  iou-det bench "$@" "--out=$lines" || failed+=("iou-det bench $*")
}

r50=--config=configs/retinanet.py:short=800
r101=--config=configs/retinanet.py:short=800,backbone=r101
bench train "$r50" "${small[@]}" "${sizes[@]}" --orientations "${against[@]}"
bench predict "$r50" "${small[@]}" "${sizes[@]}" "${against[@]}"
if [ -n "$coco$toy" ]; then bench input "$r50" "${input[@]}"; fi
if [ ! "$toy" ]; then # at toy size these would be the first run again
  bench train "$r50" "${sizes[@]}" --batch_size=32
  bench train "$r101" "${sizes[@]}"
  bench train "$r50" --config.data.long=800 "${sizes[@]}"
fi
bench eval "${eval[@]}"
bench train "$r50" "${small[@]}" "${sizes[@]}" --pieces

if [ -e "$lines" ]; then
  python -m iou_det.bench.table "$lines" > "$out/bench.md" || failed+=("the table")
  cat "$out/bench.md"
fi
echo "== ${SECONDS} s; wrote $lines and $out/bench.md" >&2
for command in "${left_out[@]}"; do echo "left out for time: $command" >&2; done
for command in "${failed[@]}"; do echo "failed: $command" >&2; done
[ "${#failed[@]}" = 0 ]
