"""The functions of ``torch.cuda`` for the emulated devices, and what is put in the place of what while they are there.

``torch.cuda.graph``, ``stream`` and ``device`` stay torch's own: they only use what is replaced here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from device.graphs import CUDAGraph, graph_pool_handle
from device.machine import Event, Machine, Stream
from device.memory import Memory
from device.tensor import visible

NAME = "Emulated device"


def replacements(machine: Machine) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, value) of everything that is replaced."""
    for name, value in {**_functions(machine), **_memory(machine)}.items():
        yield torch.cuda, name, value
    yield torch.cuda.graph, "default_capture_stream", None
    yield torch._C, "_host_emptyCache", lambda: None
    yield torch._C, "_cuda_endAllocateToPool", lambda device, pool: machine.memory[device].end(pool)
    yield torch._C, "_cuda_releasePool", lambda device, pool: machine.memory[device].release(pool)
    yield threading.Thread, "run", _with_mode(threading.Thread.run)


def _with_mode(run: Any) -> Any:
    """Threads that begin now see the device too."""

    def run_with_mode(thread: threading.Thread) -> None:
        with visible():
            run(thread)

    return run_with_mode


def _functions(machine: Machine) -> dict[str, Any]:
    def synchronize(device: Any = None) -> None:
        machine.forbid("synchronising the device")
        machine.finish(machine.index_of(device))

    def exchange(device: int) -> int:
        before = machine.thread.device
        if device >= 0:
            machine.thread.device = machine.index_of(device)
        return before

    def properties(device: Any = None) -> SimpleNamespace:
        total = machine.memory[machine.index_of(device)].limit
        return SimpleNamespace(name=NAME, total_memory=total, multi_processor_count=1, major=9, minor=0)

    return {
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "is_initialized": lambda: True,
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: machine.n_devices,
        "current_device": lambda: machine.thread.device,
        "set_device": lambda device: exchange(machine.index_of(device)),
        "_exchange_device": exchange,
        "_maybe_exchange_device": exchange,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": properties,
        "Stream": Stream,
        "Event": Event,
        "current_stream": machine.current_stream,
        "default_stream": lambda device=None: machine.defaults[machine.index_of(device)],
        "set_stream": machine.set_stream,
        "synchronize": synchronize,
        "CUDAGraph": CUDAGraph,
        "graph_pool_handle": graph_pool_handle,
        "is_current_stream_capturing": lambda: machine.current_stream().capture is not None,
    }


def _memory(machine: Machine) -> dict[str, Any]:
    def of(device: Any = None) -> Memory:
        return machine.memory[machine.index_of(device)]

    def empty_cache() -> None:
        machine.forbid("emptying the cache")
        machine.counts["emptied caches"] += 1
        for memory in machine.memory:
            memory.empty_cache()

    return {
        "empty_cache": empty_cache,
        "ipc_collect": lambda: None,
        "memory_allocated": lambda device=None: of(device).allocated,
        "memory_reserved": lambda device=None: of(device).reserved,
        "max_memory_allocated": lambda device=None: of(device).peak_allocated,
        "max_memory_reserved": lambda device=None: of(device).peak_reserved,
        "reset_peak_memory_stats": lambda device=None: of(device).reset_peak(),
        "mem_get_info": lambda device=None: (of(device).limit - of(device).reserved, of(device).limit),
    }
