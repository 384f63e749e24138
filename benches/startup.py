"""How long a user waits for the library, the help and a plan: whole processes, from their start to their end.

    python benches/startup.py [--rounds 7] [--prompts 120 2000 10000] [--json FILE]

Beside them the baselines: an interpreter that does nothing, and `import numpy`, which planning needs. The prompts are
made here, all different: "an oil painting of a silver fox and a broken train at sea". The rounds take turns, and the
median counts; beside it the fastest, and the median of the processor time,
which other work on the machine changes little. Every command has to succeed, and to have loaded no torch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

STYLES = ["oil painting", "watercolour", "photo", "pencil drawing", "comic", "mosaic", "etching", "collage"]
KINDS = ["red", "blue", "golden", "silver", "old", "tiny", "broken", "shiny", "wooden", "paper"]
THINGS = ["robot", "cat", "dog", "fox", "castle", "ship", "train", "teapot", "owl", "violin", "bicycle", "lighthouse"]
PLACES = ["in a forest", "at sea", "in the snow", "on the moon", "in a city", "at night", "by a river", "in a library"]

COMMAND = "import sys; from hsd.cli import main; main()"


def made(n):
    """n different prompts, always the same ones."""
    nouns = list(itertools.product(KINDS, THINGS))
    every = [
        f"a {style} of a {' '.join(first)} and a {' '.join(second)} {place}"
        for style, first, second, place in itertools.product(STYLES, nouns, nouns, PLACES)
    ]
    return random.Random(0).sample(every, n)


def seconds(arguments):
    """Wall and processor seconds of one process, which has to succeed."""
    start, before = time.perf_counter(), os.times()
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    spent = time.perf_counter() - start
    assert run.returncode == 0, run.stderr
    after = os.times()
    return spent, sum(after[2:4]) - sum(before[2:4])  # of child processes that have ended


def no_torch(arguments):
    """One process more, which is not timed: it must not have loaded torch."""
    code = f"{arguments[1]}\n" if arguments[1] != COMMAND else "from hsd.cli import app; app(standalone_mode=False)\n"
    check = "import sys\nassert 'torch' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code + check, *arguments[2:]], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompts", type=int, nargs="+", default=[120, 2000, 10_000])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            "python -c pass": ["-c", "pass"],
            "import numpy": ["-c", "import numpy"],
            "import hsd": ["-c", "import hsd"],
            "hsd --help": ["-c", COMMAND, "--help"],
        }
        planning = ["-c", COMMAND, "plan", "--model", "stand-in"]
        for n in args.prompts:
            path = Path(folder) / f"{n}.txt"
            path.write_text("\n".join(made(n)) + "\n", encoding="utf-8")
            cases[f"hsd plan, {n:,} prompts"] = [*planning, str(path)]
        cases["the last with --plot"] = [*planning, str(path), "--plot", str(Path(folder) / "plan.png")]
        for arguments in cases.values():  # also reads all files once, so that they are in the memory of the system
            no_torch(arguments)
        spent = {name: [] for name in cases}
        for _ in range(args.rounds):
            for name, arguments in cases.items():
                spent[name].append(seconds(arguments))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = f"{cores} cores, Python {platform.python_version()}, {platform.machine()}"
    print(f"{machine}; median of {args.rounds} (fastest), CPU")
    for name, values in spent.items():
        wall, cpu = zip(*values, strict=True)
        print(f"{name:26} {statistics.median(wall):6.2f} s  ({min(wall):.2f} s)  {statistics.median(cpu):6.2f} s")
    if args.json:
        document = {"date": date.today().isoformat(), "cores": cores, "rounds": args.rounds, "seconds": spent}
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
