"""What all sections use: arguments, device, model, prompt sets, and common measurements."""

from __future__ import annotations

import argparse
import contextlib
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import shapes
import torch
from measure import Report, alone, captured, peak_of, synchronize
from plans import PromptSet, prompt_sets
from torch import Tensor

import hsd
from hsd.conditioning.rows import Conditioning
from hsd.models import Adapter
from hsd.models.kandinsky22 import Kandinsky22
from hsd.replay.catch_up import catch_up_of
from hsd.replay.executor import Executor
from hsd.replay.graphs import Compiled


@dataclass
class Bench:
    """One run of the command."""

    args: argparse.Namespace
    device: torch.device
    report: Report
    started: float
    """Start of the run by ``time.perf_counter``; ``--limit`` counts from it."""

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return self.device.type == "cuda"

    @cached_property
    def model(self) -> Adapter:
        """The whole pipeline, built at its first use."""
        settings = {"prior_steps": 3} if self.args.small and self.args.model == "kandinsky" else {}
        return shapes.build(self.args.model, self.device, small=self.args.small, **settings)

    @cached_property
    def decoder(self) -> Adapter:
        """The model with cheap conditioning, for sections that do not measure the conditioning."""
        return shapes.without_prior(self.model) if isinstance(self.model, Kandinsky22) else self.model

    @cached_property
    def sets(self) -> list[PromptSet]:
        """The chosen prompt sets."""
        return prompt_sets(self.args.sets, self.args.data, self.args.prompts, self.report)

    @cached_property
    def flops(self) -> int:
        """Floating-point operations of one lane."""
        return shapes.flops(self.model)

    @cached_property
    def peak(self) -> float | None:
        """Peak operations per second of the device; None if not known."""
        if self.args.peak is not None:
            return float(self.args.peak) * 1e12
        return peak_of(torch.cuda.get_device_name(self.device)) if self.on_gpu else None

    def share_of_peak(self, seconds_per_lane: float) -> float | None:
        """Share of the device's peak; None if that is not known."""
        return None if self.peak is None else self.flops / seconds_per_lane / self.peak

    @property
    def warm(self) -> int:
        """Calls that are not timed: on a GPU, a size is captured at its third call."""
        return 6 if self.on_gpu else 2

    def left(self) -> float:
        """Seconds until ``--limit``."""
        limit = float("inf") if self.args.limit is None else float(self.args.limit)
        return limit - (time.perf_counter() - self.started)

    def why_not_compiled(self) -> str | None:
        """The reason not to compile from now on, or None."""
        if self.args.no_compile:
            return "--no-compile"
        if not self.on_gpu:
            return "nothing is compiled on a CPU"
        if self.left() < self.args.compile_seconds:
            return f"{self.left():.0f} s left, and compiling takes up to minutes"
        return None

    def denoise_alone(
        self, lanes: int, *, graph: bool = False, compiled: bool = False, seconds: float | None = None
    ) -> tuple[float, Tensor] | None:
        """Seconds per call of the denoiser by itself on fixed inputs, and its output; None if it cannot be captured.

        It is compiled as in the executor, so that both use the same compiled networks.
        """
        latents, timesteps, rows = shapes.inputs(self.model, lanes, self.args.steps)
        compiler = Compiled(self.model.modules(), lanes) if compiled else None

        @torch.no_grad()
        def work() -> Tensor:
            with compiler.for_lanes(lanes) if compiler is not None else contextlib.nullcontext():
                return self.model.denoise(latents, timesteps, rows)[0]

        made = self.capture(f"{self.model.name}, {lanes} lanes", work) if graph else (work, work())
        if made is None:
            return None
        run, output = made
        taken = alone(run, self.device, self.args.alone if seconds is None else seconds)
        return taken, output.clone()

    def best_row(self, lanes: list[int], *, compiled: bool = False, seconds: float | None = None) -> float:
        """The fewest seconds per lane, launched or as a graph, at any of these numbers of lanes."""
        taken = []
        for n in lanes:
            for graph in (False, True) if self.on_gpu else (False,):
                if made := self.denoise_alone(n, graph=graph, compiled=compiled, seconds=seconds):
                    taken.append(made[0] / n)
        self.empty()
        return min(taken)

    def capture(self, what: str, work: Callable[[], Any], **how: Any) -> tuple[Callable[[], None], Any] | None:
        """``work`` as a CUDA graph and its output; None, and a line in the report, if it cannot be captured."""
        try:
            return captured(work, **how)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.report.skip(f"{what}, as a CUDA graph", str(error).strip().splitlines()[0])
            return None

    @cached_property
    def _curve(self) -> dict[int, float]:
        """Seconds of a call at 1, 2, 4... lanes up to the batch size."""
        most = self.args.batch_size
        sizes = sorted({1 << power for power in range(most.bit_length()) if 1 << power < most} | {most})
        return {n: n * self.best_row([n], seconds=self.args.alone / 2) for n in sizes}

    def calls_alone(self, lanes: Counter[int]) -> float:
        """Seconds that the denoiser by itself takes for calls; ``lanes`` counts the calls by their number of lanes."""
        sizes, seconds = list(self._curve), list(self._curve.values())
        return sum(count * float(np.interp(n, sizes, seconds)) for n, count in lanes.items())

    def empty(self) -> None:
        """Free the memory of graphs and other batch sizes."""
        if self.on_gpu:
            gc.collect()
            torch.cuda.empty_cache()

    def executor(self, plan: hsd.Plan, conditioning: Conditioning, mode: str) -> Executor:
        """An executor with the cheap model; ``mode`` is ``eager``, ``graphs`` or ``compile``, which has graphs too."""
        program = plan.program(self.args.batch_size)
        sampler = self.decoder.sampler(plan.request["steps"])
        extra: dict[str, Any] = {"compile": True} if mode == "compile" else {}
        extra |= {"cuda_graphs": mode != "eager", "catch_up": catch_up_of(plan, self.decoder)}
        return Executor(plan, program, self.decoder, conditioning, sampler, **extra)


