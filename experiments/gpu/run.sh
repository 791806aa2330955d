#!/usr/bin/env bash
# bash experiments/gpu/run.sh OUT SECONDS [--small] [--again STAGE ...]
# What it does, and what must be made before: README.md beside it.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONUNBUFFERED=1
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
exec "${PYTHON:-python3}" -m experiments.gpu.stages "$@"
