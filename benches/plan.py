"""Time and memory of everything between a tree and the calls of a program, for a million prompts by default.

    python benches/plan.py [--prompts 1000000] [--steps 40] [--tree random] [--batch-size 32] [--json FILE]

The tree is artificial: random merges with heights like those of Ward's linkage, or one of the extreme shapes. Seconds
are the least of --repeats. Memory is the peak of the resident set during a stage above what it was before, after free
memory was returned to the system (Linux: VmHWM, reset through /proc/self/clear_refs). For comparison, the paper's
Algorithm 1 goes through a smaller tree level by level in plain Python. It makes the same batches, does not check them,
and keeps all of them in memory. Every result is checked.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import random
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

import hsd
from hsd import _core


def random_merges(n, rng):
    """Any two clusters merge next; few are far apart."""
    draw = random.Random(int(rng.integers(2**32)))
    nodes = list(range(n))
    merges = np.empty((n - 1, 2), np.int64)
    for merge in range(n - 1):
        a = draw.randrange(len(nodes))
        nodes[a], nodes[-1] = nodes[-1], nodes[a]
        first = nodes.pop()
        b = draw.randrange(len(nodes))
        merges[merge] = first, nodes[b]
        nodes[b] = n + merge
    return merges, np.sort(0.45 * rng.lognormal(0.0, 0.7, n - 1))


def chain_merges(n, rng):
    """Leaf after leaf joins one cluster."""
    merge = np.arange(n - 1)
    return np.stack([np.where(merge == 0, 0, n + merge - 1), merge + 1], axis=1), (merge + 1) / n


def caterpillar_merges(n, rng):
    """Pairs of leaves join one cluster."""
    pairs = np.arange(n // 2 * 2).reshape(-1, 2)
    legs = [*range(n, n + len(pairs)), *([n - 1] if n % 2 else [])]
    merge = np.arange(len(legs) - 1)
    spine = np.stack([np.where(merge == 0, legs[0], n + len(pairs) + merge - 1), legs[1:]], axis=1)
    scores = np.concatenate([np.full(len(pairs), 0.2), 0.3 + 0.7 * merge / n])
    return np.concatenate([pairs, spine]), scores


def equal_merges(n, rng):
    """All merges at one height: a star."""
    return random_merges(n, rng)[0], np.full(n - 1, 0.5)


TREES = {"random": random_merges, "chain": chain_merges, "caterpillar": caterpillar_merges, "equal": equal_merges}


def memory(field):
    """Megabytes of the resident set: now (VmRSS) or at most (VmHWM); None without /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) / 1000


