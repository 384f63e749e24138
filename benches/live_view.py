"""What the live view costs: the same run with the view on a terminal and without it, in turns. One run.

    python benches/live_view.py [--steps 10] [--rounds 5]

The bundled model and its 120 prompts, into a folder that is removed after each run. Both ways run in one process whose
standard error is a pseudo-terminal of 100 columns, which another process reads. The fastest of each side counts, and
the median of the ratios of each pair of runs is given with it.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import statistics
import struct
import sys
import tempfile
import termios
import time

import torch

import hsd
from hsd.demo import PROMPTS


def on_a_terminal() -> int:
    """Make standard error a terminal whose output a child process reads and drops; returns a copy of what it was."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    if os.fork() == 0:
        os.close(slave)
        try:
            while os.read(master, 65536):
                pass
        except OSError:
            pass
        os._exit(0)
    before = os.dup(2)
    os.dup2(slave, 2)
    os.close(master)
    return before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    on_a_terminal()
    os.environ["TERM"] = "xterm-256color"
    assert sys.stderr.isatty()
    model = hsd.load("demo", device="cpu")
    plan = hsd.compile(PROMPTS.read_text().splitlines(), model=model, steps=args.steps)
    seconds: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for number in range(args.rounds + 1):
        for shown in (False, True) if number % 2 else (True, False):
            with tempfile.TemporaryDirectory() as folder:
                start, work = time.perf_counter(), time.process_time()
                run = hsd.generate(plan, model, folder, progress=shown)
                took = time.perf_counter() - start, time.process_time() - work
                assert run.images == len(plan)
            if number:  # the first round warms up
                seconds[shown].append(took)
    print(f"{len(plan)} prompts x {args.steps} steps, {torch.get_num_threads()} threads, {args.rounds} rounds")
    for name, kind in (("wall", 0), ("processor", 1)):
        off, on = ([took[kind] for took in seconds[shown]] for shown in (False, True))
        ratio = statistics.median(b / a for a, b in zip(off, on, strict=True))
        print(f"{name:10} off {min(off):7.3f} s   on {min(on):7.3f} s   median ratio {ratio:.4f}")


if __name__ == "__main__":
    main()
