"""Ctrl-C, SIGTERM and SIGHUP end a command in order: what is finished is written, then it says so and exits.

Only the command line handles signals. In Python ``KeyboardInterrupt`` does the same, and other signals are the
program's own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from ..work.terminal import restore

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Windows has no SIGHUP."""

_SAME = 0.2
"""Seconds in which a second signal is the same one: terminals send it to a launcher too, which passes it on."""

_first: float | None = None
"""When the first signal came."""

_number = 0
"""Which one it was."""


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(error: KeyboardInterrupt) -> int:
    """128 plus the number of the signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)


def received() -> int | None:
    """The exit code of the first signal that came; None if none did.

    What it raises may not arrive: libraries turn it into errors of their own, or into another exit code.
    """
    return None if _first is None else 128 + _number


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Inside, the first signal raises :class:`Stopped` in the main thread, and a second one ends the process at once.

    A signal that is ignored stays ignored: ``nohup`` does so with SIGHUP, shells with Ctrl-C for background jobs.
    """
    global _first
    _first = None
    before = {}
    if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, _handle)
    try:
        yield
    finally:
        if _first is None:  # else a second one ends the process, also while the interpreter ends
            for number, handler in before.items():
                signal.signal(number, handler)


def _handle(number: int, _: FrameType | None) -> None:
    global _first, _number
    now = time.monotonic()
    if _first is None:
        _first, _number = now, number
        raise Stopped(number)
    if now - _first > _SAME:
        restore()
        os._exit(128 + number)
