"""Torch devices: their names, waiting for them, and how much fits into their memory at once."""

from __future__ import annotations

import contextlib
import platform
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import Notice, OutOfMemory
from .faults import LESS_MEMORY, first_line

T = TypeVar("T")


def hardware_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def describe(device: torch.device) -> str:
    """Type and name, for records and reports: ``cuda (NVIDIA H100)``; the type alone if the device does not answer."""
    try:
        return f"{device.type} ({hardware_name(device)})"
    except RuntimeError:  # it has failed, and this is a record of that
        return device.type


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done what was enqueued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    else:
        torch.get_device_module(device.type).synchronize()


def finish(stream: torch.cuda.Stream) -> None:
    """Wait until a stream has done what was enqueued. The thread sleeps; by default CUDA waits in a loop."""
    event = torch.cuda.Event(blocking=True)
    event.record(stream)
    event.synchronize()


def to_host(tensor: Tensor) -> Tensor:
    """A tensor of the host with the values of ``tensor``, of the same shape and dtype; itself if it is there already.

    From a CUDA device it is copied into pinned memory, which the device writes by itself; the thread sleeps until the
    current stream, in which this happens, has done it.
    """
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    finish(torch.cuda.current_stream(tensor.device))
    return host


def with_index(device: torch.device | None) -> torch.device | None:
    """``device``, where it is a CUDA device without an index the current one of this thread."""
    if device is None or device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def use_in_thread(device: torch.device | None) -> None:
    """Make a CUDA device current in this thread; nothing for None and for other devices.

    Each thread begins with cuda:0, whichever device is current in the thread that started it. What a thread makes
    without naming a device (events, streams, pinned memory) belongs to the current one.
    """
    device = with_index(device)
    if device is not None and device.type == "cuda":
        torch.cuda.set_device(device)


class FittingSize:
    """The largest number of items that fit into the device's memory at once: halved whenever the memory runs out.

    Before it is halved, which is for good, room is made if that is possible, and the same number is tried once more.

    Parameters
    ----------
    most
        The initial number.
    items
        Name of the items, for messages: "latents".
    device
        The device whose memory is the limit.
    on_change
        Called after the number was halved.
    make_room
        Called when the memory has run out, before the number is halved, once in each :meth:`run`: gives back memory
        that is not needed all the time, or waits for work that holds some. Returns whether there was any, so that it
        is worth trying again.

    Attributes
    ----------
    most
        The current number.
    """

    def __init__(
        self,
        most: int,
        items: str,
        device: torch.device,
        on_change: Callable[[], object] = lambda: None,
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        self.most = most
        self._items, self._device, self._on_change, self._make_room = items, device, on_change, make_room

    def run(self, work: Callable[[int], T], left: int) -> tuple[T, int]:
        """The result of ``work(n)`` and n, the largest number up to ``left`` that fits.

        ``work`` is called again where it ran out of memory, so it must not have changed anything then.

        Raises
        ------
        hsd.OutOfMemory
            If not even one item fits.
        """
        may_make_room = True
        while True:
            size, failed = min(self.most, left), None
            try:
                return work(size), size
            except torch.OutOfMemoryError as error:
                failed = first_line(error)
            # Here the error no longer keeps the tensors of the failed work alive.
            if may_make_room and self._make_room():
                self._empty_caches()
            else:
                self._halve(size, failed)
            may_make_room = False

    def _halve(self, size: int, error: str) -> None:
        if size == 1:
            raise OutOfMemory(
                f"a single one of the {self._items} does not fit into the memory of the device: {error}. {LESS_MEMORY}"
            )
        self.most = (size + 1) // 2
        text = f"out of memory with {size} {self._items} at once: continuing with {self.most}"
        warnings.warn(text, Notice, stacklevel=4)
        self._on_change()
        self._empty_caches()

    def _empty_caches(self) -> None:
        if self._device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # torch may refuse it while another thread captures a graph
                torch.cuda.empty_cache()
