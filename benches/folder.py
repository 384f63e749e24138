"""What a durable folder of images costs: a run with and without fsync, opening a folder, and the digest of weights.

    python benches/folder.py [--prompts 64] [--steps 20] [--rounds 5] [--files 5000] [--folder .] [--json FILE]

Runs with and without fsync are paired, in alternating order, on the disk of --folder. A folder of --files images is
then opened as a continued run opens it, which compares every image with its digest; beside it, the same files are only
read.
Weights of 512 MiB are digested; beside it, SHA-256 of the same bytes. Runs on a CPU; all checks are asserted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import PIL.Image
import torch

import hsd
from hsd.demo import PROMPTS
from hsd.generation.folder import ImageFolder
from hsd.models.weights import digest
from hsd.prompts.files import read_prompts
from hsd.work import files


def runs(prompts, steps, rounds, base):
    """Seconds of runs with and without fsync, and of the fsyncs themselves, which run beside the denoiser."""
    model = hsd.load("demo", device="cpu", dtype=torch.float32)
    plan = hsd.compile(prompts, 1.0, model=model, steps=steps)
    sync, spent = files._sync, []

    def timed(handle):
        start = time.perf_counter()
        sync(handle)
        spent.append(time.perf_counter() - start)

    pairs = []
    try:
        for i in range(rounds + 1):
            pair = {}
            for kind in ("with", "without") if i % 2 else ("without", "with"):
                files._sync = timed if kind == "with" else lambda handle: None
                spent.clear()
                run = hsd.generate(plan, model, base / "run", progress=False)
                assert run.images == len(prompts)
                pair[kind] = run.seconds["total"]
                if kind == "with":
                    pair |= {"fsyncs": len(spent), "in_fsync": sum(spent)}
                shutil.rmtree(base / "run")
            pairs.append(pair)
    finally:
        files._sync = sync
    return pairs[1:]  # the first pair warms up


def opening(n, base):
    """Seconds to open a folder of ``n`` images of 64 pixels, and to read its files alone."""
    plan = hsd.compile([f"prompt {i}" for i in range(n)], 0.0, embeddings=np.ones((n, 2)), steps=2)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sync, files._sync = files._sync, lambda handle: None
    try:
        with ImageFolder(base / "many", plan, {"name": "none"}) as folder:
            for i in range(n):
                folder.add(i, PIL.Image.fromarray(noise), {})
    finally:
        files._sync = sync
    start = time.perf_counter()
    read = sum(len(path.read_bytes()) for path in (base / "many").glob("*.png"))
    middle = time.perf_counter()
    with ImageFolder(base / "many", plan, {"name": "none"}) as folder:
        assert len(folder.done()) == n
    return {"files": n, "bytes": read, "read": middle - start, "opened": time.perf_counter() - middle}


def weights(mib):
    """Seconds to digest weights, and of SHA-256 of their bytes."""
    weight = torch.randn(mib * 256, 1024)
    start = time.perf_counter()
    assert digest([weight])
    middle = time.perf_counter()
    hashlib.sha256(memoryview(weight.numpy()).cast("B")).digest()
    return {"mib": mib, "digest": middle - start, "sha256": time.perf_counter() - middle}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as base:
        pairs = runs(read_prompts(PROMPTS).prompts[: args.prompts], args.steps, args.rounds, Path(base))
        opened = opening(args.files, Path(base))
    digested = weights(args.mib)
    print(
        f"{args.prompts} images x {args.steps} steps, {args.rounds} pairs; {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, {platform.machine()}"
    )
    medians = {kind: statistics.median(pair[kind] for pair in pairs) for kind in ("with", "without", "in_fsync")}
    ratio = statistics.median(pair["with"] / pair["without"] for pair in pairs)
    print(f"a run without fsync   {medians['without']:8.2f} s")
    print(f"a run with fsync      {medians['with']:8.2f} s   {ratio - 1:+.1%} (median of the pairs)")
    print(f"  {pairs[0]['fsyncs']} fsyncs: {medians['in_fsync']:.2f} s in the threads that write")
    print(f"{opened['files']:,} files read    {opened['read']:8.2f} s")
    print(
        f"the folder opened     {opened['opened']:8.2f} s   {opened['files'] / opened['opened']:,.0f} images a second"
    )
    print(f"SHA-256 of {digested['mib']} MiB   {digested['sha256']:8.2f} s")
    print(
        f"digest of weights     {digested['digest']:8.2f} s   {digested['mib'] / 1024 / digested['digest']:.1f} GiB/s"
    )
    if args.json:
        document = {
            "date": date.today().isoformat(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "pairs": pairs,
            "opening": opened,
            "weights": digested,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
