"""Buffers and graphs that stand between two runs of a denoiser: the later one replays what the earlier one captured."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from .buffers import Buffers, Contents
from .denoiser import Denoiser
from .graphs import Graphs

T = TypeVar("T")


@dataclass(frozen=True)
class Captured:
    """Captured calls, with the buffers that they read and write: neither is of use without the other."""

    buffers: Buffers
    graphs: Graphs


class KeptGraphs:
    """The captured calls of a denoiser's latest run. There is one set at most, since each holds memory of the device.

    A run takes them out, and puts them back when it has ended; so no other run can replay them meanwhile. A run that
    raises, or that is given up, puts nothing back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[Hashable, Captured, torch.cuda.Event] | None = None
        self._user: weakref.ref[Any] | None = None
        _everywhere.add(self)

    def take(self, user: object, key: Hashable, contents: Contents) -> Captured | None:
        """What is kept, if the run of ``user`` can replay it. If not it is dropped, before the run allocates its own.

        While one run that may put something back is alive, another one gets nothing, and will not keep anything.
        """
        with self._lock:
            if self._user is not None and self._user() is not None:
                return None
            self._user = weakref.ref(user)
            kept, self._kept = self._kept, None
        if kept is None or kept[0] != (key, contents.form()) or kept[1].buffers.slots < contents.slots:
            return None
        _, captured, ended = kept
        device = captured.buffers.state.device
        torch.cuda.current_stream(device).wait_event(ended)  # the earlier run may have been on another stream
        captured.buffers.refill(contents)
        return captured

    def put_back(self, user: object, key: Hashable, contents: Contents, captured: Captured | None) -> None:
        """The run of ``user`` has ended; ``captured`` is what a later one may use, None for nothing."""
        ended = None
        if captured is not None:
            ended = torch.cuda.current_stream(captured.buffers.state.device).record_event()
        with self._lock:
            if self._user is None or self._user() is not user:
                return
            self._user = None
            if captured is not None and ended is not None:
                self._kept = (key, contents.form()), captured, ended

    def free(self) -> bool:
        """Drop what is kept; a run that is alive keeps nothing when it ends. Returns whether there was anything."""
        with self._lock:
            kept, self._kept, self._user = self._kept, None, None
        return kept is not None

    def drop(self) -> bool:
        """Drop what is kept; a run that is alive may keep its own. Returns whether there was anything."""
        with self._lock:
            kept, self._kept = self._kept, None
        return kept is not None

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a model, by ``copy.deepcopy`` or pickled, keeps graphs of its own."""
        return KeptGraphs, ()


def kept_by(denoiser: Denoiser) -> KeptGraphs:
    """The place where ``denoiser`` keeps captured calls; it goes when the denoiser goes."""
    kept: KeptGraphs = vars(denoiser).setdefault("_kept_graphs", KeptGraphs())
    return kept


_everywhere: weakref.WeakSet[KeptGraphs] = weakref.WeakSet()
"""All places of this process: what one model keeps may be what another one needs."""


def drop_everywhere() -> bool:
    """The memory has run out: drop what any model keeps between its runs. Returns whether there was anything."""
    dropped = [kept.drop() for kept in list(_everywhere)]
    return any(dropped)


def with_room(work: Callable[[], T]) -> T:
    """``work()``; if the memory runs out, once more without what models keep between their runs."""
    try:
        return work()
    except torch.OutOfMemoryError:
        if not drop_everywhere():
            raise
    torch.cuda.empty_cache()  # here the error no longer keeps tensors of the failed work alive
    return work()
