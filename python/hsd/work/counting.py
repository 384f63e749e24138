"""Items that are counted while they are worked on, as ``progress=`` wants it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import RenderableType

from .progress import ProgressOption
from .stages import BarLine, Stage
from .terminal import Pace, Screen


@contextlib.contextmanager
def counted(total: int, what: str, stage: str, progress: ProgressOption) -> Iterator[Callable[..., None]]:
    """A bar that counts ``total`` items, or a function that is told of them as ``stage``: as ``progress`` wants.

    Call what it gives with the number of finished ones, and a note if wanted.
    """
    done, note = 0, ""
    counting, pace = Stage(what, total), Pace()
    tell = progress if callable(progress) else lambda stage, fraction: None

    def body() -> RenderableType:
        return BarLine(f"{what} {done:,} of {total:,}", done / total if total else 1.0, note)

    def advance(n: int = 1, text: str = "") -> None:
        nonlocal done, note
        done, note = done + n, text or note
        counting.fraction = done / total if total else 1.0
        tell(stage, counting.fraction)
        if screen.mode == "plain" and pace.due(counting.fraction):
            screen.line(counting.text())

    with Screen(body, None if progress is True else "none") as screen:
        screen.start()
        yield advance
