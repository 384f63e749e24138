"""Lines that are written together: those of all threads that are waiting at one moment."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .lines import Entry


class Batches:
    """Lets one thread at a time write, and gives it what the others have brought meanwhile.

    Parameters
    ----------
    write
        Writes lines to the disk. What it raises is raised in every thread whose line was among them.
    mutex
        Held while it writes. Reentrant.
    """

    def __init__(self, write: Callable[[list[Entry]], None], mutex: threading.RLock) -> None:
        self._write, self._mutex = write, mutex
        self._waiting: list[_Waiting] = []
        self._queue = threading.Lock()

    def add(self, entry: Entry) -> None:
        """Write a line. When this returns, it is on the disk."""
        mine = _Waiting(entry)
        with self._queue:
            self._waiting.append(mine)
        with self._mutex:
            if not mine.settled:
                with self._queue:
                    batch, self._waiting = self._waiting, []
                try:
                    self._write([one.entry for one in batch])
                except BaseException as error:
                    for one in batch:
                        one.error = error
                finally:
                    for one in batch:
                        one.settled = True
        if mine.error is not None:
            raise mine.error


class _Waiting:
    """A line, until it is written."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.settled = False
        self.error: BaseException | None = None
