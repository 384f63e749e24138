"""The progress of a piece of work, reported as a fraction, of the whole or of its stages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from .arguments import check_function

P = ParamSpec("P")
T = TypeVar("T")

Report = Callable[[float], object]
"""Called with the finished fraction, 0 to 1."""

StageReport = Callable[[str, float], object]
"""Called with the stage (``encode``, ``cluster``...) and the fraction of it that is finished (0 to 1)."""

ProgressOption = bool | StageReport | None
"""``progress=`` of all functions that take long.

False (the default) or None: nothing is printed. True: it is shown on standard error, live on a terminal and in a few
lines elsewhere. A function is called as ``progress(stage, fraction)``, with the name of the stage and the fraction of
it that is finished, 0 to 1. It is called in the thread that works, and often, so it should return soon; what it raises
ends the work. A stage that has nothing to do is left out, and the fraction of one whose end is not known stays 0.
"""


def check_progress(progress: Any) -> None:
    """``TypeError`` unless it is a :data:`ProgressOption`, before any work."""
    if progress is not None and not isinstance(progress, bool):
        takes = "(stage, fraction), see hsd.ProgressOption"
        check_function("progress", progress, "encode", 0.0, takes=takes, otherwise="True, False")


def of_stage(progress: ProgressOption, stage: str) -> Report | None:
    """What is called with the fraction of one stage; None if nobody wants to know."""
    check_progress(progress)
    return partial(progress, stage) if callable(progress) else None


def shows_stages(work: Callable[P, T]) -> Callable[P, T]:
    """A function whose ``progress``, a :data:`ProgressOption`, may be True: then the stages are shown."""

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        check_progress(kwargs.get("progress"))
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
