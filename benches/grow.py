"""What prompts cost that are added to a set, and how good their images are: against every other way to make them.

    python benches/grow.py [--data FOLDER] [--json FILE] [--rounds 3] [--folds 8] [--only cost] [--quick]

The cost is counted, no image is made: node-steps for each added image, of 40 steps. `alone`: the new prompts compiled
as a set of their own, with the same tau. `added`: they join the old plan, and trunks are computed again. `trunks 100`,
`trunks 1,000`, `trunks`: at most so many states were kept where the old plan forks, or all that `--keep-trunks` would
choose, and are not computed again. `all trunks`: those of all forks, also of those that it leaves out. `at once`: what
the new prompts add to the cost of the plan if all had been compiled together, which nobody can have who has made the
old images already. `anew`: all compiled together and made again. Every round draws both parts of the set anew.

The sets: `templates` are combinations of the words of a real template (a style, a subject, a place: 8,000 of them),
clustered by the built-in encoder, since sentence embeddings exist of 2,000 only. `templates, MiniLM` are these 2,000,
and `GenAI-Bench` its 1,600 prompts, both by their sentence embeddings. The seconds are those of inserting into the tree
and of all of `extend`, beside those of compiling everything.

Quality is that of the bundled model, scored by its evaluator (the share of attributes that are shown). The prompts are
those of `hsd reproduce`, 64 of each of four kinds. Each fold takes 8 of each kind as new ones, and 32 of the others of
each kind as the old set, so every prompt is new once. The same new prompts, with the same seeds, are made each way.
Intervals of paired differences are over prompts and clusters of the first step, as those of `hsd evaluate`. --quick
takes few prompts, for a test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from datetime import date
from itertools import chain, product
from pathlib import Path

import diffusers
import numpy as np
import torch

import hsd
import hsd.reproduction
from hsd.demo.evaluator import DemoEvaluator
from hsd.evaluation.clusters import clusters_of
from hsd.evaluation.stats import mean_intervals
from hsd.planning.encoders import default_encoder
from hsd.replay.trunks import most_valuable

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
KINDS = Path(hsd.reproduction.__file__).parent / "prompts"
BUDGETS = (0.3, 0.5, 0.65)
KEPT = (100, 1000)
STEPS = 40


# ---------------------------------------------------------------------------------------------------------------- cost


def lines(path):
    return [line for line in path.read_text().splitlines() if line.strip()]


def template_set(data, n_old, n_new, seed):
    """Combinations of the words of the template, by the built-in encoder."""
    heads, places = zip(
        *(line.split(", ", 1) for line in lines(data / "prompts" / "prompt_templates.txt")), strict=True
    )
    styles, subjects = zip(*(head.split(" painting of ", 1) for head in heads), strict=True)
    every = list(product(*(sorted(set(column)) for column in (styles, subjects, places))))
    chosen = np.random.default_rng(seed).permutation(len(every))[: n_old + n_new]
    prompts = [f"{style} painting of {subject}, {place}" for style, subject, place in (every[i] for i in chosen)]
    return prompts[:n_old], prompts[n_old:], default_encoder()(prompts)


def embedded_set(name):
    """Prompts of a data set, by their sentence embeddings."""

    def drawn(data, n_old, n_new, seed):
        prompts = lines(data / "prompts" / f"{name}.txt")
        order = np.random.default_rng(seed).permutation(len(prompts))[: n_old + n_new]
        rows = np.load(data / "embeddings" / f"{name}.minilm384.npy")[order]
        prompts = [prompts[i] for i in order]
        return prompts[:n_old], prompts[n_old:], rows

    return drawn


def small_set(_data, n_old, n_new, seed):
    random, n = np.random.default_rng(seed), n_old + n_new
    rows = (random.normal(size=(8, 16))[random.integers(8, size=n)] + 0.4 * random.normal(size=(n, 16))).astype("f4")
    return [f"old {i}" for i in range(n_old)], [f"new {i}" for i in range(n_new)], rows


SETS = {
    "templates": template_set,
    "templates, MiniLM": embedded_set("prompt_templates"),
    "GenAI-Bench": embedded_set("genai_bench"),
}
SIZES = (
    ("templates", 2000, 40),
    ("templates", 2000, 200),
    ("templates", 2000, 1000),
    ("templates, MiniLM", 1600, 400),
    ("GenAI-Bench", 1200, 400),
)


def forks_of(plan):
    """What is known of each segment that forks: its representative and its end."""
    segments = plan.segments
    return {
        (int(row["representative"]), int(row["end_step"])): i
        for i, row in enumerate(segments)
        if row["end_step"] < plan.n_steps
    }


def added(plan, base, keep):
    """Node-steps of a part of an extended plan, if the forks ``keep`` (segments of ``base``,) of the base are kept."""
    there = {fork for fork, segment in forks_of(base).items() if keep[segment]}
    ends = zip(plan.segments["representative"].tolist(), plan.segments["end_step"].tolist(), strict=True)
    return plan.resume(np.array([end in there for end in ends])).node_steps


def timed(call):
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def costs(old, new, rows, budget):
    """Node-steps for each new image, by the way in which they are made; what the old plan is; and seconds."""
    n, count = len(old), len(new)
    base = hsd.compile(old, budget=budget, embeddings=rows[:n], steps=STEPS)
    _, insert = timed(lambda: base.tree.insert(rows, np.zeros(n + count, np.int64)))
    grown, extend = timed(lambda: base.extend(new, embeddings=rows[n:]))
    together, anew = timed(lambda: hsd.compile(old + new, base.tau, embeddings=rows, steps=STEPS))
    part = grown.prune(np.arange(n, n + count))
    forks = base.segments["end_step"] < STEPS
    chosen = {most: most_valuable(base, forks, 1, most) for most in KEPT}
    best = most_valuable(base, forks, 1, len(forks))
    out = {
        "without sharing": STEPS * count,
        "alone": hsd.compile(new, base.tau, embeddings=rows[n:], steps=STEPS).node_steps,
        "added": part.node_steps,
        **{f"trunks {most:,}": added(part, base, kept) for most, kept in chosen.items()},
        "trunks": added(part, base, best),
        "all trunks": added(part, base, forks),
        "at once": together.node_steps - base.node_steps,
        "anew": together.node_steps,
    }
    whole = {"tau": base.tau, "saved": base.savings, "forks": int(forks.sum()), "kept": int(best.sum())}
    seconds = {"insert": insert, "extend": extend, "compile all": anew}
    return {name: cost / count for name, cost in out.items()}, whole, seconds


def count(data, rounds, quick):
    sets = {**SETS, "small": small_set}
    found = []
    for name, n_old, n_new in (("small", 50, 10),) if quick else SIZES:
        title = f"{name} {n_old:,} + {n_new:,}"
        print(f"\n{title}: node-steps for each added image, mean of {rounds} and range")
        for budget in BUDGETS[:1] if quick else BUDGETS:
            runs = [costs(*sets[name](data, n_old, n_new, seed), budget) for seed in range(rounds)]
            ways, whole, seconds = ({key: [run[i][key] for run in runs] for key in runs[0][i]} for i in range(3))
            found.append({"set": title, "budget": budget, "node_steps": ways, "base": whole, "seconds": seconds})
            took = ", ".join(f"{key} {np.median(values):.3f} s" for key, values in seconds.items())
            forks, kept = (f"{np.mean(whole[key]):,.0f}" for key in ("forks", "kept"))
            print(f"  {budget:.0%} saved, {forks} forks (at most {kept} kept); {took}")
            for way, values in ways.items():
                mean = float(np.mean(values))
                print(
                    f"    {way:16}{mean:9.1f}  {min(values):9.1f} to {max(values):.1f}{mean / STEPS:12.0%}", flush=True
                )
    return found


# -------------------------------------------------------------------------------------------------------------- quality


def folds(quick):
    """Of each fold the old and the new prompts. No prompt is new twice."""
    kinds = [lines(path) for path in sorted(KINDS.glob("*.txt"))]
    random = np.random.default_rng(0)
    kinds = [[kind[i] for i in random.permutation(len(kind))] for kind in kinds]
    n_new = 1 if quick else 8
    for fold in range(len(kinds[0]) // n_new):
        own = slice(fold * n_new, (fold + 1) * n_new)
        others = [[prompt for prompt in kind if prompt not in kind[own]] for kind in kinds]
        old = [[kind[i] for i in random.permutation(len(kind))[: 4 * n_new]] for kind in others]
        yield list(chain(*old)), list(chain(*(kind[own] for kind in kinds)))


def images(n_folds, quick):
    """Scores of new prompts, by the way in which they are made."""
    steps = 4 if quick else 20
    model, evaluator = hsd.load("demo", device="cpu"), DemoEvaluator()
    texts: list[str] = []
    scores: dict[str, list[float]] = {}
    roots: dict[str, list[tuple[int, int]]] = {}
    spent: dict[str, list[float]] = {}
    for fold, (old, new) in zip(range(n_folds), folds(quick), strict=False):
        n, every, seeds = len(old), old + new, 1000 * fold + np.arange(len(old) + len(new))
        base = hsd.compile(old, budget=0.5, model=model, steps=steps, seeds=seeds[:n])
        grown = base.extend(new, model=model, seeds=seeds[n:])
        together = hsd.compile(every, base.tau, model=model, steps=steps, seeds=seeds)
        alone, single = (hsd.compile(new, tau, model=model, steps=steps, seeds=seeds[n:]) for tau in (base.tau, 0.0))
        added_ones = np.arange(n, len(every))
        plans = {
            "added": grown.prune(added_ones),
            "at once": together.prune(added_ones),
            "alone": alone,
            "without sharing": single,
        }
        forks = base.segments["end_step"] < steps
        costs = {
            "added": plans["added"].node_steps,
            "added, trunks": added(plans["added"], base, most_valuable(base, forks, 1, len(forks))),
            "at once": together.node_steps - base.node_steps,
            "alone": alone.node_steps,
            "without sharing": single.node_steps,
        }
        for way, cost in costs.items():
            spent.setdefault(way, []).append(cost / len(new))
        texts += new
        for way, plan in plans.items():
            made = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=16)}
            scores.setdefault(way, []).extend(evaluator.score([made[i] for i in sorted(made)], new).tolist())
            active = plan.active(0)
            roots.setdefault(way, []).extend((fold, int(active[i])) for i in sorted(made))
    table = {way: np.array(values) for way, values in scores.items()}
    out = {
        "steps": steps,
        "folds": fold + 1,
        "base saved": 0.5,
        "images": len(texts),
        "node_steps": {way: float(np.mean(values)) for way, values in spent.items()},
        "means": {way: float(values.mean()) for way, values in table.items()},
        "differences": {},
        "scores": {way: values.round(4).tolist() for way, values in table.items()},
    }
    print(f"\nbundled model, {steps} steps, {len(texts)} new images: node-steps each, mean score")
    for way, cost in out["node_steps"].items():
        score = f"{out['means'][way]:8.3f}" if way in table else ""
        print(f"  {way:20}{cost:6.1f}{score}")
    for way, against in (("added", "at once"), ("added", "alone"), ("added", "without sharing"), ("at once", "alone")):
        difference = table[way] - table[against]
        clusters = clusters_of(texts, roots[way], roots[against])
        low, high = (mean_intervals(difference, clusters) or [None])[0] or (float("nan"), float("nan"))
        known = {"mean": float(difference.mean()), "low": low, "high": high}
        out["differences"][f"{way} - {against}"] = {**known, "clusters": clusters.count, "by": clusters.by}
        print(
            f"  {way} - {against}: {difference.mean():+.3f} ({low:+.3f} to {high:+.3f}), {clusters.count} {clusters.by}"
        )
    return out


PARTS = ("cost", "quality")


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="draws of each set")
    parser.add_argument("--folds", type=int, default=8, help="folds whose images are scored, at most 8")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS, help="parts; others stay as in --json")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(words)
    rounds, n_folds = (1, 1) if args.quick else (args.rounds, args.folds)
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, {platform.machine()}, {os.cpu_count()} cores")
    before = json.loads(args.json.read_text()) if args.json is not None and args.json.exists() else {}
    result = {
        "date": date.today().isoformat(),
        "command": f"python benches/grow.py --rounds {rounds} --folds {n_folds}" + " --quick" * args.quick,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "version": hsd.__version__,
        "cost": count(args.data, rounds, args.quick) if "cost" in args.only else before.get("cost"),
        "quality": images(n_folds, args.quick) if "quality" in args.only else before.get("quality"),
    }
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
