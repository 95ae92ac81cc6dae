#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster by xpk (pip install xpk; tested with its version 1.16.0). Kubernetes starts
# the workload again after exit code 75 (told to stop, and saved), a lost node or a death by a signal, but not after
# an error (exit code 1 or 2).
#
# Usage: xpk.sh [--dry_run] --name=NAME --cluster=CLUSTER --type=TPU_TYPE --storage=STORAGE [--slices=N]
#               [--max_restarts=N] [--no_check] [--project=PROJECT] [--zone=ZONE] -- FLAGS
#   FLAGS go to `iou-det train`; --workdir and the data must be in the storage, a bucket that is attached once:
#   xpk storage attach coco-bucket --cluster=CLUSTER --type=gcsfuse --bucket=BUCKET --mount-point=/bucket \
#     --readonly=false --auto-mount=false --size=1000 --mount-options=implicit-dirs,rename-dir-limit=100000
#   xpk.sh --name=iou-det --cluster=CLUSTER --type=v5litepod-16 --storage=coco-bucket -- \
#     --config=configs/retinanet.py --config.data.path=/bucket/coco --workdir=/bucket/runs/coco
#   The cluster: xpk cluster create --enable-gcsfuse-csi-driver; with --spot, nodes that get at most 30 s to save.
#   The tracked files, as they are staged, are built into an image: that needs docker. Before that `iou-det train
#   --check_only` checks FLAGS on them here (installing into .venv if there is no iou-det); --no_check leaves it out,
#   for what only the cluster can read, as the detector of finetune:init=/bucket/...
#
# Tested: the options against xpk's own parser; its dry run's manifest (code 75 is among those that restart).
# Not run: on a cluster.
set -euo pipefail
fail() {
  echo "xpk.sh: $1" >&2
  exit 2
}

dry_run="" name="" cluster="" type="" storage="" slices=1 max_restarts=20 check=1 place=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --dry_run) dry_run=1 ;;
    --no_check) check="" ;;
    --name=* | --cluster=* | --type=* | --storage=* | --slices=* | --max_restarts=*)
      option=${1%%=*}
      declare "${option#--}=${1#*=}" ;;
    --project=* | --zone=*) place+=("$1") ;;
    *) fail "unknown option $1; known: --dry_run --no_check --{name,cluster,type,storage,slices,max_restarts,project,zone}=" ;;
  esac
  shift
done
for option in name cluster type storage; do
  [ -n "${!option}" ] || fail "--$option=... is missing; see the head of this file for an example"
done
[ $# -gt 1 ] || fail "no flags for iou-det train; give them after --"
shift
[[ " $*" =~ \ --workdir=(/|gs://) ]] || fail "--workdir must be in the storage, /... or gs://: a pod's disk goes with it"
cd "$(dirname "$0")/.."

run() {
  if [ -z "$dry_run" ]; then "$@"; else
    printf -v command ' %q' "$@"
    echo "${command:1}"
  fi
}
printf -v flags ' %q' "$@"
run rm -rf build/xpk
run git checkout-index --all --prefix=build/xpk/
if [ -n "$check" ]; then
  if [ -x .venv/bin/iou-det ]; then PATH="$PWD/.venv/bin:$PATH"; fi
  # shellcheck source=launch/install.sh
  [ -n "$dry_run" ] || command -v iou-det > /dev/null || source launch/install.sh "[pretrained,fast-eval,gcs]"
  run env -C build/xpk PYTHONPATH=. iou-det train --check_only "$@"
fi
# exec: xpk sends SIGTERM to the shell that runs the command, and a shell need not pass it on.
run xpk workload create --workload="$name" --cluster="$cluster" --tpu-type="$type" --num-slices="$slices" \
  --base-docker-image=python:3.12 --script-dir=build/xpk --storage="$storage" "${place[@]}" \
  --max-restarts="$max_restarts" --restart-on-exit-codes=75 --termination-grace-period-seconds=90 \
  --command="export JAX_COORDINATOR_PORT=8476 && \
pip install --quiet -c launch/constraints.txt -e '.[tpu,pretrained,fast-eval,gcs]' && exec iou-det train --distributed$flags"
echo "when it is done: xpk workload delete --workload=$name --cluster=$cluster ${place[*]}"