def measured(work, repeats):
    """The result of ``work``, with the least of its seconds and the peak of memory of its first run."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    if before := memory("VmRSS"):
        Path("/proc/self/clear_refs").write_text("5")
    seconds, extra = [], None
    for repeat in range(repeats):
        result = None  # free the previous result before the next run
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
        if repeat == 0 and before:
            extra = memory("VmHWM") - before
    return result, {"seconds": min(seconds), "megabytes": extra}


def algorithm1(tree, phi, batch_size):
    """Batches of (cluster, latent read, latent written), one level per step: clusters that are too high are split."""
    n, merges, heights = tree.n_leaves, tree.merges.tolist(), tree.heights.tolist()
    active, batches, latents = [(2 * n - 2, 0, 0)], [], 1
    for threshold in phi.tolist():
        stack, active = [(node, target, target) for node, _, target in active], []
        while stack:
            node, source, target = stack.pop()
            if node >= n and heights[node - n] >= threshold:
                first, second = merges[node - n]
                stack += [(first, source, target), (second, source, latents)]
                latents += 1
            else:
                active.append((node, source, target))
        batches += [active[i : i + batch_size] for i in range(0, len(active), batch_size)]
    return batches


def make_tree(shape, n, seed):
    merges, scores = TREES[shape](n, np.random.default_rng(seed))
    return _core.Tree.from_merges(merges, np.ascontiguousarray(scores))


def replay(program):
    """Filled lanes of all calls, chunk by chunk."""
    return sum(int(np.count_nonzero(chunk["segment"] >= 0)) for chunk in program.chunks())


def stages(tree, phi, args, folder):
    """Name and measurements of each stage, checked."""
    n, table = tree.n_leaves, {}

    def stage(name, work):
        result, table[name] = measured(work, args.repeats)
        return result

    core = stage("compile", lambda: _core.Plan.compile(tree, phi))
    closed_form = [1 + np.count_nonzero(tree.heights >= threshold) for threshold in phi]
    assert core.counts().tolist() == closed_form
    request = {"tau": 1.0, "steps": len(phi), "noise": "independent", "linkage": tree.linkage, "encoder": "none"}
    plan = hsd.Plan(core, [f"prompt number {i}" for i in range(n)], np.arange(n), request)

    for order in ("depth", "breadth"):
        for max_slots in (None, args.max_slots):
            limit = "" if max_slots is None else f", {max_slots} slots"
            name = f"program, {order}{limit}"
            program = stage(name, lambda o=order, m=max_slots: plan.program(args.batch_size, o, m))
            assert program.n_calls >= program.lower_bound
            assert max_slots is None or program.n_slots <= max_slots
            table[name] |= {"calls": program.n_calls, "slots": program.n_slots}
    program = plan.program(args.batch_size)
    assert stage("all chunks of calls", lambda: replay(program)) == plan.node_steps

    keep = np.random.default_rng(1).permutation(n)[: n // 2 + 1]
    pruned = stage("prune to half", lambda: plan.prune(keep))
    assert pruned.kept.tolist() == sorted(keep.tolist())
    for count in (8, 64):
        shards = stage(f"shard in {count}", lambda c=count: plan.shard(c))
        assert sum(len(shard) for shard in shards) == n
    path = Path(folder) / "plan.safetensors"
    stage("save", lambda: plan.save(path))
    loaded = stage("load", lambda: hsd.Plan.load(path))
    assert (loaded.segments == plan.segments).all()
    assert loaded.prompts == plan.prompts
    fingerprint = stage("fingerprint", lambda: plan.fingerprint)
    assert loaded.fingerprint == fingerprint == shards[0].fingerprint
    return plan, table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--tree", choices=TREES, default="random")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-slots", type=int, default=256)
    parser.add_argument("--baseline-prompts", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    args = parser.parse_args()

    phi = _core.schedule_shape("linear", args.steps)
    with tempfile.TemporaryDirectory() as folder:
        plan, table = stages(make_tree(args.tree, args.prompts, args.seed), phi, args, folder)

    small = make_tree(args.tree, args.baseline_prompts, args.seed)
    batches, walk = measured(lambda: algorithm1(small, phi, args.batch_size), args.repeats)
    ours, both = measured(
        lambda: _core.Plan.compile(small, phi).program(args.batch_size, "breadth").n_calls, args.repeats
    )
    assert sum(map(len, batches)) == small.node_steps(phi)
    ratio = walk["seconds"] / both["seconds"]

    device = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(
        f"{args.prompts:,} prompts x {args.steps} steps, {args.tree} tree, batch {args.batch_size}: "
        f"{len(plan.segments):,} segments, {plan.node_steps:,} node-steps, {plan.savings:.1%} saved; {device}"
    )
    print(f"{'':28}{'seconds':>10}{'MB more':>10}{'calls':>14}{'slots':>12}")
    for name, row in table.items():
        megabytes = "-" if row["megabytes"] is None else f"{row['megabytes']:.0f}"
        figures = f"{row['calls']:>14,}{row['slots']:>12,}" if "calls" in row else ""
        print(f"{name:28}{row['seconds']:10.3f}{megabytes:>10}{figures}")
    print(
        f"{args.baseline_prompts:,} prompts: Algorithm 1 in Python {walk['seconds']:.3f} s ({len(batches):,} calls), "
        f"compile and program {both['seconds']:.3f} s ({ours:,} calls): {ratio:.1f}x"
    )
    if args.json:
        document = {
            "device": device,
            "date": date.today().isoformat(),
            "command": " ".join(["python", *sys.argv]),
            "arguments": vars(args),
            "plan": {"segments": len(plan.segments), "node_steps": plan.node_steps, "savings": plan.savings},
            "results": table,
            "baseline": {"prompts": args.baseline_prompts, "algorithm1": walk, "ours": both, "ratio": ratio},
        }
        Path(args.json).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
