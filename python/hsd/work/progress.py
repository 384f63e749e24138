"""The progress of a piece of work, reported as a fraction, of the whole or of its stages."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Report = Callable[[float], object]
"""Called with the finished fraction, 0 to 1."""

StageReport = Callable[[str, float], object]
"""Called with the stage (``encode``, ``cluster``) and the fraction of it that is finished (0 to 1)."""


def shows_stages(work: Callable[P, T]) -> Callable[P, T]:
    """A function whose ``progress``, a :data:`StageReport`, may be True too: then the stages are shown."""

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if kwargs.get("progress") is not True:
            return work(*args, **kwargs)
        from .stages import Stages  # here, because it imports rich

        with Stages() as stages:
            kwargs["progress"] = stages
            return work(*args, **kwargs)

    return run


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
