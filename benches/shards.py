"""What cutting a plan costs: steps computed again by shards, and time lost by units on 2, 8 and 64 devices (simulated).

    python benches/shards.py [--data FOLDER] [--json FILE] [--quick]

The four real prompt sets, tau 1, 40 steps. `before` are shards that only make the largest one small, which was the rule
before cuts were chosen where neighbours share least. Cuts are counted, not timed.

The simulation takes the calls of every unit (16 lanes, depth first) and the measured milliseconds of a call by its
lanes: Kandinsky 2.2 on one H200 by CUDA graphs (`results/h200/gpu-denoiser.json`). To each unit it adds a fixed cost of
10 node-steps in full calls (measured with the demo model: 10 to 16), and noise of 10 %. The workers take the units
costliest first. `filling` is what a unit takes longer than its node-steps say, in images, because its first and last
calls are not full. `lost` is the time over that of the whole plan on one device divided by the number of workers, once
with workers of one speed and once with one at half speed. --quick takes artificial plans, for a test.
"""

from __future__ import annotations

import argparse
import heapq
import json
import time
from pathlib import Path

import numpy as np
from plan import make_tree

import hsd
from hsd import _core

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
SETS = {
    "templates": "prompt_templates",
    "genai_bench": "genai_bench",
    "animals": "animals",
    "styles": "style_variations",
}
SHARDS = (2, 8, 32)
SLACKS = (0.0, 0.02, 0.05, 0.1)
WORKERS = (2, 8, 64)
LANES = 16
FIXED = 10.0  # node-steps
NOISE = 0.1
EQUAL = (1, 2, 4, 8)
HALVED = (3, 4, 5, 6, 7, 8)


def real_plans(data):
    """Name and plan of each real set."""
    for name, file in SETS.items():
        prompts = [line for line in (data / "prompts" / f"{file}.txt").read_text().splitlines() if line.strip()]
        embeddings = np.load(data / "embeddings" / f"{file}.minilm384.npy")
        yield name, hsd.compile(prompts, 1.0, steps=40, embeddings=embeddings)._core


def artificial_plan(n, steps=40):
    return _core.Plan.compile(make_tree("random", n, 0), _core.schedule_shape("linear", steps))


def before(plan, n):
    """Node-steps of ``n`` shares of the leaf order whose largest is as small as possible, filled from the left."""
    order = plan.tree.leaf_order
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    leaf = np.sort(place[plan.kept])
    own = np.zeros(len(leaf), np.int64)
    rows = plan.segments
    np.add.at(own, np.searchsorted(leaf, rows["leaf_begin"]), rows["end_step"] - rows["first_step"])

    def filled(limit):
        shares = [0]
        for i, cost in enumerate(own):
            if i == 0 or shares[-1] + cost > limit or len(own) - i <= n - len(shares):
                shares.append(plan.n_steps)
            else:
                shares[-1] += cost
        return shares[1:]

    low, high = plan.n_steps, plan.node_steps
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(filled(middle)) <= n else (middle + 1, high)
    return filled(high)


def cuts(plan):
    """Rows of (shards, way, share computed again, largest share over an n-th of the plan)."""
    for n in SHARDS:
        ways = {"before": before(plan, min(n, len(plan.kept)))}
        ways |= {f"slack {slack:g}": [part.node_steps for part in plan.shard(n, slack)] for slack in SLACKS}
        ways["units"] = [part.node_steps for part in plan.units(n)]
        for way, costs in ways.items():
            assert sum(costs) >= plan.node_steps
            largest = None if way == "units" else max(costs) * n / plan.node_steps - 1
            yield {"n": n, "way": way, "parts": len(costs), "again": sum(costs) / plan.node_steps - 1, "over": largest}


def call_seconds():
    """Seconds of a call by its lanes, from 0 to LANES; between the measured ones in proportion."""
    document = json.loads((HERE / "results" / "h200" / "gpu-denoiser.json").read_text())
    rows = [row for row in document["sections"]["denoiser"]["rows"] if row["mode"] == "eager, graph"]
    return np.interp(np.arange(LANES + 1), [row["lanes"] for row in rows], [row["seconds"] for row in rows])


