"""What prompts cost that are added to a set, and how good their images are: against every other way to make them.

    python benches/grow.py [--data FOLDER] [--json FILE] [--rounds 3] [--images 3] [--quick]

The cost is counted, no image is made: node-steps for each added image, of 40 steps. `alone`: the new prompts compiled
as a set of their own, with the same tau. `added`: they join the old plan, and trunks are computed again. `trunks 100`,
`trunks 1,000`, `all trunks`: so many states were kept where the old plan forks, and are not computed again. `at once`:
what the new prompts add to the cost of the plan if all had been compiled together, which nobody can have who has made
the old images already. `anew`: all compiled together and made again.

The sets are 2,000 prompts of one template (a style, a subject, a place; new ones are other combinations of the same
words, all clustered by the built-in encoder), and 1,200 of the 1,600 prompts of GenAI-Bench (sentence embeddings).

Quality is that of the bundled model, scored by its evaluator (the share of attributes that are shown): the same new
prompts, with the same seeds, made each way. Differences are paired, with intervals over the clusters of the first step.
--quick takes few prompts, for a test.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path

import numpy as np

import hsd
from hsd.demo import PROMPTS
from hsd.demo.evaluator import DemoEvaluator
from hsd.evaluation.stats import cluster_bootstrap
from hsd.planning.encoders import default_encoder
from hsd.replay.trunks import most_valuable

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
BUDGETS = (0.3, 0.5, 0.65)
KEPT = (100, 1000)


# ---------------------------------------------------------------------------------------------------------------- cost


def template_set(data, n_new, seed):
    """2,000 prompts, and as many other combinations of their words."""
    old = [line for line in (data / "prompts" / "prompt_templates.txt").read_text().splitlines() if line.strip()]
    heads, places = zip(*(line.split(", ", 1) for line in old), strict=True)
    styles, subjects = zip(*(head.split(" painting of ", 1) for head in heads), strict=True)
    words = [sorted(set(column)) for column in (styles, subjects, places)]
    random, new, taken = np.random.default_rng(seed), [], set(old)
    while len(new) < n_new:
        style, subject, place = (column[random.integers(len(column))] for column in words)
        prompt = f"{style} painting of {subject}, {place}"
        if prompt not in taken:
            taken.add(prompt)
            new.append(prompt)
    return old, new, default_encoder()(old + new)


def genai_set(data, n_new, seed):
    """1,200 of its prompts, and the others."""
    prompts = [line for line in (data / "prompts" / "genai_bench.txt").read_text().splitlines() if line.strip()]
    order = np.random.default_rng(seed).permutation(len(prompts))
    rows = np.load(data / "embeddings" / "genai_bench.minilm384.npy")[order]
    prompts = [prompts[i] for i in order]
    n = len(prompts) - 400
    return prompts[:n], prompts[n : n + n_new], rows[: n + n_new]


def small_set(_data, n_new, seed):
    random = np.random.default_rng(seed)
    rows = (random.normal(size=(8, 16))[random.integers(8, size=60)] + 0.4 * random.normal(size=(60, 16))).astype("f4")
    return [f"old {i}" for i in range(60 - n_new)], [f"new {i}" for i in range(n_new)], rows


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


def costs(old, new, rows, budget):
    """Node-steps for each new image, by the way in which they are made; and the seconds of adding them."""
    n, count, steps = len(old), len(new), 40
    base = hsd.compile(old, budget=budget, embeddings=rows[:n], steps=steps)
    start = time.perf_counter()
    grown = base.extend(new, embeddings=rows[n:])
    seconds = time.perf_counter() - start
    part = grown.prune(np.arange(n, n + count))
    together = hsd.compile(old + new, base.tau, embeddings=rows, steps=steps)
    forks = base.segments["end_step"] < steps
    out = {
        "without sharing": steps * count,
        "alone": hsd.compile(new, base.tau, embeddings=rows[n:], steps=steps).node_steps,
        "added": part.node_steps,
        **{f"trunks {kept:,}": added(part, base, most_valuable(base, forks, 1, kept)) for kept in KEPT},
        "all trunks": added(part, base, forks),
        "at once": together.node_steps - base.node_steps,
        "anew": together.node_steps,
    }
    return {name: cost / count for name, cost in out.items()}, seconds


def count(data, rounds, quick):
    sets = {
        **{f"templates 2,000 + {n:,}": (template_set, n) for n in (40, 200, 1000)},
        "GenAI-Bench 1,200 + 400": (genai_set, 400),
    }
    if quick:
        sets = {"small 50 + 10": (small_set, 10)}
    found = []
    for name, (make, n_new) in sets.items():
        for budget in BUDGETS[:1] if quick else BUDGETS:
            runs = [costs(*make(data, n_new, seed), budget) for seed in range(rounds)]
            ways = {way: [run[way] for run, _ in runs] for way in runs[0][0]}
            found.append({"set": name, "saved": budget, "node_steps": ways, "seconds": [s for _, s in runs]})
            cells = "  ".join(f"{np.mean(values):7.1f}" for values in ways.values())
            if len(found) == 1:
                print(f"{'node-steps for each added image':34}" + "  ".join(f"{way:>7.7}" for way in ways))
            print(f"{name:24} {budget:4.0%} saved{cells}   {np.mean([s for _, s in runs]):.2f} s")
    return found


# -------------------------------------------------------------------------------------------------------------- quality


def images(rounds, quick):
    """Scores of new prompts, by the way in which they are made."""
    prompts = PROMPTS.read_text().splitlines()
    prompts = [prompt for prompt in prompts if prompt.strip()][: 12 if quick else None]
    n_new, steps = len(prompts) // 4, 4 if quick else 20
    model, evaluator = hsd.load("demo"), DemoEvaluator()
    ways: dict[str, list[float]] = {}
    clusters: list[tuple[int, int]] = []
    for seed in range(rounds):
        order = np.random.default_rng(seed).permutation(len(prompts))
        texts = [prompts[i] for i in order]
        n, seeds = len(texts) - n_new, 1000 * seed + np.arange(len(texts))
        base = hsd.compile(texts[:n], budget=0.5, model=model, steps=steps, seeds=seeds[:n])
        grown = base.extend(texts[n:], model=model, seeds=seeds[n:])
        together = hsd.compile(texts, base.tau, model=model, steps=steps, seeds=seeds)
        alone = hsd.compile(texts[n:], base.tau, model=model, steps=steps, seeds=seeds[n:])
        single = hsd.compile(texts[n:], 0.0, model=model, steps=steps, seeds=seeds[n:])
        new = np.arange(n, len(texts))
        plans = {"added": grown.prune(new), "at once": together.prune(new), "alone": alone, "without sharing": single}
        for way, plan in plans.items():
            first = n if way in ("added", "at once") else 0
            made = {image.index - first: image.pil for image in hsd.stream(plan, model, batch_size=16)}
            scores = evaluator.score([made[i] for i in range(n_new)], texts[n:])
            ways.setdefault(way, []).extend(scores.tolist())
        active = together.active(0)
        clusters += [(seed, int(active[i])) for i in new]
    numbers = np.unique(np.array(clusters), axis=0, return_inverse=True)[1].reshape(-1)
    table = {way: np.array(scores) for way, scores in ways.items()}
    known = ~np.isnan(np.stack(list(table.values()))).any(axis=0)
    out = {"images": int(known.sum()), "means": {}, "differences": {}}
    for way, scores in table.items():
        out["means"][way] = float(scores[known].mean())
        print(f"{way:16} mean score {out['means'][way]:.3f}")
        if way != "added":
            better = (table["added"] - scores)[known]
            interval = cluster_bootstrap(better, numbers[known].tolist())
            low, high = interval[0] if interval else (float("nan"),) * 2
            out["differences"][f"added - {way}"] = [float(better.mean()), float(low), float(high)]
            print(f"   added is better by {better.mean():+.3f} ({low:+.3f} to {high:+.3f})")
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="draws of each set")
    parser.add_argument("--images", type=int, default=3, help="draws of the set whose images are scored")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    result = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "version": hsd.__version__,
        "cost": count(arguments.data, rounds, arguments.quick),
        "quality": images(1 if arguments.quick else arguments.images, arguments.quick),
    }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
