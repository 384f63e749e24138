"""Other schedulers for a model, by name, with the noise schedule of its own."""

from __future__ import annotations

import difflib
from typing import Any

import diffusers

from ..errors import Error


class NoSuchSampler(Error, ValueError):
    """A name of a scheduler that does not exist, or that does not fit the model's own."""


def sampler_named(name: str, scheduler: Any) -> Any:
    """A sampler with the model's noise schedule, with fresh noise at every step or without.

    DDPM (Ho et al. 2020) and DDIM with eta = 0 (Song et al. 2021) for schedules of betas; the Euler steps of a flow,
    with and without noise, for flow matching.

    Parameters
    ----------
    name
        ``deterministic`` or ``stochastic``.
    scheduler
        The model's own.

    Raises
    ------
    NoSuchSampler
        If the scheduler has no such counterpart.
    """
    if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        return type(scheduler).from_config(scheduler.config, stochastic_sampling=name == "stochastic")
    wanted = {"deterministic": "DDIMScheduler", "stochastic": "DDPMScheduler"}[name]
    if wanted not in compatible(scheduler):
        raise NoSuchSampler(f"{type(scheduler).__name__} has no {name} counterpart that is known")
    if type(scheduler).__name__ == wanted:
        return scheduler
    return getattr(diffusers, wanted).from_config(scheduler.config)


def scheduler_named(name: str, scheduler: Any) -> Any:
    """The same for ``name`` the class name of a diffusers scheduler too.

    Raises
    ------
    NoSuchSampler
        If there is no such scheduler, or diffusers does not list it as compatible with the model's own.
    """
    if name in ("deterministic", "stochastic"):
        return sampler_named(name, scheduler)
    known = sorted(compatible(scheduler))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        raise NoSuchSampler(
            f"{name!r} is no scheduler that fits {type(scheduler).__name__}{hint} Known: deterministic, stochastic, "
            f"{', '.join(known)}"
        )
    return scheduler if type(scheduler).__name__ == name else getattr(diffusers, name).from_config(scheduler.config)


def compatible(scheduler: Any) -> set[str]:
    """Class names of the schedulers that understand the configuration of ``scheduler``, its own included."""
    return {cls.__name__ for cls in getattr(scheduler, "compatibles", [])} | {type(scheduler).__name__}
