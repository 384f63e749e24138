"""The settings ``timesteps`` and ``sigmas``: where the steps are, instead of a number of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps

from ..errors import UnsupportedScheduler

NAMES = ("timesteps", "sigmas")


def check_timesteps(adapter: Any) -> None:
    """Make tuples of an adapter's ``timesteps`` and ``sigmas``, where its family has these settings.

    Raises
    ------
    ValueError
        If both are given, as in diffusers, or if one is empty or not finite.
    TypeError
        If one is not a sequence of numbers.
    """
    given = {name: value for name in NAMES if (value := getattr(adapter, name, None)) is not None}
    if len(given) > 1:
        raise ValueError("timesteps and sigmas are both given, and each says where the steps are: leave one out")
    for name, value in given.items():
        setattr(adapter, name, _numbers(name, value))


def _numbers(name: str, value: Any) -> tuple[int | float, ...]:
    """A tuple of Python numbers, whole ones as integers where these are timesteps."""
    values = value.tolist() if hasattr(value, "tolist") else value  # of NumPy or torch
    if not isinstance(values, (list, tuple)) or not all(_is_number(each) for each in values):
        raise TypeError(f"{name} is {value!r}: it has to be a list of numbers, one for each step")
    if not values or not all(math.isfinite(each) for each in values):
        raise ValueError(f"{name} is {value!r}: it has to have at least one number, and finite numbers only")
    if name == "timesteps":
        return tuple(int(each) if float(each).is_integer() else float(each) for each in values)
    return tuple(map(float, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def own_timesteps(adapter: Any) -> tuple[int | float, ...] | None:
    """The ``timesteps`` or ``sigmas`` that an adapter was given; None if it has a number of steps instead."""
    return next((value for name in NAMES if (value := getattr(adapter, name, None)) is not None), None)


def set_timesteps(adapter: Any, scheduler: Any, steps: int, *, sigmas: Any = None, **options: Any) -> None:
    """Set the timesteps of ``scheduler`` on the CPU, to those that ``adapter`` was given or to ``steps`` of them.

    ``sigmas`` are the noise levels that the pipeline itself gives the scheduler; those of the user replace them.
    ``options`` are more arguments of the scheduler's ``set_timesteps``.

    Raises
    ------
    UnsupportedScheduler
        If the scheduler does not take the timesteps or sigmas that the user has set.
    """
    name = next((each for each in NAMES if getattr(adapter, each, None) is not None), None)
    if name is None:
        if sigmas is None:
            scheduler.set_timesteps(steps, device="cpu", **options)
        else:
            retrieve_timesteps(scheduler, steps, "cpu", sigmas=sigmas, **options)
        return
    kind, values = type(scheduler).__name__, list(getattr(adapter, name))
    try:
        retrieve_timesteps(scheduler, None, "cpu", **{name: values}, **options)
    except (ValueError, TypeError, IndexError) as error:
        text = str(error)
        if "does not support custom" in text:
            text = f"its set_timesteps does not take {name}"
        raise UnsupportedScheduler(
            f"{kind} does not take {name}={_short(values)}: {text}. Leave {name} out, or give the pipeline a scheduler "
            f"that takes them"
        ) from error


def even_sigmas(adapter: Any, scheduler: Any, steps: int) -> Any:
    """The noise levels that FLUX's pipelines give a scheduler: evenly spaced; None if it makes flow sigmas itself.

    Raises
    ------
    UnsupportedScheduler
        If the user has set ``sigmas`` that the pipeline would leave out without a word.
    """
    if not scheduler.config.get("use_flow_sigmas"):
        return np.linspace(1.0, 1 / steps, steps)
    if adapter.sigmas is not None:
        raise UnsupportedScheduler(
            f"{type(scheduler).__name__} has use_flow_sigmas=True, and then diffusers' pipeline does not use the "
            "sigmas that it is given: leave sigmas out, or give the pipeline a FlowMatchEulerDiscreteScheduler"
        )
    return None


def number_of_steps(variants: Sequence[Any], steps: int) -> tuple[int, int]:
    """How many evaluations an image takes, and ``steps``, for which it takes as many.

    ``variants`` are the model, once with each combination of settings that some prompt has. Where they were given
    timesteps or sigmas, ``steps`` is not used, and the number of evaluations is returned for it too.

    Raises
    ------
    ValueError
        If the timesteps or sigmas of single prompts have another number than those of others: a plan has one.
    """
    found: dict[tuple[Any, Any], int] = {}
    for variant in variants:
        own = own_timesteps(variant), getattr(variant, "strength", None)
        if own not in found:
            found[own] = variant.sampler(steps).n_steps
    if len(set(found.values())) > 1:
        numbers = ", ".join(_count(n, *own) for own, n in found.items())
        raise ValueError(
            f"the prompts take different numbers of steps: {numbers}. All prompts of a plan take the same number: give "
            "their timesteps or sigmas one length, and all prompts one strength, or make the others a run of their own"
        )
    [n_steps] = set(found.values())
    return n_steps, steps if any(own is None for own, _ in found) else n_steps


def _count(n: int, own: Sequence[Any] | None, strength: float | None) -> str:
    with_own = [f"strength {strength:g}"] if strength is not None else []
    with_own += [_short(own)] if own is not None else []
    return f"{n} with {' and '.join(with_own)}" if with_own else str(n)


def _short(values: Sequence[Any]) -> str:
    return f"[{', '.join(map(str, values[:3]))}{', ...' if len(values) > 3 else ''}]"
