"""What Ray adds to a run, and what a second worker saves: the same units by Ray and by plain processes. One run.

    python benches/distributed.py [--prompts 480] [--steps 20] [--workers 2] [--rounds 2] [--quick] [--json FILE]

The bundled model on a CPU, one thread a worker. Both sides cut the plan into the same units; each process takes the
next one when it is done. Start-up is apart: a process that has loaded the model waits for the others, and the clock
runs from then to the last image. Rounds alternate, the fastest of each side counts, and the pixels are compared.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch

import hsd
import hsd.distributed
from hsd.demo import PROMPTS
from hsd.generation.events import Watcher
from hsd.generation.folders import open_folder, open_part
from hsd.generation.options import Options
from hsd.generation.unit import UnitRunner


def load_together(folder, workers):
    """Load the model, and wait until as many processes have."""
    torch.set_num_threads(1)
    model = hsd.load("demo", device="cpu")
    (Path(folder) / f"loaded-{os.getpid()}").touch()
    while len(list(Path(folder).glob("loaded-*"))) < workers:
        time.sleep(0.01)
    return model


class Clock(Watcher):
    """When the first unit was handed out, and when the last image was told of."""

    watches = True

    def __init__(self):
        self.begin = self.end = 0.0

    def began(self, *_):
        self.begin = time.perf_counter()

    def made(self, prompt):
        self.end = time.perf_counter()


def by_ray(plan, out, notes, workers, batch_size):
    """Seconds from the first unit to the last image, and the seconds of all."""
    start, clock = time.perf_counter(), Clock()
    load = partial(load_together, str(notes), workers)
    hsd.distributed.generate(plan, load, out, workers=workers, device="cpu", batch_size=batch_size, progress=clock)
    return clock.end - clock.begin, time.perf_counter() - start


def plain_worker(plan, out, notes, workers, batch_size, opened, units, told):
    """One process: takes units until none is left."""
    runner = UnitRunner(plan, load_together(notes, workers), Options(batch_size=batch_size))
    told.put(runner.identity)
    opened.wait()
    runner.open(open_part(out, plan, runner.identity))
    while (unit := units.get()) is not None:
        for _ in runner.run(unit, proven=True):
            pass
        told.put(len(unit))


def by_processes(plan, out, notes, workers, batch_size):
    """The same without Ray: processes that take units from a queue."""
    start, context = time.perf_counter(), multiprocessing.get_context("spawn")
    opened, units, told = context.Event(), context.Queue(), context.Queue()
    arguments = (plan, str(out), str(notes), workers, batch_size, opened, units, told)
    processes = [context.Process(target=plain_worker, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    identity, *_ = [told.get() for _ in processes]
    with open_folder(out, plan, identity):
        begin = time.perf_counter()
        for unit in hsd.distributed.units(plan, workers):
            units.put(unit.kept)
        opened.set()
        made = 0
        while made < len(plan):
            made += told.get()
        seconds = time.perf_counter() - begin
        for _ in processes:
            units.put(None)
        for process in processes:
            process.join()
    return seconds, time.perf_counter() - start


def pixels(out):
    return np.stack([np.asarray(PIL.Image.open(path), dtype=int) for path in sorted(Path(out).glob("*.png"))])


def measure(plan, folder, sides, rounds, batch_size):
    """Seconds of each side, by its name, and what all sides made."""
    seconds, whole, reference = {name: [] for name in sides}, {name: [] for name in sides}, None
    for number in range(rounds):
        for name, (run, workers) in sides.items():
            out, notes = folder / f"{name}-{number}", folder / f"{name}-{number}-notes"
            notes.mkdir(parents=True)
            took, everything = run(plan, out, notes, workers, batch_size)
            seconds[name].append(took)
            whole[name].append(everything)
            made = pixels(out)
            reference = made if reference is None else reference
            assert made.shape == reference.shape, name
            assert np.abs(made - reference).max() <= 2, name
            shutil.rmtree(out)
    return seconds, whole


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=480)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few images, once: that it runs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.prompts, args.steps, args.rounds = 16, 4, 1
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    prompts = [lines[i % len(lines)] for i in range(args.prompts)]  # repeats are other images
    plan = hsd.compile(prompts, 0.3, model=hsd.load("demo", device="cpu"), steps=args.steps)
    many = args.workers
    sides = {
        "processes": (by_processes, many),
        "ray": (by_ray, many),
        "one process": (by_processes, 1),
        "ray, one worker": (by_ray, 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        seconds, whole = measure(plan, Path(folder), sides, args.rounds, args.batch_size)
    best = {name: min(each) for name, each in seconds.items()}
    print(f"{len(plan)} images, {plan.node_steps} node-steps, {plan.savings:.1%} saved, {os.cpu_count()} cores")
    print(f"{'':16}{'seconds':>9}{'rounds':>24}{'with start-up':>15}")
    for name, took in best.items():
        rounds = " ".join(f"{one:.2f}" for one in seconds[name])
        print(f"{name:16}{took:9.2f}{rounds:>24}{min(whole[name]):15.2f}")
    overhead = best["ray"] / best["processes"] - 1
    speed_up = {
        name: best[one] / best[name] for name, one in (("processes", "one process"), ("ray", "ray, one worker"))
    }
    print(f"Ray over plain processes, {many} workers: {overhead:+.1%}")
    print(f"{many} workers over one: {speed_up['ray']:.2f} by Ray, {speed_up['processes']:.2f} by plain processes")
    if args.json:
        found = {
            "date": date.today().isoformat(),
            "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "versions": {"hsd": hsd.__version__, "torch": torch.__version__},
            "images": len(plan),
            "node_steps": plan.node_steps,
            "workers": many,
            "seconds": seconds,
            "with_start_up": whole,
            "overhead": overhead,
            "speed_up": speed_up,
        }
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
