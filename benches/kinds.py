"""What calls of one kind cost: lanes of a call have one length of their prompts, where a family reads the padding.

    python benches/kinds.py DATA_FOLDER [--json FILE] [--tau 1] [--steps 40] [--batch-size 16] [--quick]

The four real prompt sets; `DATA_FOLDER` holds `prompts/*.txt` and `embeddings/*.minilm384.npy`. The length of a prompt
is its number of words and punctuation marks (`\\w+|[^\\w\\s]`), and that of a cluster its longest member's, as of a
mean of conditionings. Calls are counted, not timed. `any` is the program without kinds. `cut` cuts each of its calls
into one call for each kind in it. `by kind` is the program with kinds, and `bound` is what no program with kinds can be
below (`Plan.lower_bound`). `latents` are the slots of `any` and `by kind`.
--quick takes an artificial plan, for a test.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
from plan import make_tree

import hsd
from hsd import _core

SETS = {
    "templates": "prompt_templates",
    "genai_bench": "genai_bench",
    "animals": "animals",
    "styles": "style_variations",
}
WAYS = [("depth", True), ("breadth", True), ("depth", False)]
TOKEN = re.compile(r"\w+|[^\w\s]")


def real_plans(data, tau, steps):
    """Name, plan and lengths of the prompts of each real set."""
    for name, file in SETS.items():
        prompts = [line for line in (data / "prompts" / f"{file}.txt").read_text().splitlines() if line.strip()]
        embeddings = np.load(data / "embeddings" / f"{file}.minilm384.npy")
        lengths = np.array([len(TOKEN.findall(prompt)) for prompt in prompts])
        yield name, hsd.compile(prompts, tau, steps=steps, embeddings=embeddings)._core, lengths


def artificial_plan(tau, steps, n=300):
    """The same of random merges, with random lengths."""
    plan = _core.Plan.compile(make_tree("random", n, 0), tau * _core.schedule_shape("linear", steps))
    return "artificial", plan, np.random.default_rng(0).integers(5, 20, n)


def kinds_of(plan, lengths):
    """(segments,) the length of each segment: its cluster's longest."""
    rows, ordered = plan.segments, lengths[plan.tree.leaf_order]
    bounds = zip(rows["leaf_begin"].tolist(), rows["leaf_end"].tolist(), strict=True)
    return np.array([ordered[begin:end].max() for begin, end in bounds], np.int64)


def cut(program, kinds):
    """The calls that are needed if every call is cut into one for each kind."""
    return sum(len(set(kinds[call[call >= 0]].tolist())) for chunk in program.chunks() for call in chunk["segment"])


def count(plan, kinds, batch_size, order, mixed_steps):
    """The columns of one row."""
    free = plan.program(batch_size, order, mixed_steps=mixed_steps)
    program = plan.program(batch_size, order, mixed_steps=mixed_steps, kinds=kinds)
    for chunk in program.chunks():
        assert all(len(set(kinds[call[call >= 0]].tolist())) == 1 for call in chunk["segment"])
    assert program.n_calls >= program.lower_bound >= free.lower_bound
    return {
        "any": free.n_calls,
        "cut": cut(free, kinds),
        "by kind": program.n_calls,
        "bound": program.lower_bound,
        "latents": [free.n_slots, program.n_slots],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tau", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.data is None and not args.quick:
        parser.error("DATA_FOLDER is needed, the folder of the real prompt sets; or --quick")
    plans = [artificial_plan(args.tau, args.steps)] if args.quick else real_plans(args.data, args.tau, args.steps)
    results = {}
    for name, plan, lengths in plans:
        kinds = kinds_of(plan, lengths)
        print(f"{name}: {len(lengths):,} prompts, {plan.node_steps:,} node-steps, {len(set(kinds.tolist()))} kinds")
        print(f"{'':24}{'any':>8}{'cut':>8}{'by kind':>9}{'bound':>8}   latents")
        rows = {}
        for order, mixed_steps in WAYS:
            way = order if mixed_steps else f"{order}, one step a call"
            rows[way] = row = count(plan, kinds, args.batch_size, order, mixed_steps)
            figures = f"{row['any']:>8,}{row['cut']:>8,}{row['by kind']:>9,}{row['bound']:>8,}"
            print(f"{way:24}{figures}   {row['latents'][0]:,} -> {row['latents'][1]:,}")
        results[name] = {"node_steps": plan.node_steps, "kinds": len(set(kinds.tolist())), "rows": rows}
    if args.json:
        command = f"python benches/kinds.py DATA_FOLDER --json benches/results/{args.json.name}"
        setting = {"tau": args.tau, "steps": args.steps, "batch_size": args.batch_size}
        args.json.write_text(json.dumps({"command": command, **setting, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
