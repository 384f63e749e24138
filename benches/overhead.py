"""The executor's overhead on a CPU: the same calls through the executor, and by the denoiser alone. One run.

    python benches/overhead.py [--prompts 64] [--steps 20] [--batch-size 16] [--tau 0.3] [--rounds 5] [--json FILE]

The bundled model. `alone` calls `denoise` equally often, with the same lanes per call, on prepared inputs: no plan, no
noise, no sampler, no conditioning. The executor runs with and without catch-up conditioning. Rounds alternate, the
fastest of each side counts, and every round's latents are checked. The executor's own work is also measured as its time
less that of its calls of the denoiser.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path

import torch

import hsd
from hsd.demo import PROMPTS
from hsd.models.encode import recall
from hsd.prompts.files import read_prompts
from hsd.replay.executor import Executor
from hsd.tuning.batching import slot_bytes


class Timed:
    """Seconds inside `denoise`."""

    def __init__(self, model):
        self.seconds, self.model, self.denoise = 0.0, model, model.denoise
        model.__dict__["denoise"] = self

    def __call__(self, *inputs):
        start = time.perf_counter()
        result = self.denoise(*inputs)
        self.seconds += time.perf_counter() - start
        return result

    def close(self):
        del self.model.__dict__["denoise"]


def through_the_executor(plan, program, model, conditioning, sampler, catch_up):
    """Seconds of all calls, of those inside the denoiser, and the latents."""
    timed = Timed(model)
    executor = Executor(plan, program, model, conditioning, sampler, catch_up=catch_up)
    start = time.perf_counter()
    latents = {image.index: image.latent for _, finished in executor.run() for image in finished}
    seconds = time.perf_counter() - start
    timed.close()
    return seconds, timed.seconds, latents


@torch.no_grad()
def alone(lanes_of, model, rows, sampler):
    """Seconds of calls with the lanes ``lanes_of``."""
    latents = torch.randn(max(lanes_of), *model.latent_shape())
    start = time.perf_counter()
    with model.running():
        for n in lanes_of:
            timestep = sampler.timesteps[torch.arange(n) % sampler.n_steps]
            model.denoise(latents[:n], timestep, {name: row.expand(n, *row.shape[1:]) for name, row in rows.items()})
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tau", type=float, default=0.3)
    parser.add_argument("--catch-up", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    prompts = read_prompts(PROMPTS).prompts[: args.prompts]
    model = hsd.load("demo", device="cpu", dtype=torch.float32)
    plan = hsd.compile(prompts, args.tau, model=model, steps=args.steps)
    conditioning = recall(plan, model.encoding_key())
    sampler, program = model.sampler(args.steps), plan.program(args.batch_size)
    lanes_of = [int(n) for chunk in program.chunks(1024) for n in (chunk["segment"] >= 0).sum(axis=1)]
    assert sum(lanes_of) == plan.node_steps
    rows = {name: row[None] for name, row in conditioning.mean(plan.kept[:1]).items()}

    alone(lanes_of[:4], model, rows, sampler)  # warm up
    runs, expected = [], {}
    for _ in range(args.rounds):
        run = {"alone": alone(lanes_of, model, rows, sampler)}
        for gamma, end in ((0.0, ""), (args.catch_up, "_catch_up")):
            seconds, inside, latents = through_the_executor(plan, program, model, conditioning, sampler, gamma)
            before = expected.setdefault(gamma, latents)
            assert sorted(latents) == list(range(len(prompts)))
            assert all(torch.equal(latents[i], before[i]) for i in before), "two runs gave different latents"
            run |= {f"executor{end}": seconds, f"inside{end}": inside, f"own{end}": seconds - inside}
        runs.append(run)
    best = {side: min(run[side] for run in runs) for side in ("alone", "executor", "executor_catch_up")}
    own, own_catch_up = (min(run[f"own{end}"] / run[f"inside{end}"] for run in runs) for end in ("", "_catch_up"))
    slot = {gamma: slot_bytes(model, conditioning, sampler, plan, gamma) for gamma in (0.0, args.catch_up)}
    overhead = best["executor"] / best["alone"] - 1.0
    print(
        f"{len(prompts)} prompts x {args.steps} steps, {plan.savings:.1%} saved: {plan.node_steps} node-steps in "
        f"{len(lanes_of)} calls of {args.batch_size}; {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{platform.machine()}; the fastest of {args.rounds}"
    )
    print(f"denoiser alone        {best['alone']:8.3f} s")
    print(f"through the executor  {best['executor']:8.3f} s   {overhead:+.1%}")
    with_it = best["executor_catch_up"] / best["alone"] - 1.0
    print(f"with catch-up {args.catch_up:<8g}{best['executor_catch_up']:8.3f} s   {with_it:+.1%}")
    print(
        f"executor's own work, in the same round as the denoiser's: {own:.2%} of it, {own_catch_up:.2%} with catch-up"
    )
    print(f"bytes of a slot: {slot[0.0]:,}, {slot[args.catch_up]:,} with catch-up")
    if args.json:
        document = {
            "date": date.today().isoformat(),
            "arguments": {name: value for name, value in vars(args).items() if name != "json"},
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "rounds": runs,
            "overhead": overhead,
            "own": own,
            "overhead_catch_up": with_it,
            "own_catch_up": own_catch_up,
            "slot_bytes": list(slot.values()),
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
