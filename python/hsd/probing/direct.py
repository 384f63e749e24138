"""``metric="direct"``: every prompt of a set is probed, instead of what a linear map predicts for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..calibration.fit import coordinates, root_mean_square
from ..conditioning.rows import Conditioning
from ..models.base import Adapter
from ..work.progress import Progress, Report
from .predict import predictions

MOST = 2000
"""Larger sets are not probed: their predictions would fill the memory, and a linear map does nearly as well."""


def check_number(n: int) -> None:
    """``ValueError`` if ``n`` images are too many to be probed."""
    if n > MOST:
        raise ValueError(
            f"metric 'direct' probes every image, and {n:,} are more than {MOST:,}: run `hsd calibrate MODEL --prompts "
            "FILE` on a sample of them once, and use metric 'calibrated'"
        )


def direct_vectors(
    variants: Sequence[Adapter],
    variant: NDArray[np.int64],
    conditioning: Conditioning,
    *,
    progress: Report | None = None,
) -> NDArray[np.float32]:
    """(N, at most N) float32, whose Euclidean distances are those of the predictions of N prompts.

    Their scale is that of the model's calibration, if it has one; else the root mean square distance is 1. Distances
    between prompts of different ``variants`` mean nothing, and are not used: such prompts never share a step.
    """
    whole, done, n = Progress(progress), 0, len(variant)
    parts: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    for v, adapter in enumerate(variants):
        members = np.flatnonzero(variant == v)
        if not len(members) or all(int(i) in conditioning.failed for i in members):
            done += len(members)
            continue
        report = whole.part(done / n, (done + len(members)) / n)
        values = coordinates(predictions(adapter, conditioning, members, progress=report))
        calibration = adapter.calibration
        own = root_mean_square(values) if len(values) > 1 and values.shape[1] else 0.0
        scale = own if calibration is None or calibration.scale == 0.0 else calibration.scale
        parts.append((members, values / (scale or 1.0)))
        done += len(members)
    out = np.zeros((n, max([1, *(values.shape[1] for _, values in parts)])), dtype=np.float32)
    for members, values in parts:
        out[members, : values.shape[1]] = values
    return out
