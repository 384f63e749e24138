"""The two kinds of samplers that experiments compare. They are built in :mod:`hsd.sampler.named`."""

from __future__ import annotations

from typing import Any, Literal, get_args

from ..sampler.named import NoSuchSampler, sampler_named

__all__ = ["SAMPLERS", "NoSuchSampler", "SamplerName", "describe", "sampler_named"]

SamplerName = Literal["deterministic", "stochastic"]
SAMPLERS = get_args(SamplerName)


def describe(scheduler: Any) -> str:
    """The name of its class, as tables show it."""
    return type(scheduler).__name__.removesuffix("Scheduler")
