"""Variations of images in a run: where they begin, and with what noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedScheduler
from ..models import Adapter
from ..planning.plan import Plan
from ..replay.executor import FreshNoise
from ..sampler import SamplerTable

_FORGETS = ("DPMSolverMultistepScheduler",)
"""Schedulers that remember predictions of x0 only, which are right for a latent with other noise too."""


def begins_of_variations(plan: Plan) -> NDArray[np.bool_]:
    """(segments,) the segments with which variations leave the path that they share."""
    segments = plan.segments
    variation = np.zeros(plan.n_prompts, dtype=bool)
    variation[list(plan.variations)] = True
    begins = np.asarray(variation[segments["representative"]] & (segments["first_step"] > 0))
    above = segments["parent"] >= 0
    # A variation that others fork from goes on by itself.
    begins[above] &= segments["representative"][above] != segments["representative"][segments["parent"][above]]
    return begins


def fresh_noise(plan: Plan, variant: Adapter, sampler: SamplerTable) -> FreshNoise | None:
    """What the variations of a plan begin with; None if they differ by the noise of the scheduler, or there are none.

    Raises
    ------
    UnsupportedScheduler
        If the scheduler is deterministic, and does not say what image a step predicts, or keeps the noise in what it
        remembers: then variations would be copies, or wrong.
    """
    if not plan.variations or sampler.n_noise:
        return None
    begins = begins_of_variations(plan)
    if not begins.any():
        return None
    if sampler.n_state > 1 and sampler.scheduler not in _FORGETS:
        raise _refused(sampler, "it remembers the noise of earlier steps")
    predictions = variant.predictions(plan.request["steps"])
    signal, noise = variant.noise_levels(plan.request["steps"], sampler)
    for step in np.unique(plan.segments["first_step"][begins]).tolist():
        if not predictions.defined[step - 1] or not np.isfinite(noise[step]):
            raise _refused(sampler, f"it does not say what image step {step - 1} predicts")
    return FreshNoise(begins, predictions, signal, noise)


def _refused(sampler: SamplerTable, why: str) -> UnsupportedScheduler:
    return UnsupportedScheduler(
        f"{sampler.scheduler} cannot make variations: it is deterministic, and {why}. Use another scheduler, such as "
        "DDIM, Euler or a stochastic one, or images_per_prompt= in a folder of its own"
    )
