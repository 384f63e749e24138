"""What the loop does to the device: waits of the host, blocking copies, launches, and how busy the GPU is."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import shapes
from bench import Bench, take
from measure import synchronize
from torch.profiler import ProfilerActivity, profile, record_function

NAME = "trace"

WINDOW = "hsd: calls"
"""Annotation around the calls that are counted."""

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cuStreamSynchronize", "cudaMemcpy")
"""Runtime functions that stop the host until the device is done."""

GRAPHS = ("cudaGraphLaunch", "cuGraphLaunch")

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def run(bench: Bench) -> None:
    """Counts over some calls in steady state, replayed as graphs and eager."""
    args, report = bench.args, bench.report
    for prompts in bench.sets:  # the first whose calls are full, or the last
        plan = prompts.plan(args.tau, args.steps)
        lanes = plan.program(args.batch_size).lanes[bench.warm : bench.warm + args.trace_calls]
        if lanes.min(initial=args.batch_size) == args.batch_size:
            break
    conditioning = shapes.conditioning(bench.decoder, plan.prompts, plan.seeds)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]
    report.say(
        f"\n== {NAME}: {bench.decoder.name}, {prompts.name}, {lanes.mean():.1f} lanes a call, after {bench.warm} "
        "calls, profiled, which slows the host"
    )
    with profile(activities=activities):  # its one-time setup must not be counted
        synchronize(bench.device)
    for mode in ("graphs", "eager"):
        executor = bench.executor(plan, conditioning, mode)
        with contextlib.closing(executor.run()) as calls:
            for _ in take(calls, bench.warm):
                pass
            synchronize(bench.device)
            with profile(activities=activities) as profiler:
                with record_function(WINDOW):
                    done = sum(1 for _ in take(calls, args.trace_calls))
                synchronize(bench.device)  # after the window: so that all of its kernels are in the trace
        if not done:
            report.skip(f"{NAME}, {mode}", "the plan ended within the warm-up")
            continue
        found = count(_events(profiler), done)
        report.add(NAME, mode, found)
        if bench.on_gpu:  # the loop's own thread was found in the trace
            seen = found["launches_a_call"] + found["graphs_a_call"]
            report.check(f"{NAME}, {mode}: calls without a launch", float(seen == 0), 0)
        _print(bench, mode, found)
    if not bench.on_gpu:
        report.skip(f"{NAME}: device events", "there are none on a CPU; the profiler ran")


def _events(profiler: profile) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return list(json.loads(path.read_text())["traceEvents"])


def count(events: list[dict[str, Any]], calls: int) -> dict[str, Any]:
    """What happened within the window, from a trace in Chrome's format.

    A thread that prepares calls may wait, so waits are counted by thread: ``waits`` are those of the window's thread.
    Copies to or from memory that is not pinned stop the calling thread, with any function.
    """
    window = next(e for e in events if e.get("name") == WINDOW and e.get("cat") == "user_annotation")
    begin, end, main = window["ts"], window["ts"] + window["dur"], window["tid"]
    runtime = [e for e in events if e.get("cat") in ("cuda_runtime", "cuda_driver") and begin <= e["ts"] < end]
    mine = [e for e in runtime if e["tid"] == main]
    enqueued = {e["args"]["correlation"]: e for e in runtime if "correlation" in e.get("args", {})}
    ours = [e for e in events if e.get("cat") in ON_DEVICE and e.get("args", {}).get("correlation") in enqueued]
    pageable = [e for e in ours if e["cat"] == "gpu_memcpy" and "Pageable" in e["name"]]
    blocking = [e for e in pageable if enqueued[e["args"]["correlation"]]["tid"] == main]
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in ours)
    busy, reached = 0.0, float("-inf")
    for start, stop in spans:
        busy += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    elapsed = reached - spans[0][0] if spans else 0.0
    launches = [e for e in mine if "LaunchKernel" in e["name"]]
    return {
        "calls": calls,
        "waits": dict(Counter(e["name"] for e in mine if e["name"] in WAITS)),
        "waits_of_other_threads": dict(Counter(e["name"] for e in runtime if e["name"] in WAITS and e["tid"] != main)),
        "blocking_copies": dict(Counter(e["name"] for e in blocking)),
        "launches_a_call": len(launches) / calls,
        "graphs_a_call": sum(e["name"] in GRAPHS for e in mine) / calls,
        "kernels_a_call": sum(e["cat"] == "kernel" for e in ours) / calls,
        "copies_a_call": sum(e["cat"] == "gpu_memcpy" for e in ours) / calls,
        "host_ms_a_call": (end - begin) / 1e3 / calls,
        "device_ms_a_call": elapsed / 1e3 / calls,
        "busy": busy / elapsed if elapsed else None,
    }


def _print(bench: Bench, mode: str, found: dict[str, Any]) -> None:
    say = bench.report.say
    waits, copies = sum(found["waits"].values()), sum(found["blocking_copies"].values())
    busy = "-" if found["busy"] is None else f"{found['busy']:.1%}"
    say(
        f"{mode:8}{found['calls']:4} calls: {waits} waits of the loop {found['waits'] or ''}, {copies} blocking copies "
        f"{found['blocking_copies'] or ''}; waits of other threads {found['waits_of_other_threads'] or 'none'}"
    )
    say(
        f"{'':8}a call: {found['graphs_a_call']:.1f} graphs, {found['launches_a_call']:.1f} launches, "
        f"{found['kernels_a_call']:.1f} kernels, {found['copies_a_call']:.1f} copies; host "
        f"{found['host_ms_a_call']:.2f} ms, device {found['device_ms_a_call']:.2f} ms, of which busy {busy}"
    )
