"""Work in threads, with limits on what waits, so that it never fills the memory."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch

from .device import use_in_thread, with_index

T = TypeVar("T")

_END: Any = object()


class BoundedPool(Generic[T]):
    """Threads with a bounded number of tasks: at the limit, :meth:`submit` waits until one ends.

    Parameters
    ----------
    threads
        How many tasks run at once.
    most
        Largest number of tasks at once, running and waiting ones together.
    name
        Prefix of the threads' names.
    device
        If it is a CUDA device, it is the current one in the threads.
    """

    def __init__(self, threads: int, most: int, name: str, device: torch.device | None = None) -> None:
        self._pool = _pool(threads, name, device)
        self._free = threading.Semaphore(most)
        self._pending: deque[Future[T]] = deque()
        # All threads are started now. A pool forgets a thread whose start is interrupted (by Ctrl-C, in the main
        # thread), and would not wait for what that one runs.
        ready = threading.Barrier(threads)
        try:
            for _ in range(threads):
                self._pool.submit(ready.wait)
        except BaseException:
            ready.abort()
            raise

    def submit(self, task: Callable[..., T], *args: Any) -> None:
        """Queue a task; waits while the queue is full."""
        self._free.acquire()
        future = self._pool.submit(task, *args)
        self._pending.append(future)
        future.add_done_callback(lambda _: self._free.release())

    def results(self, *, wait: bool = False) -> Iterator[T]:
        """Results of finished tasks, each once, in the order of :meth:`submit`; of all tasks with ``wait``.

        An exception of a task is raised in place of its result.
        """
        while self._pending and (wait or self._pending[0].done()):
            yield self._pending.popleft().result()

    def wait(self) -> bool:
        """Wait until no task runs or waits. Whether there is any whose result was not taken: also one that has ended.

        What they raised is raised where their results are taken.
        """
        futures.wait(self._pending)
        return bool(self._pending)

    def close(self, *, cancel: bool = False) -> None:
        """Wait for all tasks or, with ``cancel``, for the running ones only; then end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=cancel)


def _pool(threads: int, name: str, device: torch.device | None) -> ThreadPoolExecutor:
    """Threads in which ``device`` is current; without an index it is the one that is current here."""
    return ThreadPoolExecutor(threads, name, initializer=use_in_thread, initargs=(with_index(device),))


@contextlib.contextmanager
def ahead(
    items: Iterable[T],
    depth: int,
    *,
    name: str,
    before: Callable[[], object] = lambda: None,
    device: torch.device | None = None,
) -> Iterator[Iterator[T]]:
    """Compute ``items`` in a thread, at most ``depth`` of them in advance; ``before`` runs in it before each.

    ``device`` is current in the thread if it is a CUDA device.
    An exception in the thread is raised in place of the item. Leaving the context ends the thread.
    """
    source = iter(items)

    def make() -> T:
        before()
        return next(source, _END)

    def take(pool: ThreadPoolExecutor) -> Iterator[T]:
        made = deque(pool.submit(make) for _ in range(depth))
        while (item := made.popleft().result()) is not _END:
            made.append(pool.submit(make))
            yield item

    pool = _pool(1, name, device)
    try:
        yield take(pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
