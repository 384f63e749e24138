#!/usr/bin/env bash
# The tests and benchmarks that need a GPU: no network, random weights, each part a process with a limit of its own.
#
#   benches/gpu/run.sh --list                      the parts, what each measures, its seconds, and calls of ten minutes
#   benches/gpu/run.sh --check                     what is missing here for the parts, a GPU too, and how to get it
#   benches/gpu/run.sh [OPTION ...] [OUT]          run the parts
#   benches/gpu/run.sh --report [OUT]              write the tables of docs/gpu.md from the results in OUT
#
#   --parts PART,PART...   only these; they run in the order of --list
#   --seconds N            end within N seconds. A part for which too little is left does not start, and is named at the
#                          end with the command for the rest. Without it each part may take 575 s.
#   --data FOLDER          the real prompt sets (prompts/ and embeddings/; default ../shared/data beside the
#                          repository). Without them the bundled prompts are used, and the output says so.
#   -k EXPRESSION          only tests whose names match
#   --again                also the tests that have passed in an earlier call
#   --small                tiny shapes on a CPU, where GPU tests are skipped: tries the code, in three to five minutes
#
# OUT (default benches/results; with --small a temporary folder) gets one JSON file a part, written as it is measured,
# so that a part that is cut short leaves what it had. These files are all there is to bring back. A later call with the same OUT runs only the tests that have not
# passed, as long as hsd, the tests and the device are the same. A part that fails does not stop the others; they are
# named at the end, and the exit status is 1.
#
# It needs $PYTHON (default python3) with hsd and its dependencies, and pytest with pytest-timeout for the tests;
# pytest-xdist makes them faster. What is missing is named before anything starts, with the command that downloads it,
# and the parts that can do without it run. Where the machine with the GPU reaches no package index, carry wheels. To
# one with Python 3.12, torch 2.11 and transformers 5.17 that is hsd-diffusion, diffusers with importlib-metadata and
# lazy-importer, platformdirs, and wordllama for the tests and the bundled prompts. Make them elsewhere, on x86-64:
#
#   maturin build --release --compatibility manylinux_2_34 --out wheels       # abi3: any Python from 3.10
#   python3 -m pip download --no-deps --only-binary=:all: --dest wheels --python-version 3.12 --implementation cp \
#       --abi cp312 --abi abi3 --abi none --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
#       --platform any diffusers==0.42.1 importlib-metadata lazy-importer platformdirs wordllama
#
# Carry this repository too (the tests and these scripts are not in the wheel), and there, in its folder:
#
#   python3 -m pip install --no-index --no-deps --target site wheels/*.whl
#   export PYTHONPATH=$PWD/site                                               # or PYTHON=... for another Python
#   benches/gpu/run.sh --check
#   benches/gpu/run.sh --seconds 575 --parts ... --data data OUT              # the calls that --list prints
#
# Tried on a CPU with exactly these wheels, Python 3.12.1, torch 2.11.0+cu130 and transformers 5.17.0: `--check`, every
# part with `--small`, and the tests of the executor, of three families and of this script. On a GPU (an H200) the parts
# loop, efficiency, end_to_end and denoiser ran to their end before each had its own call; costs has not run on one.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/run_parts.py" "$@"
