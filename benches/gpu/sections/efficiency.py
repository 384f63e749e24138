"""The denoiser's share of the denoising time: node-steps at its best speed / wall time.

A plan with few clusters in its first steps has calls that cannot be full. ``of calls`` allows for that: it uses the
denoiser's time for the same calls, full or not.
"""

from __future__ import annotations

import time
from typing import Any

import shapes
from bench import Bench, Driven, drive

import hsd
from hsd.conditioning.rows import Conditioning

NAME = "efficiency"

FULL = 0.95
"""Share of lanes filled from which calls count as full."""


def run(bench: Bench) -> None:
    """One row per prompt set and mode: ``eager``, ``graphs`` (replayed), or ``compile`` (and replayed)."""
    args, report, lanes = bench.args, bench.report, bench.args.batch_size
    report.say(
        f"\n== {NAME}: {bench.decoder.name}, batch {lanes}, tau {args.tau}, {args.steps} steps, {args.seconds} s a row "
        "at most. Efficiency: node-steps x best seconds a lane (the denoiser alone at this batch) / wall time"
    )
    report.say(
        f"{'set':14}{'prompts':>8}{'saved':>8} {'mode':9}{'calls':>7}{'filled':>8}{'start s':>9}{'ms per lane':>13}"
        f"{'alone':>9}{'efficiency':>12}{'of calls':>10}"
    )
    rows: list[dict[str, Any]] = []
    for mode in args.modes:  # one mode at a time: compiling takes long
        if mode == "compile" and (why := bench.why_not_compiled()):
            report.skip(f"{NAME}, compile", why)
            continue
        began = time.perf_counter()
        best = bench.best_row([lanes], compiled=mode == "compile")
        if mode == "compile":
            report.say(f"compiled and measured alone in {time.perf_counter() - began:.1f} s")
            report.add(NAME, "seconds_to_compile_and_measure", time.perf_counter() - began)
        mine: list[dict[str, Any]] = []
        for prompts in bench.sets:
            if bench.left() < 2 * args.seconds:
                report.skip(f"{NAME}, {prompts.name}, {mode}", "no time left")
                continue
            plan = prompts.plan(args.tau, args.steps)
            conditioning = shapes.conditioning(bench.decoder, plan.prompts, plan.seeds)
            driven = _driven(bench, plan, conditioning, mode, prompts.name)
            if driven is None:
                continue
            mine.append(_row(bench, plan, driven, {"set": prompts.name, "mode": mode}, best))
            report.add(NAME, "rows", rows + mine)
        if mine and bench.left() > 5 * args.alone:
            again = bench.best_row([lanes], compiled=mode == "compile")
            for row in mine:  # the best of both: a device that warms up slows down
                row["alone_seconds_per_lane"] = min(row["alone_seconds_per_lane"], again)
                row["efficiency"] = row["alone_seconds_per_lane"] * row["node_steps"] / row["seconds"]
            final = ", ".join(f"{row['set']} {row['efficiency']:.1%}" for row in mine)
            report.say(f"{'':14}{mode}: alone once more {again * 1e3:.3f} ms per lane; by the better of both: {final}")
        rows += mine
        report.add(NAME, "rows", rows)
    if not bench.on_gpu:
        report.say("on a CPU there are no graphs: both modes run the same calls")


def _driven(bench: Bench, plan: hsd.Plan, conditioning: Conditioning, mode: str, name: str) -> Driven | None:
    """A bounded run, checked; None if there was nothing left after the warm-up."""
    report = bench.report
    driven = drive(bench, plan, conditioning, mode, bench.args.seconds)
    finite = sum(int((~latent.isfinite()).sum()) for latent in driven.latents)
    report.check(f"{NAME}, {name}, {mode}: values that are not finite", finite, 0)
    if driven.whole:
        left = plan.node_steps - driven.warm_steps - driven.node_steps
        report.check(f"{NAME}, {name}, {mode}: node-steps not run", abs(left), 0)
    if not driven.calls:
        report.skip(f"{NAME}, {name}, {mode}", "the plan ended within the warm-up")
        return None
    return driven


def _row(bench: Bench, plan: hsd.Plan, driven: Driven, row: dict[str, Any], best: float) -> dict[str, Any]:
    """The row of a run; it is printed, too."""
    pace, calls = driven.seconds / driven.node_steps, driven.calls.total()
    filled = driven.node_steps / (calls * bench.args.batch_size)
    # With compile, calls that are not full run uncompiled; if nearly all are full, both shares are nearly equal.
    measured = row["mode"] != "compile" and filled < FULL
    row |= {
        "prompts": len(plan),
        "savings": plan.savings,
        "whole": driven.whole,
        "calls": calls,
        "node_steps": driven.node_steps,
        "seconds": driven.seconds,
        "start_seconds": driven.start,
        "alone_seconds_per_lane": best,
        "efficiency": best / pace,
        "of_calls": bench.calls_alone(driven.calls) / driven.seconds if measured else None,
        "filled": filled,
        "share_of_peak": bench.share_of_peak(pace),
    }
    of_calls = "" if row["of_calls"] is None else f"{row['of_calls']:.1%}"
    cut = "" if driven.whole else "  (cut)"
    bench.report.say(
        f"{row['set']:14}{len(plan):8}{plan.savings:8.1%} {row['mode']:9}{calls:7}{filled:8.1%}"
        f"{driven.start:9.2f}{pace * 1e3:13.3f}{best * 1e3:9.3f}{row['efficiency']:12.1%}{of_calls:>10}{cut}"
    )
    return row
