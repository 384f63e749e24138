"""The progress of one piece of work, reported as a fraction."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[float], object]
"""Called with the finished fraction, 0 to 1."""


class Progress:
    """Reports how much of a piece of work is finished: 0 to 1, scaled to the part of a larger work that it is.

    Parameters
    ----------
    report
        Gets the fraction of the larger work; None: nothing is reported.
    begin, end
        Where this part begins and ends in the larger work.
    """

    def __init__(self, report: Report | None = None, begin: float = 0.0, end: float = 1.0) -> None:
        self._report, self._begin, self._end = report, begin, end

    def __call__(self, fraction: float) -> None:
        """``fraction`` of this part is finished."""
        if self._report is not None:
            self._report(self._begin + fraction * (self._end - self._begin))

    def part(self, begin: float, end: float) -> Progress:
        """The progress of the part of this work from ``begin`` to ``end``."""
        size = self._end - self._begin
        return Progress(self._report, self._begin + begin * size, self._begin + end * size)
