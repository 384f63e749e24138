"""The settings that are compared: a product of axes, without those that a model does not have."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..models import Adapter
from ..planning.chosen import MEASURED, Settings
from ..sampler.named import NoSuchSampler, scheduler_named

UNCALIBRATED = "has no calibration (hsd calibrate makes one)"

STEPS = (1.0, 0.5, 0.3, 0.2)
"""Default numbers of steps, as shares of the standard number."""

BUDGETS = (0.0, 0.3, 0.5)
"""Default shares of the evaluations that are saved by sharing."""


@dataclass(frozen=True)
class Setting:
    """One way to generate the images. The defaults of the fields are the standard way: nothing is shared."""

    steps: int
    budget: float = 0.0
    """Share of the evaluations that is saved by sharing; 0: nothing is shared."""
    catch_up: float = 0.0
    metric: str = "cosine"
    schedule: str = "linear"
    guidance_interval: tuple[float, float] | None = None
    scheduler: str | None = None
    """None: the model's own."""

    @property
    def name(self) -> str:
        """The name of its folder: the fields that differ from the defaults."""
        parts = [f"steps-{self.steps}"]
        for one in dataclasses.fields(self)[1:]:
            value = getattr(self, one.name)
            if value != one.default:
                text = "-".join(f"{v:.12g}" for v in value) if isinstance(value, tuple) else value
                parts.append(f"{one.name}-{text if isinstance(text, str) else format(text, '.12g')}")
        return "_".join(parts)

    def __str__(self) -> str:
        parts = [f"{self.steps} steps"]
        if self.budget:
            parts.append(f"{self.budget:.0%} shared")
            parts.append(f"catch-up {self.catch_up:g}")
            parts.append(f"{self.metric} metric")
            if self.schedule != "linear":
                parts.append(f"{self.schedule} schedule")
        if self.guidance_interval is not None:
            parts.append("guidance from {:.0%} to {:.0%}".format(*self.guidance_interval))
        if self.scheduler is not None:
            parts.append(f"{self.scheduler} scheduler")
        return ", ".join(parts)


@dataclass(frozen=True)
class Axes:
    """The values of each field of :class:`Setting`; None: the default values, where the model has them."""

    steps: Sequence[int] | None = None
    budgets: Sequence[float] | None = None
    catch_up: Sequence[float] | None = None
    metrics: Sequence[str] | None = None
    schedules: Sequence[str] | None = None
    guidance_intervals: Sequence[tuple[float, float] | None] | None = None
    schedulers: Sequence[str | None] = (None,)


def grid(axes: Axes, adapter: Adapter, standard_steps: int) -> tuple[list[Setting], list[str]]:
    """The settings, the standard one first and each once, and notes on what was left out.

    Parameters
    ----------
    axes
        The values to combine. Catch-up, metric and schedule matter only where steps are shared.
    adapter
        The model: without calibration there is no calibrated metric, without guidance no interval of it.
    standard_steps
        ``num_inference_steps`` of the standard way.

    Raises
    ------
    TypeError, ValueError
        For a value that is not allowed, by the names of :class:`hsd.Settings`.
    """
    notes: list[str] = []
    calibrated = adapter.calibration is not None

    steps = list(axes.steps or _default_steps(adapter, standard_steps, notes))
    budgets = list(BUDGETS if axes.budgets is None else axes.budgets)
    catch_up = list((0.0, 1.0) if axes.catch_up is None else axes.catch_up)
    metrics = list((("calibrated",) if calibrated else ("cosine",)) if axes.metrics is None else axes.metrics)
    # By name, because the file of settings has a threshold for this metric only.
    metrics = [("calibrated" if calibrated else "cosine") if metric == "auto" else metric for metric in metrics]
    if not calibrated:
        missing = [metric for metric in metrics if metric == "calibrated"]
        metrics = _without("metric", metrics, missing, "cosine", UNCALIBRATED, notes)
        if axes.metrics is None:
            notes.append(f"the model {UNCALIBRATED}: only the cosine metric is tried")
    schedules = list(("linear",) if axes.schedules is None else axes.schedules)
    if not calibrated:
        missing = [schedule for schedule in schedules if schedule == MEASURED]
        schedules = _without("schedule", schedules, missing, "linear", UNCALIBRATED, notes)
    intervals = list((None, (0.0, 0.6)) if axes.guidance_intervals is None else axes.guidance_intervals)
    if not adapter.guided or "guidance_interval" not in adapter.setting_names():
        why = "has no interval of guidance" if adapter.guided else "is not guided"
        missing_intervals = [interval for interval in intervals if interval is not None]
        intervals = _without("guidance interval", intervals, missing_intervals, None, why, notes)
    schedulers: list[str | None] = []
    for name in axes.schedulers:
        try:
            own = adapter.scheduler()
            is_own = name is None or scheduler_named(name, own) is own
            schedulers.append(None if is_own else name)
        except NoSuchSampler as error:
            notes.append(f"left out: {error}")

    settings = [Setting(standard_steps)]
    for values in itertools.product(schedulers or [None], intervals, steps, budgets, schedules, metrics, catch_up):
        scheduler, interval, n, budget, schedule, metric, gamma = values
        setting = Setting(n, guidance_interval=interval, scheduler=scheduler)
        if budget:
            shared: dict[str, Any] = {
                "budget": float(budget),
                "catch_up": float(gamma),
                "metric": metric,
                "schedule": schedule,
            }
            setting = dataclasses.replace(setting, **shared)
        _check(setting)
        settings.append(setting)
    return list(dict.fromkeys(settings)), notes


def _default_steps(adapter: Adapter, standard_steps: int, notes: list[str]) -> list[int]:
    """Those that the model can make: from an image to another, there may be none left of a few."""
    steps = [standard_steps]
    for n in dict.fromkeys(max(1, round(share * standard_steps)) for share in STEPS):
        try:
            adapter.sampler(n)
        except ValueError as error:
            notes.append(f"left out: {n} steps: {error}")
        else:
            steps.append(n)
    return list(dict.fromkeys(steps))


def _check(setting: Setting) -> None:
    Settings(
        steps=setting.steps,
        budget=setting.budget or None,
        catch_up=setting.catch_up,
        metric=setting.metric,
        schedule=setting.schedule,
        guidance_interval=setting.guidance_interval,
        scheduler=setting.scheduler,
    )


def _without(axis: str, values: list, missing: list, default: object, why: str, notes: list[str]) -> list:
    """``values`` without ``missing`` ones; ``default`` if none is left. Says so in ``notes``."""
    if missing:
        shown = ", ".join(str(value) for value in missing)
        notes.append(f"left out: {axis} {shown}, because the model {why}")
    return [value for value in values if value not in missing] or [default]
