"""One capture of a CUDA graph, and what is put right where it fails."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import torch

from ..work.device import with_index

_MODE = "thread_local"
"""Other threads prepare calls and decode, and may allocate during a capture."""

_unended: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture torch could not end. Its allocators may still ask them whether a stream is theirs, by their
address, so they have to stay. There is one for each failure, and a run that has seen one captures no more."""


class CaptureFailed(Exception):
    """A capture failed; ``cause`` is the error that came first, not what followed from it."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


def capture(
    work: Callable[[], object], device: torch.device, pool: Any, stream: torch.cuda.Stream
) -> torch.cuda.CUDAGraph:
    """``work`` as a CUDA graph.

    Parameters
    ----------
    work
        Enqueues what is captured; it is not executed.
    device
        The CUDA device, which is the current one.
    pool
        Handle of the memory pool, shared with other graphs that never run at the same time.
    stream
        A stream of ``device`` to capture on. torch's own is one per process, of the device that was current at its
        first use: on another device it would capture nothing, without an error.

    Raises
    ------
    CaptureFailed
        If torch or the driver refuses something in ``work``, or the memory runs out. Nothing has been executed.
    """
    graph = torch.cuda.CUDAGraph()
    handled = sys.exc_info()[1]  # the caller may be handling another error, which is no cause of ours
    # Some versions of torch leave the capture's stream the current one where it fails. Leaving this context ends that.
    with torch.cuda.stream(torch.cuda.current_stream(device)):
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode=_MODE):
                work()
        except BaseException as error:
            _end_failed(graph, device, pool, stream)
            if isinstance(error, RuntimeError):
                raise CaptureFailed(first_cause(error, handled)) from error
            raise
    return graph


def first_cause(error: BaseException, handled: BaseException | None = None) -> BaseException:
    """The innermost error that ``error`` was raised from or while handling; not ``handled`` and what is below it."""
    while True:
        inner = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if inner is None or inner is handled:
            return error
        error = inner


def _end_failed(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any, stream: torch.cuda.Stream) -> None:
    """End what a failed capture has begun in torch's allocator and generators.

    ``CUDAGraph.capture_end`` ends the capture of the stream first. If that raises, which it does for every capture that
    something illegal has invalidated, it returns before ``endAllocateToPool`` and before the generators' epilogue, and
    ``reset`` releases nothing, since the capture has not ended. The allocator then believes for as long as the process
    lives that a capture is underway: it no longer looks whether blocks that other streams have used are free, and where
    memory runs out it does not give back what it caches. So the allocation is ended here, by the binding that
    ``torch.cuda.use_mem_pool`` ends its own with. The cases:

    * The capture was ended properly (``work`` raised something else): the binding says that nothing is recorded, and
      the graph releases its pool by itself.
    * It was not: the allocation is ended, and this capture's use of the pool is given back.
    * In newer versions the allocator of pinned memory takes part in captures, and it has no such binding. It goes on to
      compare streams with the failed graph, finds none and works as before. So the graph has to be kept.
    * Before torch 2.8 the binding has another name. If there is neither, the allocator stays as it is: memory is still
      used again by its own stream, but caches are not emptied. No version from 2.4 to 2.15 is known to be like that.

    In older versions the default generator stays in capture mode, and would raise at its next draw on the device. The
    next capture that works ends that, so one is made.
    """
    bindings = (getattr(torch._C, name, None) for name in ("_cuda_endAllocateToPool", _END_BEFORE_2_8))
    end = next(filter(None, bindings), None)
    index = with_index(device)
    if end is not None and index is not None:
        try:
            end(index.index, pool)
        except RuntimeError:
            return
        torch._C._cuda_releasePool(index.index, pool)
    _unended.append(graph)
    clean = torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode=_MODE)
    with contextlib.suppress(RuntimeError), clean:
        torch.zeros(1, device=device)


_END_BEFORE_2_8 = "_cuda_endAllocateCurrentStreamToPool"
