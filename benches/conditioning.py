"""Host memory and time of conditioning at the sizes of real models: rows stored, and the mean of every cluster.

    python benches/conditioning.py [--prompts 10000] [--models flux sd3 sdxl ...] [--memory-gib 1] [--json FILE]

Needs `pip install .[bench]`. The prompts are expanded from templates and planned at tau = 1; the rows have the shape
and dtype of the model's, but artificial values, so that no text encoder is measured. The means are computed as in the
executor, in the order of a depth-first program of 16 lanes, and every mean is checked. For comparison, `whole` keeps
all rows in memory and averages them there, if they fit into --whole-gib. Memory is the peak of the resident set above
what it was before (Linux); pages of the temporary file that the system caches are not counted, and are freed when
other processes need memory. Each case runs in a separate process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prompt_sets import prompts as expanded_prompts
from tree_case import peak, reset_peak, resident

import hsd
from hsd.conditioning.rows import Conditioning
from hsd.models import Batch, Encoded
from hsd.models.encode import encode

TOKENS_PER_WORD = 1.4


@dataclass(frozen=True)
class Model:
    """Shapes of one prompt's rows; the token row is as long as the text where the denoiser reads it under a mask."""

    tokens: tuple[int, int] | None
    vector: int
    masked: bool = False


# Shapes of the released models, in bfloat16.
MODELS = {
    "flux": Model((512, 4096), 768),
    "sd3": Model((77 + 256, 4096), 2048),
    "sdxl": Model((77, 2048), 1280),
    "pixart-sigma": Model((300, 4096), 0, masked=True),
    "kandinsky-2.2": Model(None, 1280),
}


class Encoder:
    """The part of a model that `encode` uses: rows of the right size, filled with one number per prompt."""

    encode_batch = 16
    encodes_seeds = False

    def __init__(self, model: Model) -> None:
        self.model = model

    def encode(self, batch: Batch) -> Encoded:
        values = [float(1 + hash_of(prompt) % 64) for prompt in batch.prompts]  # exact in bfloat16
        rows: dict[str, Any] = {}
        if self.model.tokens is not None:
            length, width = self.model.tokens
            lengths = [int(TOKENS_PER_WORD * len(prompt.split())) for prompt in batch.prompts]
            rows["tokens"] = [
                torch.full((min(own, length) if self.model.masked else length, width), value, dtype=torch.bfloat16)
                for own, value in zip(lengths, values, strict=True)
            ]
            if not self.model.masked:
                rows["tokens"] = torch.stack(rows["tokens"])
        if self.model.vector:
            rows["vector"] = torch.stack([torch.full((self.model.vector,), v, dtype=torch.bfloat16) for v in values])
        return Encoded(rows, torch.ones(len(batch), 1))

    def shared(self) -> dict[str, Any]:
        return {}


def hash_of(prompt: str) -> int:
    return sum(prompt.encode())


def compute_means(plan: hsd.Plan, conditioning: Conditioning, values: np.ndarray) -> tuple[int, int]:
    """Compute the mean of every segment in the order of a run; return the number of means and of rows read."""
    segments, leaves = plan.segments, plan.tree.leaf_order
    means = rows = 0
    name = next(iter(conditioning.fields))
    for chunk in plan.program(16).chunks(1024):
        for entry in chunk[chunk["begins"] & (chunk["segment"] >= 0)]:
            segment = segments[entry["segment"]]
            members = leaves[segment["leaf_begin"] : segment["leaf_end"]]
            mean = conditioning.mean(members)
            found = float(mean[name].flatten()[0])
            expected = float(values[members].mean())
            assert abs(found - expected) <= 2**-7 * expected, (found, expected)  # bfloat16 has eight bits
            means, rows = means + 1, rows + len(members)
    return means, rows


def run(case: dict[str, Any]) -> dict[str, Any]:
    """One model with one limit, in a fresh process."""
    torch.set_num_threads(os.cpu_count() or 1)
    prompts = list(islice(expanded_prompts(seed=0), case["prompts"]))
    plan = hsd.compile(prompts, 1.0, steps=40)
    values = np.array([1.0 + hash_of(prompt) % 64 for prompt in prompts])
    before, how = resident(), reset_peak()
    start = time.perf_counter()
    variant = np.zeros(len(prompts), dtype=np.int64)
    conditioning = encode([Encoder(MODELS[case["model"]])], variant, prompts, plan.seeds, memory=case["memory"])  # type: ignore[list-item]
    put = time.perf_counter() - start
    start = time.perf_counter()
    means, rows = compute_means(plan, conditioning, values)
    return {
        **case,
        "bytes": sum(field.rows.nbytes for field in conditioning.fields.values()),
        "on_disk": conditioning.spool.on_disk,
        "peak": peak(how) - before,
        "put_seconds": put,
        "mean_seconds": time.perf_counter() - start,
        "means": means,
        "rows_read": rows,
        "node_steps": plan.node_steps,
    }


def in_new_process(case: dict[str, Any]) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, case).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--memory-gib", type=float, default=1.0, help="conditioning_memory")
    parser.add_argument("--whole-gib", type=float, default=8.0, help="largest set that is also kept whole")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"{args.prompts:,} prompts, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{'':16}{'rows':>10}{'on disk':>10}{'peak':>10}{'store':>10}{'means':>9}{'of rows':>11}{'a mean':>10}")
    results = []
    for name in args.models:
        cases = [("limited", int(args.memory_gib * 2**30)), ("whole", 1 << 60)]
        for kind, memory in cases:
            if kind == "whole" and results[-1]["bytes"] > args.whole_gib * 2**30:
                print(f"  whole         would take {results[-1]['bytes'] / 2**30:.1f} GiB")
                continue
            result = in_new_process({"model": name, "kind": kind, "prompts": args.prompts, "memory": memory})
            results.append(result)
            sizes = "".join(f"{result[key] / 2**30:>6.2f} GiB" for key in ("bytes", "on_disk", "peak"))
            label = name if kind == "limited" else "  whole"
            print(
                f"{label:16}{sizes}{result['put_seconds']:>8.1f} s{result['means']:>9,}{result['rows_read']:>11,}"
                f"{1e3 * result['mean_seconds'] / result['means']:>7.1f} ms",
                flush=True,
            )
    if args.json:
        document = {
            "date": date.today().isoformat(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "memory_gib": args.memory_gib,
            "results": results,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
