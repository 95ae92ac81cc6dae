#!/usr/bin/env bash
# Writes launch/constraints.txt anew: the newest releases that are allowed and go together, the same on all of Python
# 3.11 and newer. Needs uv (pip install uv). Then: bash launch/test.sh, which runs with them.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=(--extra={test,tpu,aot-gpu,aot-tpu,cuda12,cuda13,pretrained,fast-eval,gcs,heif,onnx,video,wandb,mlflow})
# jax2onnx asks for an older orbax-checkpoint than it needs, see pyproject.toml.
uv pip compile pyproject.toml "${extras[@]}" --universal --python-version=3.11 --fork-strategy=fewest --upgrade \
  --no-annotate --overrides=<(echo orbax-checkpoint) --output-file=launch/constraints.txt --quiet \
  --custom-compile-command="bash launch/constraints.sh  (the releases that the tests run with)"
