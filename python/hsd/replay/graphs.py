"""Calls of a fixed size, captured once as CUDA graphs or compiled, and then used many times."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..errors import Notice
from ..work.device import with_index
from ..work.faults import first_line
from .capture import CaptureFailed, capture
from .denoiser import Denoiser
from .worth import CallCost, CallTimer, pays

EAGER_FIRST = 2
"""Calls of a size that run one kernel at a time before it is captured: a capture needs a warm-up."""


def bucket(lanes: int, most: int) -> int:
    """The size that a call of ``lanes`` is padded to: 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24... or ``most``.

    There are few sizes, so that each is used often; less than a fifth of a call is padding.
    """
    assert 1 <= lanes <= most, (lanes, most)
    size = 1 << (lanes - 1).bit_length()  # the next power of two
    step = max(1, min(size // 4, 2), size // 8)
    size = -(-lanes // step) * step
    return min(size, most)


def smaller_bucket(most: int) -> int:
    """The size below ``most`` that calls of at most ``most`` are padded to; 0 if there is none."""
    return max((size for lanes in range(1, most) if (size := bucket(lanes, most)) < most), default=0)


def can_capture(denoiser: Denoiser) -> bool:
    """Whether calls of ``denoiser`` can be CUDA graphs: on a GPU, if no value is read back and no weight is moved."""
    possible = denoiser.capturable and not denoiser.one_length and not denoiser.offloads
    return denoiser.device.type == "cuda" and possible


class Graphs:
    """A function of fixed buffers, captured as a CUDA graph from its third use with each size on, where that pays.

    The calls before the capture are its warm-up. If a capture fails, calls run one kernel at a time, and one warning
    gives the reason. If the memory runs out in one, calls of that size and of larger ones are no longer captured: a
    capture needs memory beside what the same call has used before.

    Parameters
    ----------
    device
        The CUDA device. The graphs are captured on a stream of its own.
    left
        ``left(size)``: how many calls of a size are still to come, the present one included. It decides, with the time
        that the latest call took, whether a capture pays: see :func:`~hsd.replay.worth.pays`. Without it, each
        size is captured.

    """

    def __init__(self, device: torch.device, left: Callable[[int], int] | None = None) -> None:
        self._device = device
        self.left = left
        self._works = True
        self._used: Counter[int] = Counter()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._timers: dict[int, CallTimer] = {}  # of calls that the device may not have finished
        self._costs: dict[int, CallCost] = {}
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        self._after: torch.cuda.Event | None = None  # follows the latest call
        self._too_large = math.inf  # sizes from here on are not captured: the memory has run out
        self._latest = 0

    @property
    def any(self) -> bool:
        """Whether some size is captured."""
        return bool(self._graphs)

    @property
    def sound(self) -> bool:
        """Whether no capture has failed, and the memory was sufficient for all of them."""
        return self._works and self._too_large == math.inf

    def run(self, size: int, work: Callable[[int], None]) -> None:
        """Run ``work(size)``, or replay its capture."""
        self._latest = size
        with torch.cuda.device(self._device):
            if size not in self._graphs and self._may_capture(size):
                self._capture(size, work)
            if size in self._graphs:
                self._graphs[size].replay()
            else:
                self._eager(size, work)
            if self.left is not None:
                self._after = torch.cuda.Event() if self._after is None else self._after
                self._after.record()

    def clear(self) -> bool:
        """Drop all graphs, which frees their memory; returns whether there were any."""
        held = bool(self._graphs)
        self._graphs.clear()
        self._used.clear()
        self._timers.clear()
        self._costs.clear()
        self._pool = None
        return held

    def make_room(self) -> bool:
        """The memory has run out in the latest call: drop all graphs; returns whether there were any.

        After that only smaller calls are captured, and after a second time none: where captured calls of other sizes
        leave too little memory for this one, they would be dropped and captured in turns.
        """
        if not self.clear():
            return False
        self._too_large = self._latest if self._too_large == math.inf else 0
        return True

    def _eager(self, size: int, work: Callable[[int], None]) -> None:
        """One kernel at a time, timed from the second call of a size on: the first one loads and chooses kernels."""
        self._used[size] += 1
        if self.left is None or not self._works or self._used[size] < EAGER_FIRST or size in self._timers:
            work(size)
            return
        timer = CallTimer(waited=self._after is None or self._after.query())
        with timer:
            work(size)
        self._timers[size] = timer  # not of a call that raised: it ended early

    def _may_capture(self, size: int) -> bool:
        if not self._works or size >= self._too_large or self._used[size] < EAGER_FIRST:
            return False
        return self.left is None or pays(self._cost(size), self.left(size))

    def _cost(self, size: int) -> CallCost | None:
        """The cost of the latest call of a size that the device has finished."""
        timer = self._timers.get(size)
        if timer is not None and (cost := timer.cost()) is not None:
            self._costs[size] = cost
            del self._timers[size]
        return self._costs.get(size)

    def _capture(self, size: int, work: Callable[[int], None]) -> None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()  # calls run one after the other, so all sizes share memory
        if self._stream is None:
            self._stream = torch.cuda.Stream(with_index(self._device))
        try:
            self._graphs[size] = capture(lambda: work(size), self._device, self._pool, self._stream)
        except CaptureFailed as failed:
            if not self._graphs:
                self._pool = None  # no graph uses it: the next capture needs a new one
            if isinstance(failed.cause, torch.OutOfMemoryError):
                self._too_large = min(self._too_large, size)
                return
            self._works = False
            text = "calls are not captured as CUDA graphs, but run one kernel at a time"
            warnings.warn(f"{text}: {first_line(failed.cause)}", Notice, stacklevel=3)


_compiled_forwards: WeakKeyDictionary[nn.Module, Callable[..., Any]] = WeakKeyDictionary()
"""Compiled forward functions by network, kept for the next run."""


class Compiled:
    """Networks that run through ``torch.compile`` in calls of one size, and uncompiled in calls of other sizes.

    Every size would be compiled separately, which takes minutes for a large network, and nearly all calls of a program
    are full. Networks that the user has compiled already are not touched.

    ``dynamic``: calls of one number of lanes differ in another size, the length of their tokens.
    """

    def __init__(self, modules: Sequence[nn.Module], size: int, *, dynamic: bool = False) -> None:
        self.size = size
        self._modules = [module for module in modules if not _is_compiled(module)]
        for module in self._modules:
            if module not in _compiled_forwards:
                _compiled_forwards[module] = torch.compile(module.forward, dynamic=None if dynamic else False)

    @contextlib.contextmanager
    def for_lanes(self, size: int) -> Iterator[None]:
        """Inside the context, the networks run compiled if ``size`` is the compiled one."""
        with contextlib.ExitStack() as stack:
            for module in self._modules if size == self.size else ():
                stack.enter_context(_forward(module, _compiled_forwards[module]))
            yield


def _is_compiled(module: nn.Module) -> bool:
    """Whether ``module.compile()`` was called, or ``torch.compile(module)`` returned it."""
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")


@contextlib.contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let ``module`` run another ``forward``."""
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before
