"""Whether it pays to capture a size of calls: what a call costs without a capture, and how many calls are left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

HOST_BOUND = 0.9
"""The host is the limit where it needs this share of a call's time to enqueue it."""

_HOST_GAIN = 1 / 3
"""Share of a call's time that a replay saves where the host is the limit."""

_DEVICE_GAIN = 0.015
"""Share of a call's time that a replay saves where the device is the limit."""


@dataclass(frozen=True)
class CallCost:
    """What one call takes that runs one kernel at a time."""

    host: float
    """Seconds in which the host enqueued it."""
    elapsed: float
    """Seconds from its first kernel to its last one on the device."""
    waited: bool
    """Whether the device had finished all earlier calls when this one began. If not, the host may have been held up
    inside the call, because a driver queues about a thousand kernels and no more: then ``host`` says nothing."""


def pays(cost: CallCost | None, left: int) -> bool:
    """Whether a capture takes less time than it saves in the ``left`` calls of its size, the present one included.

    A capture costs about two calls of host time (the Python code runs once more, then the graph is made), and the queue
    of the device runs empty meanwhile: a call's time at most. Emptied caches are small beside that.

    A replay saves what the device waits for. Where the host is the limit, that is the host's time without the device's,
    which is not known before there is a replay: on an H200 one lane of Kandinsky took 56 ms and its replay 15 (saved:
    73 %), two lanes 55 and 19 (65 %), four lanes 45 and 30 (34 %), eight lanes, where both are equally fast, 55 and 51
    (6 %). A third is assumed, so that ten calls have to be left. Where the device is the limit, a whole run
    gained 1.5 % (97.5 % of the ideal without graphs, 99.0 % with them). So there about 70 to 200 calls have to be left.

    A device that is still busy when the call begins does not wait, however long the host takes: it is the limit then.
    Without a measurement, which is missing only while the device is behind, a capture has to pay in the worst case of
    that: ``3 t < 0.015 t left``.
    """
    if cost is None:
        return left > 3 / _DEVICE_GAIN
    host = min(cost.host, cost.elapsed) if not cost.waited else cost.host
    gain = _DEVICE_GAIN * cost.elapsed
    if cost.waited and host >= HOST_BOUND * cost.elapsed:
        gain = _HOST_GAIN * host
    return gain * left > 2 * host + cost.elapsed


class CallTimer:
    """Measures one call without waiting for the device: enter it around the call, and ask for its cost later."""

    def __init__(self, waited: bool) -> None:
        self._waited = waited
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._host = 0.0

    def __enter__(self) -> None:
        self._begin.record()
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._host = time.perf_counter() - self._start
        self._end.record()

    def cost(self) -> CallCost | None:
        """None while the device has not finished the call."""
        if not self._end.query():
            return None
        return CallCost(self._host, self._begin.elapsed_time(self._end) / 1e3, self._waited)


class CallsLeft:
    """How many calls of each size a program has left, where calls are padded to few sizes and cut if they do not fit.

    Parameters
    ----------
    rows_per_call
        (n_calls,) :attr:`hsd.Program.rows_per_call`.
    size_of
        ``size_of(rows, most)``: what a call is padded to.
    most
        Largest number of rows in one evaluation.
    """

    def __init__(self, rows_per_call: NDArray[np.int64], size_of: Callable[[int, int], int], most: int) -> None:
        self._calls = np.bincount(rows_per_call)  # (most + 1,): the memory does not grow with the calls
        self._size_of = size_of
        self.cut_to(most)

    def cut_to(self, most: int) -> None:
        """From now on a call of more rows is cut into several."""
        rows = np.arange(len(self._calls))
        self._most, self._full, rest = most, rows // most, rows % most
        self._rest = np.array([self._size_of(int(r), most) if r else 0 for r in rest])

    def done(self, rows: int) -> None:
        """A call of the program is done."""
        self._calls[rows] -= 1

    def of(self, size: int) -> int:
        """Evaluations of ``size`` rows that are left."""
        left = self._calls[self._rest == size].sum()
        return int(left + (self._calls @ self._full if size == self._most else 0))
