#!/usr/bin/env bash
# Trains on all GPUs of one machine, or of several machines without a scheduler (start it on each of them).
#
# On one machine `iou-det train` uses every GPU from one process, and so does this. It adds XLA's latency-hiding
# scheduler, JAX's variables for several processes, and a rerun after exit code 75 (a process was told to stop, and
# all saved): if the signal came to this script (SIGTERM or Ctrl-C), it is passed on and the script ends with 75 too;
# if it came to another machine, this one starts again and waits 5 minutes (JAX's limit) for it to come back.
#
# Usage: multi_gpu.sh [--dry_run] [--nodes=N --node=I --coordinator=HOST:PORT] [--processes=P] -- FLAGS
#   FLAGS go to `iou-det train`; with several machines, --workdir and the data must be folders that all of them see.
#   --coordinator is machine 0, with a free port. --processes=P: P processes a machine, process p on GPU p.
#   multi_gpu.sh -- --config=configs/retinanet.py --config.data.path=coco --workdir=runs/coco
#   multi_gpu.sh --nodes=2 --node=0 --coordinator=10.0.0.1:8476 -- --config=... --workdir=/nfs/coco  (then --node=1)
#
# Install: pip install -c launch/constraints.txt -e '.[cuda12,pretrained,fast-eval]'
# `iou-det train --check_only FLAGS` checks the flags on a machine without GPUs.
#
# Tested: on a CPU, one process trained and two formed a JAX group; signals and reruns with a stub in place of iou-det.
# Not run: on several GPUs, on several machines.
set -euo pipefail
fail() {
  echo "multi_gpu.sh: $1" >&2
  exit 2
}

dry_run="" nodes=1 node=0 coordinator="" processes=1
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --dry_run) dry_run=1 ;;
    --nodes=*) nodes=${1#*=} ;;
    --node=*) node=${1#*=} ;;
    --coordinator=*) coordinator=${1#*=} ;;
    --processes=*) processes=${1#*=} ;;
    *) fail "unknown option $1; known: --dry_run --{nodes,node,coordinator,processes}=; train's flags go after --" ;;
  esac
  shift
done
[ $# -gt 1 ] || fail "no flags for iou-det train; give them after --"
shift
for number in "$nodes" "$node" "$processes"; do
  [[ $number =~ ^(0|[1-9][0-9]*)$ ]] || fail "not a whole number: '$number'"
done
((nodes > 0 && processes > 0)) || fail "--nodes=$nodes --processes=$processes: both must be 1 or more"
((node < nodes)) || fail "--node=$node with --nodes=$nodes; machines are counted from 0 to $((nodes - 1))"
((nodes == 1)) || [ -n "$coordinator" ] || fail "--nodes=$nodes needs --coordinator=HOST:PORT of machine 0"
[ -n "$dry_run" ] || command -v iou-det > /dev/null || fail "no iou-det on PATH; activate the environment that has it"

export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true${XLA_FLAGS:+ $XLA_FLAGS}"
start() {  # process number P of this machine
  local command=(env)
  if ((nodes * processes > 1)); then
    command+=(JAX_COORDINATOR_ADDRESS="${coordinator:-127.0.0.1:8476}" JAX_NUM_PROCESSES=$((nodes * processes)))
    command+=(JAX_PROCESS_ID=$((node * processes + $1)))
    if ((processes > 1)); then command+=(JAX_LOCAL_DEVICE_IDS="$1"); fi
    command+=(iou-det train --distributed "${@:2}")
  else
    command+=(iou-det train "${@:2}")
  fi
  if [ -z "$dry_run" ]; then exec "${command[@]}"; fi
  printf -v command ' %q' "${command[@]}"
  echo "${command:1}"
}

if [ -n "$dry_run" ]; then
  echo "XLA_FLAGS=$XLA_FLAGS"
  for ((p = 0; p < processes; p++)); do start "$p" "$@"; done
  exit
fi
stopped="" children=() again=""
trap 'stopped=1 again=1; kill -TERM "${children[@]}" 2> /dev/null || true' TERM INT  # some may have ended
while [ -z "$stopped" ]; do
  children=() code=0
  for ((p = 0; p < processes; p++)); do
    start "$p" "$@" &
    children+=($!)
  done
  if [ -n "$stopped" ]; then kill -TERM "${children[@]}"; fi  # told to stop while they were started
  # If one of several fails, JAX ends the others when they miss it; all of them are waited for.
  for child in "${children[@]}"; do
    again=1
    while [ -n "$again" ]; do  # a signal interrupts `wait`
      again="" status=0
      wait "$child" || status=$?
    done
    case $status in 0) ;; 75) [ "$code" != 0 ] || code=75 ;; *) code=$status ;; esac
  done
  [ "$code" = 75 ] || exit "$code"
  [ -n "$stopped" ] || echo "multi_gpu.sh: training was told to stop, and saved; starting again" >&2
done
exit "$code"
