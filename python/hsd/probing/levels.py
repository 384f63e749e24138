"""Noise levels of a scheduler, and the image that a model's output means at each: x0 from input and output."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, NoReturn

from ..errors import UnsupportedScheduler
from ..replay.denoiser import Denoiser
from ..sampler.levels import NoiseLevel, NoLevel, noise_level

FRACTIONS = (0.0, 3 / 14, 6 / 14)
"""Where in a run a model is probed: the first step, and the two by which layout and colours are mostly decided."""

_STEPS = 14


def noise_levels(denoiser: Denoiser, fractions: tuple[float, ...] = FRACTIONS) -> list[NoiseLevel]:
    """The noise levels at ``fractions`` of a run with the model's own scheduler.

    Raises
    ------
    UnsupportedScheduler
        If HSD does not know what the scheduler takes the model's output for.
    """
    scheduler = copy.deepcopy(denoiser.scheduler())
    denoiser.set_timesteps(scheduler, _STEPS)
    n = len(scheduler.timesteps)
    return [_first_telling(scheduler, min(int(fraction * n + 1e-9), n - 1), n) for fraction in fractions]


def _first_telling(scheduler: Any, k: int, n: int) -> NoiseLevel:
    """The noise level of the first of n steps from ``k`` on at which the output says anything about x0.

    A prediction of the noise says nothing where there is no signal, and next to nothing where there is hardly any:
    its error is multiplied by noise / signal. Many schedules begin there.
    """
    for step in range(k, n):
        level = _level(scheduler, step)
        if level.tells:
            return level
    _refuse(scheduler, f"from step {k} of {n} on, its output says nothing about the image")


def _level(scheduler: Any, k: int) -> NoiseLevel:
    try:
        return replace(noise_level(scheduler, k), step=k, timesteps=scheduler.timesteps.detach().cpu())
    except NoLevel as reason:
        _refuse(scheduler, str(reason))


def _refuse(scheduler: Any, reason: str) -> NoReturn:
    raise UnsupportedScheduler(
        f"{type(scheduler).__name__} cannot be probed: {reason}. Use metric='cosine', or calibrate with another "
        "scheduler of the same model: hsd.load(model).with_scheduler(...)"
    )
