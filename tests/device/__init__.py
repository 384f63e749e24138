"""An asynchronous CUDA device, played on the CPU: what a real one would do late, this one does late too.

    with emulated(seed=3, eagerness=0.1) as device:
        device.adopt(pipe)  # or pipe.to("cuda:0")
        images = list(hsd.stream(plan, hsd.load(pipe)))

* **Tensors** (``tensor.py``) are wrappers that say ``cuda:0``, so that code which asks for the device takes its CUDA
  path. (A tag on tensors of the CPU was the alternative: such code then took the path of the CPU, and functions of HSD
  and diffusers had to be replaced.) What is done with them is enqueued; memory that nobody has written is NaN.
* **Streams and events** (``machine.py``) are queues, which a seeded scheduler runs late, each at its own changing
  speed. Current device and stream belong to the thread. The device may die at any call.
* **Memory** (``memory.py``): a freed block turns to NaN once its stream has passed, and those of ``record_stream``.
  Allocated, cached and peak bytes, private pools, a limit, an allocation that fails. Pinned memory is read when the
  copy happens.
* **Graphs** (``graphs.py``) replay what they recorded on the memory that they recorded; a sync in a capture is refused.
* ``cuda.py`` has the functions of ``torch.cuda``; all are put back at the end. ``runs.py`` has runs of HSD.

What it cannot show: the numbers of CUDA's kernels, their speed, fragmented memory, attention with a fused kernel,
streams that join a capture, random numbers drawn on the device inside a capture. A copy to ``"cuda"`` without a number
goes to ``cuda:0``, not to the current device: torch itself asks its missing driver for the number. ``torch.compile``
compiles nothing while a dispatch mode is on, so that compiled calls run uncompiled here; only a GPU shows them with
graphs. A seed does not repeat a schedule exactly, because threads of the host run as the system lets them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from device.cuda import replacements
from device.graphs import CUDAGraph
from device.machine import DeviceError, Event, Machine, Stream, set_active
from device.memory import Memory
from device.tensor import DeviceTensor, on_device, visible

__all__ = ["CUDAGraph", "Device", "DeviceError", "DeviceTensor", "Event", "Machine", "Memory", "Stream", "emulated"]


class Device(Machine):
    """A machine, and the networks that were moved to it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._adopted: list[tuple[dict[str, Any], str, Any]] = []

    def adopt(self, what: Any, device: int = 0) -> Any:
        """Move the networks of a pipeline, of several or a network itself to a device, until the emulation ends."""
        copies: dict[int, Any] = {}
        for network in networks_of(what):
            for module in network.modules():
                for table in (module._parameters, module._buffers):
                    for name, tensor in table.items():
                        if tensor is None or isinstance(tensor, DeviceTensor):
                            continue
                        self._adopted.append((table, name, tensor))
                        if id(tensor) not in copies:  # tied weights stay tied
                            copies[id(tensor)] = _moved(tensor, device)
                        table[name] = copies[id(tensor)]
        return what

    def release(self) -> None:
        for table, name, tensor in reversed(self._adopted):
            table[name] = tensor
        self._adopted = []


def _moved(tensor: torch.Tensor, device: int) -> torch.Tensor:
    out = on_device(tensor, device)
    return nn.Parameter(out, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else out


def networks_of(what: Any) -> list[nn.Module]:
    """The networks of a pipeline, of a tuple of them, or of an adapter; or the network itself."""
    if isinstance(what, nn.Module):
        return [what]
    if isinstance(what, (tuple, list)):
        return [network for part in what for network in networks_of(part)]
    if hasattr(what, "pipes"):
        return networks_of(what.pipes())
    return [part for part in what.components.values() if isinstance(part, nn.Module)]


@contextlib.contextmanager
def emulated(seed: int = 0, eagerness: float = 0.3, *, devices: int = 2, limit: int = 1 << 34) -> Iterator[Device]:
    """Inside, ``torch.cuda`` has emulated devices; see :class:`Machine` for the parameters."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device: the emulated one cannot stand in its place")
    torch._C._ensureCUDADeviceGuardSet()
    device = Device(seed=seed, eagerness=eagerness, devices=devices, limit=limit)
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for owner, name, value in replacements(device):
            stack.enter_context(patch.object(owner, name, value))
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(set_active, None)
        set_active(device)
        device.start()
        stack.callback(device.streams.clear)
        stack.callback(device.release)
        with visible():
            yield device
