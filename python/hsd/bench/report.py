"""The results of ``hsd bench``: numbers, and a table of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ..names import Quantization
from ..planning.summary import duration
from ..tuning.curve import Curve


@dataclass(frozen=True)
class Machine:
    """The machine and the versions of the measurement."""

    model: str
    device: str
    dtype: str
    threads: int
    """Threads of torch on the CPU."""
    torch: str
    diffusers: str
    hsd: str
    date: str
    """UTC, ISO 8601."""


@dataclass(frozen=True)
class Setting:
    """How the denoiser runs: switches of ``hsd generate``, then changes of the networks, for which it has none."""

    cuda_graphs: bool = False
    channels_last: bool = False
    compile: bool = False
    fuse_qkv: bool = False
    quantize: Quantization | None = None

    @property
    def changes(self) -> bool:
        """Whether the networks are changed."""
        return self.fuse_qkv or self.quantize is not None

    @property
    def name(self) -> str:
        """Names of the switches that are on, or ``eager``."""
        names = {
            "CUDA graphs": self.cuda_graphs,
            "channels-last": self.channels_last,
            "compile": self.compile,
            "fuse-qkv": self.fuse_qkv,
            str(self.quantize): self.quantize is not None,
        }
        return " + ".join(name for name, on in names.items() if on) or "eager"

    def flags(self, batch_size: int, can_capture: bool) -> str:
        """Options for ``hsd generate``; graphs are its default where they can be captured."""
        flags = {
            "--no-cuda-graphs": can_capture and not self.cuda_graphs,
            "--channels-last": self.channels_last,
            "--compile": self.compile,
        }
        return " ".join([f"--batch-size {batch_size}", *(flag for flag, on in flags.items() if on)])


@dataclass(frozen=True)
class Tried:
    """A change of the networks, compared with the unchanged ones and, if the difference is small enough, timed."""

    setting: str
    """All that was on when it was timed."""
    how: str
    """Python lines that make the change in a pipeline, before ``hsd.load``."""
    tolerance: float
    """Largest relative difference."""
    difference: float | None = None
    """Relative difference of the output of one call; None if the call failed or gave values that are not finite."""
    seconds_per_lane: float | None = None
    """At the chosen batch size; None if it was not timed."""
    weight_bytes: int | None = None
    """Bytes of the networks' weights with the change."""
    weight_bytes_before: int | None = None
    """Without it. While the change is tried, these weights are kept in memory too."""
    bytes_per_call: int | None = None
    """Device memory of a call, without weights, on CUDA."""
    failed: str | None = None
    """Why it was not timed."""
    not_captured: str | None = None
    """Why its calls were not replayed as CUDA graphs, where the best setting's are."""


@dataclass(frozen=True)
class Alone:
    """The denoiser by itself."""

    curves: dict[str, Curve]
    """Seconds at each measured size, by setting."""
    batch_size: int
    """The size with which the plan takes the least time."""
    seconds_per_lane: dict[str, float]
    """Seconds per lane at that batch size, by setting."""
    failed: dict[str, str]
    """Settings that did not run, and the reason."""
    best: str
    """The recommended setting."""
    flags: str
    """Options for ``hsd generate``."""
    tried: dict[str, Tried] = field(default_factory=dict)
    """Changes of the networks, each by itself in addition to the best setting."""


@dataclass(frozen=True)
class Planned:
    """The plan, and its predicted time by the measured seconds of the denoiser."""

    prompts: int
    prompts_given: int
    steps: int
    """Evaluations per image."""
    tau: float
    node_steps: int
    standard_node_steps: int
    savings: float
    calls: int
    calls_lower_bound: int
    occupancy: float
    slots: int
    seconds: float
    """Predicted time of the denoiser."""
    standard_seconds: float
    """Predicted time of the denoiser without sharing, in full calls of the same size."""


@dataclass(frozen=True)
class Executed:
    """Denoising by the executor, without encoding and decoding."""

    prompts: int
    node_steps: int
    savings: float
    calls: int
    occupancy: float
    seconds: float
    denoiser_seconds: float
    """Predicted time of the same number of lanes without the executor, in full calls of the same size."""
    efficiency: float
    """``denoiser_seconds / seconds``."""
    first_image_seconds: float
    """Until the first latent was finished, depth first."""
    one_image_seconds: float
    """Predicted time of a single image."""


