"""A time to tau: the smallest threshold with which a run takes no longer, by the measured speed of the model."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from ..conditioning.rows import Conditioning
from ..errors import Notice
from ..models.base import Adapter
from ..models.encode import encode
from ..planning.goal import Goal
from ..planning.plan import Plan
from ..planning.span import Span, duration, per_hour
from ..replay.graphs import can_capture
from ..work.device import synchronize
from .curve import Curve, measure
from .passes import cost
from .speeds import Speeds, recall, remember_curve, sizes_of

_LANES = 16
"""Lanes of the calls that are measured: the default batch size of a run."""

_FEW = 4
"""Prompts that are encoded to measure, where none are yet."""

_PRECISION = 1e-9
"""Of tau, relative."""


def tau_for_time(
    goal: Goal,
    adapter: Adapter,
    plan_at: Callable[[float], Plan],
    most: float | None,
    conditioning: Conditioning | None = None,
) -> float:
    """The smallest tau with which the images take no longer than ``goal``, by the slowest that was measured.

    If the speed of the model on this machine is not known, it is measured now, for some seconds.

    Parameters
    ----------
    plan_at
        The plan for a tau.
    most
        A tau that shares all that can be shared; None if nothing can.
    conditioning
        Of the prompts, if they were encoded by this model: for measuring.

    Raises
    ------
    ValueError
        If it takes longer even with all steps shared that can be: it says how long, and how many images an hour.
    """
    standard = plan_at(0.0)
    node_step, image = speed_of(adapter, standard, conditioning)
    limit = goal.seconds(len(standard))

    def seconds(plan: Plan) -> float:
        return image * len(plan) + node_step * cost(plan, adapter, None).guided_node_steps

    if (without := seconds(standard)) <= limit:
        said = f"{goal} need no sharing: without it the run takes about {_times(without, len(standard))}; tau is 0"
        warnings.warn(said, Notice, stacklevel=5)
        return 0.0
    least = without if most is None else seconds(plan_at(most))
    if most is None or least > limit:
        how = "no two images may share a step, and" if most is None else "with all steps shared but the last,"
        rest = duration(image * len(standard))
        raise ValueError(
            f"{goal} cannot be met: {how} the run takes about {_times(least, len(standard))}, of which encoding, "
            f"decoding and writing take {rest}. Fewer steps would be faster"
        )
    low, high = 0.0, most
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if seconds(plan_at(middle)) <= limit else (middle, high)
    return high


def speed_of(adapter: Adapter, plan: Plan, conditioning: Conditioning | None = None) -> tuple[float, float]:
    """Seconds per evaluation of the denoiser and per image beside it, the slowest that were measured; now, if none was.

    The batch size of the run is not known here: it is taken for the default one, else for the fastest.
    """
    known = recall(adapter)
    if known is None or known.image is None or not known.sizes:
        started = time.perf_counter()
        curve, image = measured(adapter, plan, conditioning)
        remember_curve(adapter, curve, image)
        known = Speeds(sizes_of(curve), Span(image, image))
        said = (
            f"the speed of {adapter.name} on this machine was not known: measured in "
            f"{duration(time.perf_counter() - started)}. hsd bench and long runs measure it better"
        )
        warnings.warn(said, Notice, stacklevel=6)
    node_step = known.at(_LANES) or known.at(None)
    assert node_step is not None
    assert known.image is not None
    return node_step.high, known.image.high


def measured(adapter: Adapter, plan: Plan, conditioning: Conditioning | None = None) -> tuple[Curve, float]:
    """Time the denoiser: its curve. And the decoder and, without ``conditioning``, the encoder: seconds per image.

    Writing files is not measured: it goes on beside the denoiser.
    """
    if conditioning is None or not conditioning.seconds:
        prompts, seeds = plan.prompts[:_FEW], plan.seeds[:_FEW]
        encode([adapter], np.zeros(1, np.int64), prompts[:1], seeds[:1])  # warm-up
        conditioning = encode([adapter], np.zeros(len(prompts), np.int64), prompts, seeds)
    leaves: NDArray[np.int64] = np.setdiff1d(np.arange(conditioning.n_prompts), list(conditioning.failed))
    sampler = adapter.sampler(plan.request["steps"])
    lanes = min(_LANES, len(plan))
    curve = measure(adapter, conditioning, sampler, leaves, most=lanes, cuda_graphs=can_capture(adapter))
    return curve, conditioning.seconds + seconds_to_decode(adapter, 1)


def seconds_to_decode(adapter: Adapter, n: int) -> float:
    """Seconds to decode one image, where ``n`` are decoded at once."""
    latents = torch.randn((n, *adapter.latent_shape()), generator=torch.Generator().manual_seed(0))
    generators = [adapter.generator(i) for i in range(n)]

    def decode() -> float:
        synchronize(adapter.device)
        start = time.perf_counter()
        adapter.decode(latents.to(adapter.device), generators)
        synchronize(adapter.device)
        return (time.perf_counter() - start) / n

    with torch.no_grad(), adapter.decoding():
        decode()  # warm-up
        return decode()


def _times(seconds: float, images: int) -> str:
    return f"{duration(seconds)}, {per_hour(images, Span(seconds, seconds))}"
