"""Digests of HSD's results for fixed inputs: trees, plans, programs, sampler tables, images of every family.

    python tools/digests.py > before.txt    # at one commit
    python tools/digests.py > after.txt     # at another, on the same machine
    diff before.txt after.txt

A change that is not meant to change results gives the same digests. They hold for one machine: another processor may
round the last bit of a distance differently. It takes about a minute.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import torch

import hsd
from families import FAMILIES, Family
from families.measure import with_scheduler
from hsd import _core
from hsd._core import LINKAGES, SCHEDULES
from hsd.demo import PROMPTS

TEXTS = ("a cat", "a cat on a mat", "a dog", "the sea at night", "the sea by day", "a cat")


def digest(*parts: Any) -> str:
    """A digest of arrays, tensors, images and texts, in order."""
    hash = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().contiguous().view(torch.uint8).numpy() if part.ndim else part.item()
        if isinstance(part, np.ndarray):
            hash.update(f"{part.dtype} {part.shape}".encode())
            hash.update(np.ascontiguousarray(part).tobytes())
        elif hasattr(part, "tobytes"):
            hash.update(part.tobytes())
        elif isinstance(part, bytes):
            hash.update(part)
        else:
            hash.update(repr(part).encode())
    return hash.hexdigest()[:16]


def embeddings(n: int) -> np.ndarray:
    """(n, 24) float32: clusters, near duplicates and equal rows."""
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(n // 6, 24))[rng.integers(0, n // 6, n)] + 0.3 * rng.normal(size=(n, 24))
    rows[::50] = rows[1::50][: len(rows[::50])]
    return rows.astype(np.float32)


def trees() -> Iterator[tuple[str, str]]:
    """Trees: exact (with a whole and with half a matrix), approximate, and in every float type."""
    rows = embeddings(900)
    for linkage in LINKAGES:
        for name, exact, memory in (("whole", True, None), ("half", True, 3 * 900**2), ("approximate", False, 900**2)):
            tree = hsd.build_tree(rows, linkage, exact=exact, memory=memory, threads=2)
            yield f"tree {linkage} {name}", digest(tree.merges, tree.scores, tree.leaf_order, tree.exact)
        for dtype in (np.float16, np.float64):
            tree = hsd.build_tree(rows.astype(dtype), linkage)
            yield f"tree {linkage} {np.dtype(dtype)}", digest(tree.merges, tree.scores)
    for dtype in (torch.bfloat16, torch.float32):
        tree = hsd.build_tree(torch.from_numpy(rows).to(dtype))
        yield f"tree ward {dtype}", digest(tree.merges, tree.scores)


def plans() -> Iterator[tuple[str, str]]:
    """Plans, their files and texts, and their programs."""
    rows = embeddings(240)
    prompts = [f"prompt {i % 200}" for i in range(240)]
    for linkage, schedule in itertools.product(LINKAGES, SCHEDULES):
        plan = hsd.compile(prompts, budget=0.4, embeddings=rows, steps=12, linkage=linkage, schedule=schedule, seeds=5)
        with tempfile.TemporaryDirectory() as folder:
            plan.save(Path(folder) / "plan")
            file = (Path(folder) / "plan").read_bytes()
        parts = [plan.segments, plan.phi, plan.fingerprint, plan.describe(), plan.counts(), plan.active(3), file]
        yield f"plan {linkage} {schedule}", digest(*parts)
        for n, shard in enumerate(plan.shard(5)):
            yield f"plan {linkage} {schedule} shard {n}", digest(shard.segments, shard.kept, shard.node_steps)
    plan = hsd.compile(prompts, 1.0, steps=12, settings=[{"width": 64 * (1 + i % 3)} for i in range(240)])
    yield "plan settings", digest(plan.segments, plan.fingerprint, plan.request["settings"])
    slots = plan._core.least_slots() + 3
    for order, size, limit, mixed in itertools.product(("depth", "breadth"), (1, 4, 16), (None, slots), (True, False)):
        program = plan.program(size, order, limit, mixed_steps=mixed)
        name = f"program {order} {size} {'all' if limit is None else 'few'} slots {'mixed' if mixed else 'one step'}"
        yield name, digest(program.calls, program.lanes, program.describe(), program.n_slots, program.lower_bound)
    for schedule in SCHEDULES:
        yield f"schedule {schedule}", digest(_core.schedule_shape(schedule, 37))


def families() -> Iterator[tuple[str, str]]:
    """Sampler tables and images of every pipeline family in miniature, and of its schedulers."""
    for family in FAMILIES:
        for settings in (family.guided, family.unguided, {**family.guided, **(family.negative or {})}):
            yield from of_family(family, settings)


def of_family(family: Family, settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Digests of a family with some settings, with each of its schedulers."""
    for scheduler in (None, *family.schedulers):
        pipe = with_scheduler(family, scheduler)
        model = hsd.load(family.loadable(pipe), **family.settings(settings, family.size))
        name = f"{type(model).__name__} {settings} {scheduler}"
        table = model.sampler(family.steps)
        yield f"{name} table", digest(*(getattr(table, field.name) for field in fields(table)))
        plan = hsd.compile(TEXTS, 0.4, model=model, steps=family.steps, seeds=3)
        yield f"{name} plan", digest(plan.segments, plan.tree.scores, plan.phi)
        images = {image.index: image for image in hsd.stream(plan, model, batch_size=3)}
        yield f"{name} images", digest(*(np.asarray(images[i].pil) for i in sorted(images)))


def demo() -> Iterator[tuple[str, str]]:
    """Images of the bundled model."""
    prompts = Path(PROMPTS).read_text().splitlines()[:24]
    model = hsd.load("demo", device="cpu")
    for tau, noise, order in ((0.0, "independent", "depth"), (0.5, "independent", "breadth"), (0.3, "shared", "depth")):
        plan = hsd.compile(prompts, tau, model=model, steps=10, noise=noise)
        with tempfile.TemporaryDirectory() as folder:
            hsd.generate(plan, model, folder, batch_size=5, order=order, progress=False)
            lines = sorted((Path(folder) / "metadata.jsonl").read_text().splitlines())
            files = [path.read_bytes() for path in sorted(Path(folder).glob("*.png"))]
        yield f"demo tau {tau} {noise} {order}", digest(*files, *lines)


def main() -> None:
    """Print one digest per line."""
    torch.set_num_threads(1)
    for part in (trees, plans, families, demo):
        for name, value in part():
            print(f"{value}  {name}", flush=True)


if __name__ == "__main__":
    main()