def seconds(part, table):
    """Seconds of the calls of a plan."""
    lanes = [np.count_nonzero(chunk["segment"] >= 0, axis=1) for chunk in part.program(LANES).chunks()]
    return float(table[np.concatenate(lanes)].sum())


def end(costs, workers, slow, noise, rng):
    """When the last of ``costs``, taken in this order, is done. With ``slow`` the first worker has half the speed."""
    times = np.asarray(costs) * np.clip(1 + noise * rng.standard_normal(len(costs)), 0.3, None)
    free = [(0.0, worker) for worker in range(workers)]
    last = 0.0
    for cost in times:
        begin, worker = heapq.heappop(free)
        done = begin + cost * (2 if slow and worker == 0 else 1)
        last = max(last, done)
        heapq.heappush(free, (done, worker))
    return last


def simulated(plan, table, draws):
    """Rows of (workers, way, units, share computed again, filling, time lost without and with a slow worker)."""
    whole, fixed = seconds(plan, table), FIXED * table[LANES] / LANES
    for workers in WORKERS:
        ways = {f"equal {k}": plan.shard(k * workers, 0.05) for k in EQUAL}
        ways |= {f"halved {k}": plan.units(workers, k) for k in HALVED} | {"the rule": plan.units(workers)}
        for way, parts in ways.items():
            if way.startswith("equal"):
                parts = sorted(parts, key=lambda part: -part.node_steps)
            costs = [seconds(part, table) + fixed for part in parts]
            lost = []
            for slow in (False, True):
                rng = np.random.default_rng(0)
                ends = [end(costs, workers, slow, NOISE, rng) for _ in range(draws)]
                lost.append(np.mean(ends) * (workers - slow / 2) / whole - 1)
            computed = sum(part.node_steps for part in parts)
            full = whole * computed / plan.node_steps
            filling = (sum(costs) - len(parts) * fixed - full) / whole * plan.node_steps / plan.n_steps / len(parts)
            again = computed / plan.node_steps - 1
            row = {"workers": workers, "way": way, "units": len(parts), "again": again, "filling": filling}
            yield row | {"lost": lost}


def time_to_cut(n, shards):
    """Seconds of cutting a large plan, the least of three."""
    plan, times = artificial_plan(n), {}
    for name, cut in {"shard": lambda: plan.shard(shards), "units": lambda: plan.units(shards)}.items():
        begins = []
        for _ in range(3):
            begin = time.perf_counter()
            cut()
            begins.append(time.perf_counter() - begin)
        times[name] = min(begins)
    return times


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(arguments)
    plans = {"artificial": artificial_plan(60)} if args.quick else dict(real_plans(args.data))
    table, draws = call_seconds(), 2 if args.quick else 50

    results = {}
    for name, plan in plans.items():
        results[name] = {"cuts": list(cuts(plan)), "simulated": list(simulated(plan, table, draws))}
        print(f"\n{name}: {len(plan.kept):,} images, {plan.node_steps:,} node-steps, {plan.n_steps} steps")
        print("  cut into   way           parts   computed again   largest over its part")
        for row in results[name]["cuts"]:
            over = "" if row["over"] is None else f"{row['over']:24.1%}"
            print(f"  {row['n']:8}   {row['way']:12}{row['parts']:7}{row['again']:17.2%}{over}")
        print("   workers   way           units   computed again   filling     lost   one slow")
        for row in results[name]["simulated"]:
            lost, slow = row["lost"]
            begin = f"  {row['workers']:8}   {row['way']:12}{row['units']:7}{row['again']:17.2%}{row['filling']:10.2f}"
            print(f"{begin}{lost:9.1%}{slow:11.1%}")
    n, shards = (1_000, 8) if args.quick else (100_000, 128)
    times = time_to_cut(n, shards)
    print(f"\n{n:,} prompts for {shards}: shard {times['shard']:.3f} s, units {times['units']:.3f} s")
    if args.json:
        document = {"sets": results, "seconds_to_cut": times, "prompts": n, "shards": shards}
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
