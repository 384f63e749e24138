"""Peak memory of the device for few prompts and for many: what grows with their number."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import torch
from bench import Bench
from measure import synchronize
from plans import made_up

import hsd
from hsd.models import Batch
from hsd.replay.catch_up import catch_up_of

NAME = "memory"

SLACK = 64 << 20
"""Bytes of difference allowed for the allocator's rounding and the encoder's last batch."""


class _Enough(Exception):
    """Raised by the progress callback."""


def run(bench: Bench) -> None:
    """Peak of encoding and of the first calls, beyond the weights. No image is finished in these few calls."""
    args, report, model = bench.args, bench.report, bench.decoder
    few, many = (6, 24) if args.small else (500, 10_000)
    calls = min(30, args.steps - 1)
    report.say(f"\n== {NAME}: {model.name}, batch {args.batch_size}, first {calls} calls; bytes beyond the weights")
    report.say(f"{'prompts':>8}{'saved':>8}{'slots':>7}{'bytes a slot':>14}{'tables':>9}{'peak MiB':>10}")
    rows: list[dict[str, Any]] = []
    for n in (few, few, many):  # the first is a warm-up: libraries take their workspaces once
        plan = made_up(n).plan(args.tau, args.steps)
        peak = _peak(bench, plan, calls)
        slot = _slot_bytes(bench, plan)
        slots = plan.program(args.batch_size).n_slots
        tables = 4 * 8 * args.batch_size * 1024  # of a chunk of calls
        row = {"prompts": n, "savings": plan.savings, "slots": slots, "bytes_a_slot": slot, "tables": tables}
        rows.append({**row, "peak": peak})
    for row in rows[1:]:
        peak = "-" if row["peak"] is None else f"{row['peak'] / 2**20:.1f}"
        report.say(
            f"{row['prompts']:8}{row['savings']:8.1%}{row['slots']:7}{row['bytes_a_slot']:14,}{row['tables']:9,}{peak:>10}"
        )
    report.add(NAME, "rows", rows[1:])
    if not bench.on_gpu:
        report.skip(f"{NAME}: the peak", "the runs were made, but a CPU's memory is not counted")
        return
    _, small, large = rows
    allowed = (large["slots"] - small["slots"]) * large["bytes_a_slot"] + large["tables"] + SLACK
    report.check(f"{NAME}: bytes that {many - few} more prompts take", large["peak"] - small["peak"], allowed)


def _peak(bench: Bench, plan: hsd.Plan, calls: int) -> int | None:
    seen = 0

    def progress(stage: str, fraction: float) -> None:
        nonlocal seen
        seen += stage == "denoise" and fraction > 0.0
        if seen >= calls:
            raise _Enough

    synchronize(bench.device)
    bench.empty()
    before = 0
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
        before = torch.cuda.memory_allocated(bench.device)
    with contextlib.suppress(_Enough):
        for _ in hsd.stream(plan, bench.decoder, batch_size=bench.args.batch_size, progress=progress):
            pass
    synchronize(bench.device)
    return torch.cuda.max_memory_allocated(bench.device) - before if bench.on_gpu else None


def _slot_bytes(bench: Bench, plan: hsd.Plan) -> int:
    """State in float32, and the conditioning that differs between prompts: two rows of it with catch-up."""
    model = bench.decoder
    state = 4 * model.sampler(bench.args.steps).n_state * math.prod(model.latent_shape())
    rows = model.encode(Batch(["a prompt"], np.zeros(1, np.int64))).rows
    own = sum(row.nbytes for row in rows.values() if isinstance(row, torch.Tensor))
    return state + (2 if catch_up_of(plan, model) else 1) * own
