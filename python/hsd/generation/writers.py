"""Threads that write images while the next ones are generated."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..errors import OutputError
from ..work.files import advice
from ..work.threads import BoundedPool


class Writers:
    """Threads that write images, with a bounded queue. Use as a context manager.

    Parameters
    ----------
    threads
        How many images are written at once.
    queue
        Largest number of images being written or waiting: a slow disk slows the run down, but does not fill the memory.
    """

    def __init__(self, threads: int = 4, queue: int = 64) -> None:
        self._pool: BoundedPool[Any] = BoundedPool(threads, queue, "hsd-writer")

    def submit(self, task: Callable[..., Any], *args: Any) -> None:
        """Queue a task; waits while the queue is full. Raises the exception of an earlier task."""
        self._check(wait=False)
        self._pool.submit(task, *args)

    def _check(self, *, wait: bool) -> None:
        try:
            for _ in self._pool.results(wait=wait):
                pass
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(
                f"cannot write an image: {error.strerror or error}. Written images are kept; {advice(error)}"
            ) from error

    def __enter__(self) -> Writers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for all queued images, also after an error and when Ctrl-C interrupts the wait, so that none is lost."""
        try:
            self._pool.close()
        except BaseException:
            self._pool.close()
            raise
        if kind is None:
            self._check(wait=True)
