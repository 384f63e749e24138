"""Lines of metadata in object stores, where nothing is appended: each writer has small files of lines, one by one.

They are ``__parts__/HOST-RANDOM/000000.jsonl`` and so on. A line may wait for those that follow in the next second: a
store charges for each file. Long runs wait longer, ten seconds at most, so that a writer leaves some hundred files an
hour. When a writer is killed, the images whose lines waited are made again.
"""

from __future__ import annotations

import secrets
import threading
import time

from ..errors import Error
from ..work.files import PARTS
from ..work.hosts import host_in_names
from ..work.objects import Objects
from .lines import Entry, encode

_SHORTEST, _LONGEST = 1.0, 10.0
"""Seconds for which a line may wait."""

_PATIENCE = 1 / 300
"""Of the time that a writer has lived, the part for which lines wait."""


class LineWriter:
    """Writes lines in a thread of its own, for one writer. Several threads may call it.

    Parameters
    ----------
    objects
        The folder of images.
    """

    def __init__(self, objects: Objects) -> None:
        self.name = f"{host_in_names()}-{secrets.token_hex(8)}"
        self._objects = objects
        self._began = time.monotonic()
        self._waiting: list[Entry] = []
        self._lines = threading.Condition()
        self._writing = threading.Lock()
        self._written: list[Entry] = []
        self._count = 0
        self._error: Error | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, entry: Entry) -> None:
        """Write a line, soon. Its image is there already.

        Raises
        ------
        OutputError
            If lines before it could not be written; :meth:`flush` tries them again.
        """
        with self._lines:
            if self._error is not None:
                raise self._error
            self._waiting.append(entry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hsd-lines", daemon=True)
                self._thread.start()
            self._lines.notify()

    def flush(self) -> None:
        """Write all lines that wait; when this returns they are in the store."""
        with self._writing:  # what is being written is waited for
            with self._lines:
                batch, self._waiting = self._waiting, []
            if not batch:
                return
            name = f"{PARTS}/{self.name}/{self._count:06d}.jsonl"
            self._count += 1  # also after an error: who has read a file does not read it again
            try:
                self._objects.put(name, b"".join(map(encode, batch)))
            except BaseException:
                with self._lines:
                    self._waiting[:0] = batch
                raise
            with self._lines:
                self._error = None
                self._written += batch

    def written(self) -> list[Entry]:
        """Lines that are in the store, and were not returned before."""
        with self._lines:
            found, self._written = self._written, []
            return found

    def close(self) -> None:
        """Write what waits and end the thread. May be called again."""
        with self._lines:
            self._closed = True
            self._lines.notify()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    def _run(self) -> None:
        while not self._closed:
            with self._lines:
                self._lines.wait_for(lambda: self._waiting or self._closed)
                patience = (time.monotonic() - self._began) * _PATIENCE
                self._lines.wait_for(lambda: self._closed, min(max(_SHORTEST, patience), _LONGEST))
            try:
                self.flush()
            except Error as error:
                with self._lines:
                    self._error = error
