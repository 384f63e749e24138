#!/usr/bin/env bash
# The tests and benchmarks that need a GPU: no network, random weights, two calls of under ten minutes.
#
#   benches/gpu/run.sh [--small] [--parts PART,PART...] [--seconds N] [--data FOLDER] [OUT]
#
# OUT (default benches/results; with --small a temporary folder) gets one JSON file a part, written as it is measured,
# so that a part that is cut short leaves what it had. Parts, in the order in which they run and matter:
#
#   tests        pytest -m gpu
#   efficiency   executor against denoiser, on four prompt sets
#   end_to_end   100 prompts to PNG files: diffusers, HSD, the published method
#   loop         trace (waits, launches, how busy the GPU is), first_image and memory
#   denoiser     the denoiser alone, by lanes and ways of running it
#   compile      what torch.compile takes a minute or two for, which the parts above leave out
#   sdxl, flux   denoiser, efficiency and trace with the shapes of SDXL and FLUX
#
# A part may take what is left of N (default 575) seconds, less what is set aside for those behind it. One that fails
# does not stop the others; they are named at the end, and the exit status is 1. All parts together want some 950 s on
# an H200 (each starts a process and builds a model of a billion weights), so run two calls:
#
#   benches/gpu/run.sh --parts tests,efficiency,end_to_end,loop OUT
#   benches/gpu/run.sh --parts denoiser,compile,sdxl,flux OUT
#
# --small tries the script on a CPU with tiny shapes, in two to three minutes.
#
# --data is the folder of the real prompt sets (prompts/ and embeddings/; default ../shared/data beside the
# repository). Without it the bundled prompts are used, and the output says so.
#
# It needs $PYTHON (default python3) with hsd and its dependencies, and pytest with hypothesis, scipy and peft for the
# tests. Where the machine with the GPU reaches no package index, carry what it lacks as wheels. To one with Python
# 3.12, torch 2.11 and transformers 5.17 that is hsd itself, diffusers with importlib-metadata, platformdirs, and
# wordllama for the bundled prompts only. Make them elsewhere, on x86-64 Linux:
#
#   maturin build --release --compatibility manylinux_2_34 --out wheels       # abi3: any Python from 3.10
#   pip download --no-deps --only-binary=:all: --dest wheels --python-version 3.12 --implementation cp \
#       --abi cp312 --abi abi3 --abi none --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
#       --platform any diffusers==0.42.1 importlib-metadata platformdirs wordllama
#
# and there:
#
#   python3 -m pip install --no-index --no-deps --target site wheels/*.whl
#   PYTHONPATH=$PWD/site benches/gpu/run.sh --data data OUT
set -uo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3} small='' parts='' seconds=575 data='' out=''
while [ $# -gt 0 ]; do
    case $1 in
        --small) small=--small ;;
        --parts) parts=${2:?--parts takes a list}; shift ;;
        --seconds) seconds=${2:?--seconds takes a number}; shift ;;
        --data) data=${2:?--data takes a folder}; shift ;;
        -*) echo "no option $1: see the top of $0" >&2; exit 2 ;;
        *) out=$1 ;;
    esac
    shift
done

declare -A share=(
    [tests]=110 [efficiency]=125 [end_to_end]=165 [loop]=75 [denoiser]=75 [compile]=160 [sdxl]=110 [flux]=120
)
all=(tests efficiency end_to_end loop denoiser compile sdxl flux)
IFS=, read -ra chosen <<<"${parts:-$(IFS=,; echo "${all[*]}")}"
for part in "${chosen[@]}"; do
    [ -n "${share[$part]:-}" ] || { echo "no part $part: there are ${all[*]}" >&2; exit 2; }
done
if [ -z "$out" ]; then
    out=benches/results
    [ -z "$small" ] || out=$(mktemp -d)
fi
mkdir -p "$out"
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

run() { # run PART LIMIT: the part's command, stopped after LIMIT seconds
    local limit=$2 bench=("$python" benches/gpu/executor.py $small ${data:+--data "$data"})
    bench+=(--limit "$((limit - 5))" --json "$out/gpu-$1.json")
    case $1 in
        tests)
            # Each test is small, and most of its time is spent on the host: several processes share the device.
            workers=()
            [ -n "$small" ] || ! "$python" -c 'import xdist' 2>/dev/null || workers=(-n 8 -p no:benchmark)
            set -- "$python" -m pytest -q -m gpu -p no:cacheprovider "${workers[@]}" tests \
                ${small:+--collect-only -qq -W ignore}
            ;;
        efficiency) set -- "${bench[@]}" efficiency ;;
        end_to_end) set -- "${bench[@]}" end_to_end --no-compile ;;
        loop) set -- "${bench[@]}" trace first_image memory ;;
        denoiser) set -- "${bench[@]}" denoiser --no-compile ;;
        compile)
            set -- "${bench[@]}" efficiency denoiser end_to_end --sets styles --modes compile --lanes 16 \
                --variants compile+graphs
            ;;
        sdxl | flux)
            set -- "${bench[@]}" efficiency trace denoiser --model "$1" --no-compile --seconds 4 --alone 0.3 \
                --trace-calls 8
            ;;
    esac
    timeout --kill-after=15 "$limit" "$@"
}

[ -n "$small" ] || nvidia-smi --query-gpu=name,driver_version,power.limit --format=csv,noheader
failed=()
for i in "${!chosen[@]}"; do
    part=${chosen[$i]} behind=0
    for later in "${chosen[@]:i+1}"; do behind=$((behind + share[$later])); done
    limit=$((seconds - SECONDS - behind))
    [ "$limit" -ge 20 ] || { echo "== $part: no time left"; failed+=("$part (no time left)"); continue; }
    echo "== $part: at most $limit s"
    began=$SECONDS
    run "$part" "$limit"
    status=$?
    [ $status -ne 124 ] || status='stopped at its limit'
    [ "$status" = 0 ] || failed+=("$part ($status)")
    echo "== $part: $((SECONDS - began)) s"
done
echo "results in $out; $SECONDS s in all"
if [ ${#failed[@]} -gt 0 ]; then
    echo "FAILED: ${failed[*]}"
    exit 1
fi
