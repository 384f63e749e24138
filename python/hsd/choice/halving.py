"""Successive halving (Jamieson & Talwalkar, AISTATS 2016): twice as many images for half of the settings, in rungs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RUNGS = 3
"""Rungs until all neighbourhoods are used; each number of seeds that is twice the one before is one more."""


class Rung(NamedTuple):
    """What the settings that are left are compared on."""

    neighbourhoods: int
    """The first ones of the drawn order."""
    seeds: int
    """Images of each prompt."""


def rungs(neighbourhoods: int, seeds: int) -> list[Rung]:
    """A quarter of the neighbourhoods, half of them, all; then all with 2, 4... images of each prompt."""
    counts = dict.fromkeys(-(-neighbourhoods // 2**i) for i in reversed(range(RUNGS)))
    out = [Rung(count, 1) for count in counts]
    repeats = 2
    while repeats < seeds:
        out.append(Rung(neighbourhoods, repeats))
        repeats *= 2
    return out if seeds == 1 else [*out, Rung(neighbourhoods, seeds)]


def fronts(costs: Sequence[float], gains: Sequence[float]) -> NDArray[np.int64]:
    """(n,) 0 for what nothing dominates, 1 for what is left undominated after these are removed, and so on.

    One dominates another if it costs at most as much and gains at least as much, and differs in one of the two.
    """
    cost, gain = np.asarray(costs, dtype=np.float64), np.asarray(gains, dtype=np.float64)
    no_worse = (cost[:, None] <= cost[None]) & (gain[:, None] >= gain[None])  # [i, j]: i is no worse than j
    dominates = no_worse & ~no_worse.T
    front = np.full(len(cost), -1)
    number = 0
    while (front < 0).any():
        left = front < 0
        front[left & ~(dominates[left].any(axis=0))] = number
        number += 1
    return front


def survivors(
    costs: Sequence[float], gains: Sequence[float], hopeful: Sequence[bool], keep: int | None = None
) -> list[int]:
    """The half of the settings (rounded up) that goes on to the next rung, ascending.

    First those that may still be chosen; of these fronts go on as a whole, the undominated one first; of the last front
    that does, those that gain most.

    Parameters
    ----------
    costs, gains
        Of each setting: cost of an image, and mean score above the standard one's on the same prompts and seeds.
    hopeful
        Whether the interval of the gain still allows the setting to be chosen.
    """
    front = fronts(costs, gains)
    keep = -(-len(front) // 2) if keep is None else keep
    ranked = sorted(range(len(front)), key=lambda i: (not hopeful[i], front[i], -gains[i], costs[i], i))
    return sorted(ranked[:keep])
