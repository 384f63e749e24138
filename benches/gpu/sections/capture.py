"""What a CUDA graph costs, and when it pays: its capture, its memory, and what a replay saves, by number of lanes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import shapes
import torch
from bench import Bench
from measure import alone, apart, host_alone, synchronize
from torch import Tensor

import hsd
from hsd.models.encode import remember

NAME = "capture"

CALLS = 5
"""Calls of which the host's time is measured."""

PROMPTS = 32
"""Of the run that is made twice."""


def run(bench: Bench) -> None:
    """A row per number of lanes, then one run made twice on the same model."""
    report, lanes = bench.report, [n for n in bench.args.lanes if n <= bench.args.batch_size]
    report.say(
        f"\n== {NAME}: {bench.model.name}; a capture, what a replay saves against launching each kernel, and the calls "
        "after which the capture has paid"
    )
    report.say(
        f"{'lanes':>6}{'eager ms':>10}{'of it host':>12}{'replay ms':>11}{'capture ms':>12}{'first ms':>10}"
        f"{'pays after':>12}{'pool MiB':>10}"
    )
    rows: list[dict[str, Any]] = []
    pool = torch.cuda.graph_pool_handle() if bench.on_gpu else None
    held: list[Callable[[], None]] = []  # graphs keep their memory as long as they are there, as in a run
    for n in lanes:
        if bench.left() < 20 * bench.args.alone:
            report.skip(f"{NAME}, {n} lanes and more", "no time left")
            break
        rows.append(_row(bench, n, pool, held))
        report.add(NAME, "rows", rows)
        _print(bench, rows[-1])
    held.clear()
    bench.empty()
    if not bench.on_gpu:
        report.skip(f"{NAME}: captures and replays", "there are no CUDA graphs on a CPU")
    _twice(bench)


def pays_after(eager: float, replay: float, capture: float) -> float | None:
    """Calls whose replays save what a capture took; None if they save nothing."""
    return capture / (eager - replay) if replay < eager else None


def _row(bench: Bench, lanes: int, pool: Any, held: list[Callable[[], None]]) -> dict[str, Any]:
    """Measure one number of lanes. The graphs share one pool, as those of an executor do."""
    latents, timesteps, rows = shapes.inputs(bench.model, lanes, bench.args.steps)

    @torch.no_grad()
    def work() -> Tensor:
        return bench.model.denoise(latents, timesteps, rows)[0]

    row: dict[str, Any] = {"lanes": lanes, "eager_seconds": alone(work, bench.device, bench.args.alone / 2)}
    row["host_seconds"] = host_alone(work, bench.device, CALLS)
    if not bench.on_gpu:
        return row
    expected = work().clone()
    bench.empty()
    reserved = torch.cuda.memory_reserved(bench.device)
    synchronize(bench.device)
    start = time.perf_counter()
    made = bench.capture(f"{NAME}, {lanes} lanes", work, pool=pool, warm=0)  # the calls above were the warm-up
    if made is None:
        return row
    synchronize(bench.device)
    row["capture_seconds"] = time.perf_counter() - start
    replay, output = made
    held.append(replay)
    start = time.perf_counter()
    replay()
    synchronize(bench.device)
    row["first_seconds"] = time.perf_counter() - start  # it uploads the graph
    bench.report.check(f"{NAME}, {lanes} lanes: the replay differs", apart(output, expected), 3e-2)
    bench.empty()
    row["pool_bytes"] = torch.cuda.memory_reserved(bench.device) - reserved
    row["replay_seconds"] = alone(replay, bench.device, bench.args.alone / 2)
    row["pays_after_calls"] = pays_after(row["eager_seconds"], row["replay_seconds"], row["capture_seconds"])
    return row


def _print(bench: Bench, row: dict[str, Any]) -> None:
    def ms(name: str, width: int) -> str:
        return f"{row[name] * 1e3:{width}.2f}" if name in row else f"{'-':>{width}}"

    after = row.get("pays_after_calls")
    pays = f"{after:.1f}" if after is not None else "never" if "replay_seconds" in row else "-"
    pool = f"{row['pool_bytes'] / 2**20:.1f}" if "pool_bytes" in row else "-"
    bench.report.say(
        f"{row['lanes']:6}{ms('eager_seconds', 10)}{ms('host_seconds', 12)}{ms('replay_seconds', 11)}"
        f"{ms('capture_seconds', 12)}{ms('first_seconds', 10)}{pays:>12}{pool:>10}"
    )


# ------------------------------------------------------------------------------- twice


@dataclass
class Captures:
    """Captures of a run, whoever made them."""

    made: int = 0
    seconds: float = 0.0
    """Between beginnings and ends, without waiting for the device and emptying caches before."""


@contextlib.contextmanager
def counted() -> Iterator[Captures]:
    """Count the captures inside the context."""
    found = Captures()
    began: list[float] = []
    begin, end = torch.cuda.CUDAGraph.capture_begin, torch.cuda.CUDAGraph.capture_end

    def capture_begin(graph: torch.cuda.CUDAGraph, *args: Any, **kwargs: Any) -> None:
        began.append(time.perf_counter())
        begin(graph, *args, **kwargs)

    def capture_end(graph: torch.cuda.CUDAGraph) -> None:
        end(graph)
        found.made += 1
        found.seconds += time.perf_counter() - began[-1]

    with (
        mock.patch.object(torch.cuda.CUDAGraph, "capture_begin", capture_begin),
        mock.patch.object(torch.cuda.CUDAGraph, "capture_end", capture_end),
    ):
        yield found


def _twice(bench: Bench) -> None:
    """The same run twice on one loaded model, and without graphs: does the second capture again?"""
    args, report, model = bench.args, bench.report, bench.decoder
    prompts = bench.sets[0]
    plan = hsd.compile(prompts.prompts[:PROMPTS], args.tau, embeddings=prompts.embeddings[:PROMPTS], steps=args.steps)
    report.say(f"{len(plan)} prompts of {prompts.name}, to images: {'':12}{'s':>9}{'captures':>10}{'s in them':>11}")
    rows: list[dict[str, Any]] = []
    for name, graphs in (("eager", False), ("eager", False), ("graphs, first run", True), ("graphs, second run", True)):
        if bench.left() < 3 * max([row["seconds"] for row in rows], default=0.0):
            report.skip(f"{NAME}, {name}", "no time left")
            break
        remember(plan, model.encoding_key(), shapes.conditioning(model, plan.prompts, plan.seeds))
        synchronize(bench.device)
        start = time.perf_counter()
        with counted() as captures:
            images = sum(1 for _ in hsd.stream(plan, model, batch_size=args.batch_size, cuda_graphs=graphs))
            synchronize(bench.device)
        row = {"run": name, "seconds": time.perf_counter() - start, "captures": captures.made}
        rows.append({**row, "capture_seconds": captures.seconds})
        report.check(f"{NAME}, {name}: images missing", abs(images - len(plan)), 0)
    for row in rows[1:]:  # the first run had the one-time work
        report.say(f"{'':9}{row['run']:32}{row['seconds']:9.3f}{row['captures']:10}{row['capture_seconds']:11.3f}")
    report.add(NAME, "twice", rows[1:])
