#!/usr/bin/env bash
# Fetch the pure-Python wheels that a machine without a network may lack, into runs/gpu/wheels (3 MB).
# `stages.py` installs those that are missing there or too old. Names and versions: WHEELS of that file.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python3}"
mkdir -p runs/gpu/wheels
"$python" -m experiments.gpu.stages --list-wheels | xargs "$python" -m pip download -q --no-deps \
  --only-binary=:all: --python-version 3.12 --implementation py --abi none --platform any -d runs/gpu/wheels
ls -l runs/gpu/wheels
