"""The threshold schedule phi(k): the largest dissimilarity of the prompts of one cluster at step k."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..names import ScheduleName, check_name, number

Schedule = ScheduleName | Callable[[float], float] | Sequence[float] | NDArray[np.floating]


def schedule_shape(
    schedule: Schedule, steps: int, *, weights: Sequence[float] | NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """The schedule for tau = 1: (steps,) float64 in [0, 1], non-increasing, 0 at the last step.

    ``phi = tau * schedule_shape(schedule, steps)``. ``linear`` (the authors' code) falls from 1 to 0;
    ``paper-eq7`` is 1 - (k+1)/K, Eq. 7 of the paper; ``measured`` is proportional to 1 / sqrt(pooled weights), see
    :func:`hsd._core.measured_shape`; a callable gets k/(K-1) in [0, 1]; an array is used unchanged.

    ``weights`` (steps,), for ``measured`` only: how much the final image moves for each unit of the squared distance
    between a prompt and the mean that step k is conditioned on instead.

    Raises
    ------
    ValueError
        For an unknown name, a wrong length, or values that rise, leave [0, 1] or do not end at 0; for ``measured``
        without weights, and for weights that are not finite or none of which is over 0.
    """
    if isinstance(schedule, str):
        check_name("schedule", schedule, ScheduleName)
        if schedule == "measured":
            return _measured(weights, steps)
        return _core.schedule_shape(schedule, steps)
    if callable(schedule):
        values: Any = [float(schedule(k / (steps - 1) if steps > 1 else 1.0)) for k in range(steps)]
    else:
        values = schedule
    shape = np.ascontiguousarray(values, dtype=np.float64)
    if shape.shape != (steps,):
        raise ValueError(f"the schedule has shape {shape.shape}, but there are {steps} steps of the denoiser")
    outside = np.flatnonzero(~((shape >= 0.0) & (shape <= 1.0)))
    if len(outside):
        k = outside[0]
        raise ValueError(f"the schedule is {shape[k]} at step {k}: values are fractions of tau, within [0, 1]")
    _core.check_thresholds(shape)
    return shape


def _measured(weights: Sequence[float] | NDArray[np.floating] | None, steps: int) -> NDArray[np.float64]:
    if weights is None:
        raise ValueError(
            "schedule 'measured' needs the weights of a calibrated model, and there are none: "
            "calibrate the model, or use another schedule"
        )
    values = np.ascontiguousarray(weights, dtype=np.float64)
    if values.shape != (steps,):
        raise ValueError(f"the weights have shape {values.shape}, but there are {steps} steps of the denoiser")
    return _core.measured_shape(values)


def check_tau(tau: float) -> float:
    """``tau`` as a float; ``TypeError`` unless it is a number, ``ValueError`` unless it is finite and >= 0."""
    value = number("tau", tau, "such as 0.8; a model is given by its name, model=")
    if not math.isfinite(value) or value < 0.0:
        raise ValueError(f"tau is {tau}: it has to be a finite number >= 0 (0 shares nothing; 0.5 to 1.5 is usual)")
    return value


def check_budget(budget: float) -> float:
    """``budget`` as a float; ``TypeError`` unless it is a number, ``ValueError`` unless it lies inside (0, 1)."""
    value = number("budget", budget, "the share of denoiser evaluations to save, such as 0.3")
    if not 0.0 < value < 1.0:
        raise ValueError(f"budget is {budget}: it is the share of denoiser evaluations to save, inside (0, 1)")
    return value
