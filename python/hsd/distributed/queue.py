"""Which unit runs next, and what becomes of one that did not end well. No Ray here."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..work.faults import HOPELESS

TRIES = 3
"""How often a unit may end its worker before it is cut in two."""

_SPARE = 12
"""Losses in a row, beyond :data:`TRIES` for each worker, until a run that makes nothing ends: more than it takes to
find the one image of a unit that ends its worker, by halves."""


@dataclass(frozen=True)
class Unit:
    """Images that one worker makes at once."""

    indices: NDArray[np.int64]
    """Ascending."""
    deaths: int = 0
    """Workers that ended while they ran it."""
    died_on: frozenset[int] = frozenset()
    """The places of those that made none of its images."""

    def without(self, done: Collection[int]) -> Unit:
        """What is left of it."""
        return replace(self, indices=np.array([i for i in self.indices.tolist() if i not in done], dtype=np.int64))

    def halves(self) -> list[Unit]:
        """Two units; a death of the whole may be of either."""
        middle = len(self.indices) // 2
        deaths = max(self.deaths - 1, 0)
        return [Unit(half, deaths) for half in np.split(self.indices, [middle])]


class Queue:
    """Units that wait, and images that are given up.

    A unit whose worker ended runs again as it is; after :data:`TRIES` times, or when the unit itself raised an error,
    it is cut in two, until the one image that is the cause is alone and given up. The others are made.

    Parameters
    ----------
    units
        Indices of each, costliest first.
    workers
        How many there are at most.

    Attributes
    ----------
    given_up
        The reason, by image.
    losses
        Units that ended badly since the last new image.
    """

    def __init__(self, units: Iterable[NDArray[np.int64]], workers: int) -> None:
        self._waiting = deque(Unit(np.sort(indices)) for indices in units)
        self._most = TRIES * workers + _SPARE
        self.given_up: dict[int, str] = {}
        self.losses = self._alone = 0
        self._searching = 0  # losses since the last image that was made or given up

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, done: Collection[int], worker: int = 0, others: Collection[int] = ()) -> Unit | None:
        """The next unit for a worker, without images that are made or have failed; None if nothing waits for it.

        A unit that ended the worker in this place is for ``others``, the places of which are ready, if there is one
        that it has not ended: the GPU here may be the cause.
        """
        passed = []
        try:
            while self._waiting:
                unit = self._waiting.popleft().without(done)
                if not len(unit.indices):
                    continue
                if worker not in unit.died_on or unit.died_on.issuperset(others):
                    return unit
                passed.append(unit)
            return None
        finally:
            self._waiting.extendleft(reversed(passed))

    def made(self) -> None:
        """A new image was made, or has failed by itself: the run gets on."""
        self.losses = self._alone = self._searching = 0

    def died(self, unit: Unit, done: Collection[int], reason: str, worker: int | None = None) -> None:
        """A worker ended while it ran ``unit``; its place, if it made no image of it."""
        left = unit.without(done)
        if not len(left.indices):
            return
        self._lost()
        left = replace(left, deaths=unit.deaths + 1, died_on=unit.died_on.union(() if worker is None else (worker,)))
        if left.deaths < TRIES:
            self._waiting.appendleft(left)
        else:
            self._cut(left, reason)

    def raised(self, unit: Unit, done: Collection[int], reason: str) -> None:
        """The unit ended by an error of its own; its worker lives."""
        left = unit.without(done)
        if len(left.indices):
            self._lost()
            self._cut(left, reason)

    def _lost(self) -> None:
        self.losses += 1
        self._searching += 1

    def _cut(self, left: Unit, reason: str) -> None:
        if len(left.indices) == 1:
            self.given_up[int(left.indices[0])] = reason
            self._alone += 1
            self._searching = 0
        else:
            self._waiting.extendleft(reversed(left.halves()))

    @property
    def is_hopeless(self) -> bool:
        """Whether something is wrong that is in no image: so many units ended badly, or images were given up, one after
        the other, and none was made.
        """
        return self._searching >= self._most or self._alone >= HOPELESS
