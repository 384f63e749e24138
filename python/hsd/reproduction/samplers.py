"""Deterministic and stochastic samplers of the same equation, built from a model's own scheduler."""

from __future__ import annotations

from typing import Any, Literal, get_args

import diffusers

from ..errors import Error

SamplerName = Literal["deterministic", "stochastic"]
SAMPLERS = get_args(SamplerName)


class NoSuchSampler(Error, ValueError):
    """A scheduler that has no counterpart of the requested kind."""


def sampler_named(name: str, scheduler: Any) -> Any:
    """A sampler with the model's noise schedule, with fresh noise at every step or without.

    DDPM (Ho et al. 2020) and DDIM with eta = 0 (Song et al. 2021) for schedules of betas; the Euler steps of a flow,
    with and without noise, for flow matching.

    Raises
    ------
    NoSuchSampler
        If the scheduler has no such counterpart.
    """
    if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        return type(scheduler).from_config(scheduler.config, stochastic_sampling=name == "stochastic")
    compatible = {cls.__name__ for cls in getattr(scheduler, "compatibles", [])}
    wanted = {"deterministic": "DDIMScheduler", "stochastic": "DDPMScheduler"}[name]
    if wanted not in compatible | {type(scheduler).__name__}:
        raise NoSuchSampler(f"{type(scheduler).__name__} has no {name} counterpart that is known")
    if type(scheduler).__name__ == wanted:
        return scheduler
    return getattr(diffusers, wanted).from_config(scheduler.config)


def describe(scheduler: Any) -> str:
    """The name of its class, as tables show it."""
    return type(scheduler).__name__.removesuffix("Scheduler")