@dataclass(frozen=True)
class EndToEnd:
    """Time from prompts to decoded images, by HSD and by the pipeline's own call."""

    prompts: int
    savings: float
    """Savings of the plan for these prompts."""
    encode_seconds_per_image: float
    """Encoding and clustering of the whole plan."""
    seconds_per_image: float
    """All work: encoding, clustering, denoising, decoding."""
    diffusers_prompts: int = 0
    diffusers_batch_size: int = 0
    diffusers_seconds_per_image: float | None = None
    not_compared: str | None = None
    """Why the pipeline was not called."""
    not_passed_on: tuple[str, ...] = ()
    """Changed settings that the pipeline's call does not take by this name."""
    speed_up: float | None = None
    peak_bytes: int | None = None
    """Peak of device memory, of the executor and end to end, on CUDA."""
    diffusers_peak_bytes: int | None = None

    @property
    def ideal(self) -> float:
        """The speed-up if only node-steps took time: 1 / (1 - savings)."""
        return 1.0 / (1.0 - self.savings)


@dataclass(frozen=True)
class Report:
    """All results."""

    machine: Machine
    alone: Alone
    plan: Planned
    executor: Executed
    end_to_end: EndToEnd

    def numbers(self) -> dict[str, Any]:
        """The numbers as JSON types."""
        out = dataclasses.asdict(self)
        out["end_to_end"]["ideal_speed_up"] = self.end_to_end.ideal
        return out

    def __str__(self) -> str:
        return "\n\n".join([_head(self), _denoiser(self.alone), _plan(self), _executor(self), _end_to_end(self)])


_NAME = 18
"""Width of the name at the start of a line."""

_FILLED = 0.7
"""If a part of a plan fills a smaller share of the lanes, it does not represent the whole plan."""


def _section(title: str, lines: list[tuple[str, str]]) -> str:
    return "\n".join([title, *(f"  {name:<{_NAME}}{value}" for name, value in lines)])


def _head(report: Report) -> str:
    machine, plan = report.machine, report.plan
    plural = "s" if machine.threads > 1 else ""
    threads = f", {machine.threads} thread{plural}" if machine.device.startswith("cpu") else ""
    spaced = f" of {plan.prompts_given:,}, evenly spaced" if plan.prompts < plan.prompts_given else ""
    return "\n".join(
        [
            f"{machine.model} on {machine.device}{threads}, {machine.dtype}, {machine.date}",
            f"hsd {machine.hsd}, torch {machine.torch}, diffusers {machine.diffusers}",
            f"{plan.prompts:,} prompts{spaced}; {plan.steps} evaluations per image",
        ]
    )


def _denoiser(alone: Alone) -> str:
    """One line for each lane count, one column for each curve; then the settings at one size."""
    names = list(alone.curves)
    has_memory = any(curve.bytes_per_call is not None for curve in alone.curves.values())
    lines = ["denoiser by itself, ms per lane", f"  {'lanes':>6}" + "".join(f"{name:>14}" for name in names)]
    lines[-1] += f"{'MiB per call':>14}" if has_memory else ""
    for lanes in sorted({lanes for curve in alone.curves.values() for lanes in curve.lanes}):
        line = f"  {lanes:>6}"
        for curve in alone.curves.values():
            place = curve.lanes.index(lanes) if lanes in curve.lanes else None
            line += f"{'':14}" if place is None else f"{1e3 * curve.seconds_per_call[place] / lanes:14.3f}"
        if has_memory:
            line += f"{max(curve.memory(lanes) for curve in alone.curves.values()) / 2**20:14,.0f}"
        lines.append(line)
    lines += [f"  {name} ended: {curve.ended}" for name, curve in alone.curves.items()]
    lines.append(f"with {alone.batch_size} lanes, ms per lane")
    width = max(len(name) for name in [*alone.seconds_per_lane, *alone.failed]) + 2
    slowest = max(alone.seconds_per_lane.values())
    for name, seconds in alone.seconds_per_lane.items():
        mark = "  best" if name == alone.best else ""
        lines.append(f"  {name:<{width}}{1e3 * seconds:10.3f}  {slowest / seconds:5.2f}x{mark}")
    lines += [f"  {name:<{width}}failed: {reason}" for name, reason in alone.failed.items()]
    lines.append(f"  best: hsd generate ... {alone.flags}")
    return "\n".join(lines + _tried(alone))


LEAST_GAIN = 0.02
"""A setting that gains less than this is not recommended: it may be noise."""


