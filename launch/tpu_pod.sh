#!/usr/bin/env bash
# Trains on a Cloud TPU slice: asks for it (queued resource), installs on all its workers, trains on all of them, and
# deletes it at the end, whether training failed or not, but keeps it where training refused its input (exit code 2).
# A preempted slice is asked for again, and training goes on.
#
# Usage: tpu_pod.sh [--dry_run] --name=NAME --zone=ZONE --type=TYPE --runtime=VERSION --bucket=BUCKET
#                   [--spot] [--keep] [--no_check] [--project=PROJECT] -- FLAGS
#   FLAGS go to `iou-det train`, which runs where ./bucket is the Cloud Storage bucket BUCKET:
#   tpu_pod.sh --name=iou-det --zone=us-west4-a --type=v5litepod-16 --runtime=v2-alpha-tpuv5-lite --spot \
#     --bucket=mine -- --config=configs/retinanet.py --config.data.path=bucket/coco --workdir=bucket/runs/coco
#   --runtime: v2-alpha-tpuv6e (v6e), v2-alpha-tpuv5 (v5p), v2-alpha-tpuv5-lite (v5e), tpu-ubuntu2204-base (v4).
#   --keep leaves the slice running, as Ctrl-C does; the same command goes on with it. Only what is committed is sent.
#   Before a slice is asked for, `iou-det train --check_only` checks FLAGS on that here (installing into .venv if there
#   is no iou-det); --no_check leaves it out, for what only the slice can read (finetune:init=bucket/...).
#
# Needs gcloud, logged in, on a machine that stays on. Compute Engine gives a spot VM 30 s to save.
# Tested: the commands, preemption and reruns, with a stub of gcloud. Not run: on a TPU.
set -euo pipefail
fail() {
  echo "tpu_pod.sh: $1" >&2
  exit 2
}

dry_run="" name="" zone="" type="" runtime="" bucket="" spot=() keep="" check=1 project=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --dry_run) dry_run=1 ;;
    --no_check) check="" ;;
    --name=* | --zone=* | --type=* | --runtime=* | --bucket=*)
      option=${1%%=*}
      declare "${option#--}=${1#*=}" ;;
    --project=*) project=("$1") ;;
    --spot) spot=(--spot) ;;
    --keep) keep=1 ;;
    *) fail "unknown option $1; known: --dry_run --spot --keep --no_check --{name,zone,type,runtime,bucket,project}=" ;;
  esac
  shift
done
for option in name zone type runtime bucket; do
  [ -n "${!option}" ] || fail "--$option=... is missing; see the head of this file for an example"
done
[ $# -gt 1 ] || fail "no flags for iou-det train; give them after --"
shift
[[ " $*" =~ \ --workdir=(bucket/|gs://) ]] || fail "--workdir must be under bucket/ or gs://: the slice's disks go with it"
cd "$(dirname "$0")/.."

run() {
  if [ -z "$dry_run" ]; then "$@"; else
    printf -v command ' %q' "$@"
    echo "${command:1}"
  fi
}
tpus() { run gcloud compute tpus "$@" --zone="$zone" "${project[@]}"; }
state() { tpus queued-resources list --filter="name~/$name\$" --format="value(state.state)"; }
delete() { tpus queued-resources delete "$name" --force --quiet; }
on_all() { tpus tpu-vm ssh "$name" --worker=all --command="$1"; }

get_slice() {
  local now
  now=$([ -n "$dry_run" ] || state)
  case $now in FAILED | SUSPENDING | SUSPENDED) delete; now="" ;; esac
  if [ -z "$now" ]; then
    tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
      --runtime-version="$runtime" "${spot[@]}"
  fi
  until [ -n "$dry_run" ] || [ "$now" = ACTIVE ]; do
    sleep "${TPU_POLL_SECONDS:-30}"
    now=$(state)
    [ "$now" != FAILED ] || fail "the request for $type failed; gcloud compute tpus queued-resources describe says why"
  done
  tpus tpu-vm scp build/iou_det.tar.gz "$name": --worker=all
  # The images have Python 3.10; uv brings its own. Orbax renames folders, which gcsfuse allows up to that many files.
  on_all "set -e; mkdir -p iou_det/bucket; cd iou_det; tar -xzf ../iou_det.tar.gz; python3 -m pip install --quiet uv
[ -e .venv ] || python3 -m uv venv --quiet --python=3.12 .venv
python3 -m uv pip install --quiet -c launch/constraints.txt -e '.[tpu,pretrained,fast-eval,gcs]'
command -v gcsfuse > /dev/null || { curl -sSLo /tmp/fuse.deb $gcsfuse; sudo apt-get install -qqy /tmp/fuse.deb; }
mountpoint -q bucket || gcsfuse --implicit-dirs --rename-dir-limit=100000 $bucket bucket"
}

printf -v flags ' %q' "$@"
gcsfuse=https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v2.2.0/gcsfuse_2.2.0_amd64.deb
run mkdir -p build
run git archive --format=tar.gz --output=build/iou_det.tar.gz HEAD
if [ -n "$check" ]; then
  if [ -x .venv/bin/iou-det ]; then PATH="$PWD/.venv/bin:$PATH"; fi
  # shellcheck source=launch/install.sh
  [ -n "$dry_run" ] || command -v iou-det > /dev/null || source launch/install.sh "[pretrained,fast-eval,gcs]"
  run rm -rf build/sent
  run mkdir build/sent
  run tar -xzf build/iou_det.tar.gz -C build/sent
  run env -C build/sent PYTHONPATH=. iou-det train --check_only "$@"
fi
while true; do
  get_slice
  # gcloud connects again where a connection broke: the lock has the second training wait for the end of the first.
  code=0
  on_all "cd iou_det && export JAX_COORDINATOR_PORT=8476 && flock .lock .venv/bin/iou-det train --distributed$flags" || code=$?
  [ "$code" != 0 ] || break
  if [ "$code" = 2 ]; then
    echo "tpu_pod.sh: training refused its input, see above; $name is kept: mend it and run the same command, or" \
      "gcloud compute tpus queued-resources delete $name --force --zone=$zone ${project[*]}" >&2
    exit 2
  fi
  sleep "${TPU_POLL_SECONDS:-120}"  # until a slice that was preempted is reported as such
  # 75: told to stop, and saved. 255: the connection broke. A worker that misses another one ends with other codes.
  case $code:$(state) in 75:* | 255:*) ;; *:ACTIVE) break ;; esac
  echo "tpu_pod.sh: training was interrupted (exit code $code); going on" >&2
done
[ -n "$keep" ] || delete
exit "$code"
