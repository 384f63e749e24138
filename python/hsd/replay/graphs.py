"""Calls of a fixed size, captured once as CUDA graphs or compiled, and then used many times."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..errors import Notice
from .denoiser import Denoiser

EAGER_FIRST = 2
"""Calls of a size that run one kernel at a time before it is captured: a capture needs a warm-up."""


def bucket(lanes: int, most: int) -> int:
    """The size that a call of ``lanes`` is padded to: 1, 2, 3, 4, 6, 8, 12, 16, 24..., or ``most`` if that is less.

    There are few sizes, so that each is used often; at most a third of a call is padding.
    """
    assert 1 <= lanes <= most, (lanes, most)
    size = 1 << (lanes - 1).bit_length()  # the next power of two
    if size >= 4 and lanes <= size // 4 * 3:
        size = size // 4 * 3
    return min(size, most)


def can_capture(denoiser: Denoiser) -> bool:
    """Whether calls of ``denoiser`` can be CUDA graphs: on a GPU, if no value is read back and no weight is moved."""
    return denoiser.device.type == "cuda" and denoiser.capturable and not denoiser.offloads


class Graphs:
    """A function of fixed buffers, captured as a CUDA graph at its third use with each size.

    A size that is used only once or twice is never captured, and the calls before the capture are its warm-up. If the
    capture fails, calls run one kernel at a time, and one warning gives the reason.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._used: Counter[int] = Counter()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None
        self._works = True

    def run(self, size: int, work: Callable[[int], None]) -> None:
        """Run ``work(size)``, or replay its capture."""
        with torch.cuda.device(self._device):
            if size not in self._graphs and self._works:
                self._used[size] += 1
                if self._used[size] > EAGER_FIRST:
                    self._capture(size, work)
            if size in self._graphs:
                self._graphs[size].replay()
            else:
                work(size)

    def clear(self) -> None:
        """Drop all graphs and free their memory."""
        self._graphs.clear()
        self._used.clear()
        self._pool = None

    def _capture(self, size: int, work: Callable[[int], None]) -> None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()  # calls run one after the other, so all sizes share memory
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads prepare calls and decode, and may allocate during the capture.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work(size)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._works = False
            reason = str(error).strip().splitlines()[0]
            warnings.warn(
                f"calls are not captured as CUDA graphs, but run one kernel at a time: {reason}", Notice, stacklevel=2
            )
        else:
            self._graphs[size] = graph


_compiled_forwards: WeakKeyDictionary[nn.Module, Callable[..., Any]] = WeakKeyDictionary()
"""Compiled forward functions by network, kept for the next run."""


class Compiled:
    """Networks that run through ``torch.compile`` in calls of one size, and uncompiled in calls of other sizes.

    Every size would be compiled separately, which takes minutes for a large network, and nearly all calls of a program
    are full. Networks that the user has compiled already are not touched.
    """

    def __init__(self, modules: Sequence[nn.Module], size: int) -> None:
        self.size = size
        self._modules = [module for module in modules if not _is_compiled(module)]
        for module in self._modules:
            if module not in _compiled_forwards:
                _compiled_forwards[module] = torch.compile(module.forward, dynamic=False)

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
