"""Where progress is shown: in place on a terminal, as lines in a log, or not at all. Always on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Literal, get_args

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

Mode = Literal["auto", "live", "plain", "none"]
"""``auto`` is ``live`` on a terminal, else ``plain``."""

VARIABLE = "HSD_PROGRESS"
"""The environment variable that says the mode where nothing else does."""

REFRESHES = 4.0
"""Times a second that what is shown in place is drawn again."""

_SHOW_CURSOR = b"\x1b[?25h"

_active: Screen | None = None
"""The screen that is drawn in place now: a terminal has room for one."""

_lock = threading.Lock()
"""Held while a screen becomes the active one."""


def make_console(*, live: bool = False) -> Console:
    """Standard error. ``live``: as a terminal, whatever it is."""
    return Console(stderr=True, highlight=False, force_terminal=True if live else None)


def mode_of(mode: Mode | None = None) -> Mode:
    """``live``, ``plain`` or ``none``; without a ``mode``, that of the environment.

    Raises
    ------
    ValueError
        For a mode that does not exist.
    """
    where = "the progress mode" if mode else VARIABLE
    asked = mode or os.environ.get(VARIABLE) or "auto"
    if asked not in get_args(Mode):
        raise ValueError(f"{where} is {asked!r}: it has to be one of {', '.join(get_args(Mode))}")
    if asked != "auto":
        return asked  # type: ignore[return-value]
    # rich takes FORCE_COLOR for a terminal: a log with colours must not get movements of the cursor.
    tty = sys.stderr is not None and sys.stderr.isatty()
    return "live" if tty and make_console().is_interactive else "plain"


class Screen:
    """Draws something in place, below lines that stay, from :meth:`start` on. Use as a context manager.

    Parameters
    ----------
    body
        What is drawn, called for each drawing, from another thread.
    mode
        See :func:`mode_of`. With ``plain`` only lines are shown; with ``none`` not even those.
    """

    def __init__(self, body: Callable[[], RenderableType], mode: Mode | None = None) -> None:
        self.mode = mode_of(mode)
        self.console = make_console(live=self.mode == "live")
        self._live: Live | None = None
        if self.mode == "live":
            self._live = Live(
                get_renderable=body,
                console=self.console,
                refresh_per_second=REFRESHES,
                transient=True,
                redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),  # else it is a file of the user
                vertical_overflow="crop",
            )

    def line(self, text: str) -> None:
        """A line that stays."""
        if self.mode == "none":
            return
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            if self._live is not None:
                self.console.print(Text(printable(text, self.console)), soft_wrap=True)
            else:
                print(printable(text, self.console), file=sys.stderr, flush=True)

    def start(self) -> None:
        """Begin to draw in place, unless another screen does that; until then lines may be printed by others too."""
        global _active
        if self._live is None:
            return
        with _lock:
            if _active is not None:
                return
            _active = self
        with contextlib.suppress(OSError, ValueError):
            self._live.start()

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what is drawn in place, and show the cursor. The terminal may be gone by then."""
        global _active
        if self._live is None or _active is not self:
            return
        try:
            with contextlib.suppress(OSError, ValueError):
                self._live.stop()
        finally:
            _active = None


def restore() -> None:
    """Show the cursor again, for a process that ends at once."""
    if _active is not None:
        with contextlib.suppress(OSError, ValueError):
            os.write(2, _SHOW_CURSOR)


def printable(text: str, console: Console) -> str:
    """One line of ``text`` that the console can show: without control characters, and in its encoding."""
    text = "".join(c if c.isprintable() else " " for c in text)
    encoding = console.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding, "replace")


class Pace:
    """When a plain line is due: when a tenth more is done, but not within half a minute; and each ten minutes.

    So a run has some ten lines, and one of many hours is never silent for long.
    """

    def __init__(self, *, share: float = 0.1, seconds: float = 30.0, most: float = 600.0) -> None:
        self._share, self._seconds, self._most = share, seconds, most
        self._fraction, self._time = 0.0, time.monotonic()

    def due(self, fraction: float) -> bool:
        """Whether to print a line now, when ``fraction`` of the work is done; it counts as printed."""
        now = time.monotonic()
        passed = now - self._time
        if passed < self._seconds or (fraction < self._fraction + self._share and passed < self._most):
            return False
        self._fraction, self._time = fraction, now
        return True