def _tried(alone: Alone) -> list[str]:
    """Changes of the networks: how far the output is from the unchanged one, then time and memory."""
    if not alone.tried:
        return []
    best, width = alone.seconds_per_lane[alone.best], max(len(one.setting) for one in alone.tried.values()) + 2
    lines = [f"changed networks, with {alone.batch_size} lanes: ms per lane, and difference of the output"]
    for one in alone.tried.values():
        line = f"  {one.setting:<{width}}"
        if one.seconds_per_lane is not None:
            line += f"{1e3 * one.seconds_per_lane:10.3f}  {best / one.seconds_per_lane:5.2f}x  "
        parts = [] if one.failed is None else [f"not timed: {one.failed}"]
        if one.difference is not None:
            parts.append(f"differs by {one.difference:.2g} (at most {one.tolerance:g})")
        if one.weight_bytes is not None and one.weight_bytes_before is not None:
            parts.append(f"weights {_mib(one.weight_bytes)} instead of {_mib(one.weight_bytes_before)} MiB")
        if one.bytes_per_call is not None:
            parts.append(f"{_mib(one.bytes_per_call)} MiB per call")
        lines.append(line + ", ".join(parts))
        if one.not_captured is not None:
            lines.append(f"    {one.not_captured}")
    gains = [one for one in alone.tried.values() if (one.seconds_per_lane or best) < best * (1 - LEAST_GAIN)]
    for one in gains:
        lines.append(f"  to use {one.setting}, before hsd.load: {one.how}")
    return lines


def _mib(n_bytes: int) -> str:
    """Mebibytes; small networks with a decimal."""
    mib = n_bytes / 2**20
    return f"{mib:,.0f}" if mib >= 10 else f"{mib:.2g}"


def _plan(report: Report) -> str:
    plan = report.plan
    return _section(
        f"plan, tau {plan.tau:.4g}",
        [
            ("node-steps", f"{plan.node_steps:,} instead of {plan.standard_node_steps:,}: {plan.savings:.1%} saved"),
            (
                f"calls of {report.alone.batch_size}",
                f"{plan.calls:,} (lower bound {plan.calls_lower_bound:,}), {plan.occupancy:.1%} of lanes filled",
            ),
            ("slots", f"{plan.slots:,} latents alive at most"),
            ("predicted", f"{duration(plan.seconds)} of the denoiser instead of {duration(plan.standard_seconds)}"),
        ],
    )


def _executor(report: Report) -> str:
    run = report.executor
    short = run.prompts < report.plan.prompts and run.occupancy < _FILLED
    hint = ": a short run, --seconds makes it longer" if short else ""
    return _section(
        f"executor, on {run.prompts:,} prompts, {report.alone.best}",
        [
            ("node-steps", f"{run.node_steps:,}, {run.savings:.1%} saved"),
            ("calls", f"{run.calls:,}, {run.occupancy:.1%} of lanes filled{hint}"),
            ("time", duration(run.seconds)),
            (
                "efficiency",
                f"{run.efficiency:.1%}: the same number of lanes in full calls of the denoiser by itself takes "
                f"{duration(run.denoiser_seconds)}",
            ),
            (
                "first image",
                f"after {duration(run.first_image_seconds)}; one image by itself: {duration(run.one_image_seconds)}",
            ),
        ],
    )


def _end_to_end(report: Report) -> str:
    run = report.end_to_end
    lines = [
        (
            "hsd",
            f"{_speed(run.seconds_per_image)}, {duration(run.encode_seconds_per_image)} of it encoding and clustering "
            f"({run.prompts:,} prompts, {run.savings:.1%} saved)",
        )
    ]
    if run.diffusers_seconds_per_image is None:
        lines.append(("diffusers", f"not compared: {run.not_compared}"))
    else:
        where = f"({run.diffusers_prompts:,} prompts in batches of {run.diffusers_batch_size:,})"
        lines.append(("diffusers", f"{_speed(run.diffusers_seconds_per_image)} {where}"))
        lines.append(("speed-up", f"{run.speed_up:.2f}x; 1 / (1 - saved) is {run.ideal:.2f}x"))
    if run.not_passed_on:
        lines.append(("not passed on", f"{', '.join(run.not_passed_on)}: the pipeline has no parameter of that name"))
    if run.peak_bytes is not None:
        theirs = run.diffusers_peak_bytes
        other = "" if theirs is None else f"; diffusers {theirs / 2**20:,.0f} MiB"
        lines.append(("peak memory", f"{run.peak_bytes / 2**20:,.0f} MiB{other}"))
    return _section("end to end, decoded", lines)


def _speed(seconds_per_image: float) -> str:
    return f"{duration(seconds_per_image)} per image, {1 / seconds_per_image:,.2f} images/s"