@dataclass
class Driven:
    """What a bounded run of an executor did."""

    start: float
    """Seconds from the executor's construction to the end of the warm-up."""
    warm_steps: int
    """Node-steps of the warm-up."""
    calls: Counter[int]
    """Number of calls, by their number of lanes."""
    node_steps: int
    seconds: float
    """Seconds of these calls, the device's work included."""
    whole: bool
    """Whether the plan was run to its end."""
    latents: list[Tensor]
    """Some of the finished latents."""


def drive(bench: Bench, plan: hsd.Plan, conditioning: Conditioning, mode: str, seconds: float) -> Driven:
    """Run a plan for ``seconds`` after the warm-up, or to its end."""
    began = time.perf_counter()
    latents: list[Tensor] = []
    calls: Counter[int] = Counter()
    executor = bench.executor(plan, conditioning, mode)
    with contextlib.closing(executor.run()) as run:
        warm_steps = sum(lanes for lanes, _ in take(run, bench.warm))
        synchronize(bench.device)
        start = time.perf_counter()
        for lanes, finished in run:
            calls[lanes] += 1
            latents += [image.latent for image in finished][: 64 - len(latents)]
            if time.perf_counter() - start > seconds:
                break
        synchronize(bench.device)
        taken = time.perf_counter() - start
    node_steps = sum(lanes * count for lanes, count in calls.items())
    whole = warm_steps + node_steps == plan.node_steps
    return Driven(start - began, warm_steps, calls, node_steps, taken, whole, latents)


def take(items: Iterator[Any], n: int) -> Iterator[Any]:
    """The next ``n`` items, without ending the iterator."""
    for _ in range(n):
        item = next(items, None)
        if item is None:
            return
        yield item
