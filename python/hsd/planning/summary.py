"""What a plan costs, as readable text and as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .goal import Goal
from .span import Span, per_hour
from .span import duration as duration

LEAST_CORRELATION = 0.5
"""A metric that predicts the model's own distances worse than this is warned about."""

STANDS_IN = "the built-in encoder stands in for the model's own embeddings"
"""Said of a plan that was compiled with neither a model nor embeddings."""

FEW_STEPS = 8
"""Distilled models take so few; of what they share a plan says more."""

_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Calls:
    """The calls of a run: of its program, or of the programs of all its passes."""

    batch_size: int
    """Lanes per call; where guidance varies, lanes at guided steps."""
    calls: int
    rows: int | None
    """Rows of the network per call where guidance varies; None where a lane has the same number at all steps."""
    lower_bound: int
    """No program of the plan has fewer calls at this batch size."""
    occupancy: float
    """Filled lanes / all lanes; where guidance varies, filled rows / all rows."""
    slots: int
    """Largest number of latents alive at once, in any pass."""


@dataclass(frozen=True)
class Summary:
    """What a plan costs. ``str()`` gives readable text. Returned by :meth:`Plan.cost`."""

    prompts: int
    """N, the prompts of the whole tree."""
    kept: int
    """Prompts whose images the plan generates."""
    steps: int
    exact: bool
    """Whether the tree is exact."""
    linkage: str
    metric: str
    encoder: str
    tau: float
    settings: int
    """Different settings of single prompts."""
    node_steps: int
    standard_node_steps: int
    """Node-steps of the same images without sharing."""
    active: tuple[int, ...]
    """K active clusters, one count per step."""
    schedule: str = "linear"
    """The name of the schedule; ``custom`` for a function or an array."""
    estimate: bool = False
    """Whether a run compiles the plan again, by its model's own embeddings."""
    correlation: float | None = None
    """Of the distances used with those of the model's own predictions; None if it was not measured."""
    rows: int | None = None
    """Rows of the network: two for a guided node-step, one for another. None: not known, as without a model."""
    standard_rows: int | None = None
    """Rows of the same images without sharing, and with guidance at every step."""
    catch_up: float | None = None
    """gamma of catch-up conditioning. None: the default of the model, which is not known here."""
    run: Calls | None = None
    """None: the batch size is not known yet."""
    seconds: Span | None = None
    """Estimated denoising time of the plan, by its rows. None: the speed of the model is not known."""
    standard_seconds: Span | None = None
    """Estimated denoising time of the same images without sharing."""
    other_seconds: Span | None = None
    """Estimated time of encoding, decoding and writing the kept images, which sharing does not change."""
    no_time: str = ""
    """Why no time is estimated for a model, and how to get one."""
    goal: Goal | None = None
    """What tau was solved for; None if it was given."""

    @property
    def savings(self) -> float:
        """1 - node_steps / standard_node_steps."""
        return 1.0 - self.node_steps / self.standard_node_steps

    @property
    def guided_node_steps(self) -> float:
        """Node-steps with guidance at every step that have as many rows; ``node_steps`` unless guidance varies."""
        if self.rows is None or self.standard_rows is None:
            return float(self.node_steps)
        return self.rows * self.standard_node_steps / self.standard_rows

    @property
    def guidance_varies(self) -> bool:
        """Whether some node-steps of the plan have fewer rows than others, or than without ``guidance_interval``."""
        return self.guided_node_steps != self.node_steps

    def numbers(self) -> dict[str, Any]:
        """For JSON. Without :attr:`run` its keys are left out."""
        numbers: dict[str, Any] = {
            "prompts": self.prompts,
            "kept": self.kept,
            "steps": self.steps,
            "linkage": self.linkage,
            "exact": self.exact,
            "encoder": self.encoder,
            "metric": self.metric,
            "schedule": self.schedule,
            "estimate": bool(self.estimate),
            "settings": self.settings,
            "tau": self.tau,
            "goal": None if self.goal is None else {self.goal.name: self.goal.value},
            "node_steps": self.node_steps,
            "standard_node_steps": self.standard_node_steps,
            "savings": self.savings,
            "active": list(self.active),
        }
        if self.correlation is not None:
            numbers["metric_correlation"] = self.correlation
        if self.catch_up is not None:
            numbers["catch_up"] = self.catch_up
        if self.rows is not None:
            numbers |= {"rows": self.rows, "standard_rows": self.standard_rows}
        if self.run is not None:
            numbers |= {
                "batch_size": self.run.batch_size,
                "rows_per_call": self.run.rows,
                "calls": self.run.calls,
                "calls_lower_bound": self.run.lower_bound,
                "occupancy": self.run.occupancy,
                "slots": self.run.slots,
            }
        times = {
            "seconds": self.seconds,
            "standard_seconds": self.standard_seconds,
            "other_seconds": self.other_seconds,
        }
        if self.seconds is not None and self.standard_seconds is not None and self.other_seconds is not None:
            times["run_seconds"] = self.seconds + self.other_seconds
            times["standard_run_seconds"] = self.standard_seconds + self.other_seconds
        numbers |= {name: None if time is None else time.ends() for name, time in times.items()}
        numbers["no_time"] = self.no_time or None
        return numbers

    def rows_of_text(self) -> list[tuple[str, str]]:
        """Names and values, as text; a row without a name belongs to the one above."""
        share = f" ({self.kept:,} kept)" if self.kept < self.prompts else ""
        approximate = "" if self.exact else "approximate "
        metric = "" if self.metric == "cosine" else f", {self.metric} metric"
        schedule = "" if self.schedule == "linear" else f", {self.schedule} schedule"
        lines = [
            ("prompts", f"{self.prompts:,}{share}"),
            ("steps", f"{self.steps}"),
            ("clustering", f"{approximate}{self.linkage} on {self.encoder}{metric}{schedule}, tau {self.tau:.4g}"),
        ]
        if self.estimate:
            lines += [("estimate", STANDS_IN), ("", _how_far(self.goal))]
        if self.goal is not None:
            reached = "reached without sharing" if self.tau == 0 else "reached by the smallest tau that does"
            lines.append(("goal", f"{self.goal}, {reached}"))
        if self.correlation is not None:
            lines.append(("metric", _judged(self.metric, self.correlation, self.linkage)))
        if self.catch_up:
            lines.append(("catch-up", f"{self.catch_up:g}"))
        if self.settings > 1:
            lines.append(("settings", f"{self.settings} different ones; prompts that differ in them share no step"))
        lines += [
            ("node-steps", f"{self.node_steps:,} instead of {self.standard_node_steps:,}"),
            ("saved", f"{self.savings:.1%} of the denoiser's evaluations"),
        ]
        if self.steps <= FEW_STEPS and self.node_steps < self.standard_node_steps:
            lines.append(("", f"each of {self.steps} steps decides much of an image: what shares one looks alike;"))
            lines.append(("", "look at a sample first, and take a smaller tau than with more steps"))
        if self.guidance_varies and self.rows is not None and self.standard_rows is not None:
            saved = 1.0 - self.rows / self.standard_rows
            lines.append(("network rows", f"{self.rows:,} instead of {self.standard_rows:,}, {saved:.1%} saved"))
        lines += [
            ("clusters by step", f"{self.active[0]:,} {sparkline(self.active)} {self.active[-1]:,}"),
            ("", step_table(self.active)),
        ]
        if (run := self.run) is not None:
            items, size = ("lanes", f"{run.batch_size}") if run.rows is None else ("rows", f"{run.rows} rows")
            calls = f"{run.calls:,} (lower bound {run.lower_bound:,}), {run.occupancy:.1%} of {items} filled"
            lines += [(f"calls of {size}", calls), ("slots", f"{run.slots:,} latents alive at most")]
        return lines + self._times()

    def _times(self) -> list[tuple[str, str]]:
        """Estimated times, as far as the speed is known; without loading the model."""
        ours, standard, other = self.seconds, self.standard_seconds, self.other_seconds
        if ours is None or standard is None:
            return [("time", f"not known: {self.no_time}")] if self.no_time else []
        lines = [("denoising time", f"{ours} instead of {standard}")]
        if other is not None:
            whole = f"{ours + other} instead of {standard + other} once the model is loaded"
            lines += [
                ("other time", f"{other} for encoding, decoding and writing"),
                ("whole run", whole),
                ("", per_hour(self.kept, ours + other)),
            ]
        return lines

    def __str__(self) -> str:
        return self.text()

    def text(self, more: Sequence[tuple[str, str]] = ()) -> str:
        """Aligned lines, and ``more`` names and values below."""
        lines = [*self.rows_of_text(), *more]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _how_far(goal: Goal | None) -> str:
    """How much the stand-in's numbers may differ from a model's."""
    if goal is not None:
        return "so tau, and who shares with whom, are an estimate"
    return "by the bundled model's, five prompt sets saved 13 to 34 points more or less"


def _judged(metric: str, correlation: float, linkage: str) -> str:
    """How well a metric predicts what the model does, and a warning where that is too little."""
    text, drawn = f"{metric}: correlation {correlation:.2f}", "with how differently the model begins to draw"
    if correlation >= LEAST_CORRELATION:
        return f"{text} {drawn}"
    better = "--metric direct" if metric == "calibrated" else "--metric calibrated or direct"
    ward = " with --linkage ward" if linkage == "centroid" else ""  # centroid has no form for other metrics
    return f"WARNING: {text}, below {LEAST_CORRELATION}, {drawn}; {better}{ward} would share better"


def sparkline(counts: Sequence[int]) -> str:
    """One bar per step, scaled to the largest count."""
    top = max(counts)
    return "".join(_BARS[max(1, round(count / top * (len(_BARS) - 1)))] for count in counts)


def step_table(counts: Sequence[int], columns: int = 8) -> str:
    """Counts at about ``columns`` steps, including the first and the last: ``0:3  5:8 ...``."""
    last = len(counts) - 1
    picks = sorted({round(i * last / (columns - 1)) for i in range(columns)})
    return "  ".join(f"{k}:{counts[k]:,}" for k in picks)
