"""Catch-up conditioning as numbers: how strongly a segment is conditioned on what it was denied while it shared.

At step k a segment with the mean m is conditioned on

    c_k = m + gamma (m - h_k),        h_k = (c_0 + ... + c_{k-1}) / k,

where c_0, c_1... is what its path was given, by the segments above it too. So h_{k+1} = (k h_k + c_k) / (k + 1), and
for d_k = m - h_k

    d_{k+1} = d_k (k - gamma) / (k + 1).

Within a segment that begins at step s, c_k is therefore m plus a number times its difference at the beginning, m - h_s.
The number depends on s and k only. A segment that begins at step 0 was given its own mean only: its h is m.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_catch_up(gamma: Any) -> float:
    """``gamma`` as a float.

    Raises
    ------
    TypeError
        Unless it is a number.
    ValueError
        Unless it is finite and >= 0.
    """
    if isinstance(gamma, (bool, np.bool_)) or not isinstance(gamma, (int, float, np.integer, np.floating)):
        raise TypeError(f"catch_up has to be a number, not {gamma!r}")
    gamma = gamma.item() if isinstance(gamma, np.generic) else gamma  # NumPy warns if it compares half with huge
    if not 0 <= gamma <= sys.float_info.max:  # compared, not converted: an integer may be too large for a float
        raise ValueError(f"catch_up is {gamma}: it has to be a finite number >= 0 (0 is off; 1 to 2 is usual)")
    return float(gamma)


def differences_left(n_steps: int, gamma: float) -> NDArray[np.float64]:
    """(K, K + 1) float64: d_k = ``[s, k]`` times d_s, for a segment that begins at step s.

    The product of (j - gamma) / (j + 1) over j = s ... k-1. 0 for k < s, and for s = 0, where there is no difference.

    Raises
    ------
    ValueError
        If ``gamma`` is so large that the numbers exceed the range of float32.
    """
    left = np.zeros((n_steps, n_steps + 1))
    with np.errstate(over="ignore"):
        for k in range(1, n_steps):
            left[k, k] = 1.0
            left[: k + 1, k + 1] = left[: k + 1, k] * ((k - gamma) / (k + 1))
        finite = np.isfinite((gamma * left).astype(np.float32)).all()
    if not finite:
        raise ValueError(f"catch_up is {gamma}: over {n_steps} steps the images would overflow; 1 to 2 is usual")
    return left


def catch_up_weights(n_steps: int, gamma: float) -> NDArray[np.float32]:
    """(K, K) float32: c_k = m + ``[s, k]`` (m - h_s), for a segment that begins at step s. Row 0 is 0.

    Raises
    ------
    ValueError
        As :func:`differences_left`.
    """
    return (gamma * differences_left(n_steps, gamma)[:, :-1]).astype(np.float32)
