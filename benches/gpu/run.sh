#!/usr/bin/env bash
# The tests and benchmarks that need a GPU, in one go: no network, bundled weights, under ten minutes.
#
#   benches/gpu/run.sh [--small] [OUT]
#
# OUT (default benches/results) gets one JSON file a benchmark. --small runs the same on the CPU, in about a minute,
# to check the script itself. Needs hsd importable by $PYTHON (default python3): an installed wheel, or PYTHONPATH.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
device=cuda prompts=120 steps=40 batch=64
if [ "${1:-}" = --small ]; then
    device=cpu prompts=8 steps=4 batch=4
    shift
fi
out=${1:-$root/benches/results}
mkdir -p "$out"

if [ "$device" = cuda ]; then
    nvidia-smi --query-gpu=name,driver_version,power.limit --format=csv,noheader
    "$python" -m pytest -q -m gpu "$root/tests"
else
    "$python" -m pytest -q -m gpu --collect-only "$root/tests" | tail -n 1
fi
"$python" "$root/benches/end_to_end.py" --device "$device" --prompts "$prompts" --steps "$steps" \
    --batch-size "$batch" --json "$out/end_to_end-$device.json"
