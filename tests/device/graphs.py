"""CUDA graphs: what was enqueued on the capturing stream, with the memory that it used then."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

from device.machine import DeviceError, active, is_active
from device.memory import Pool

_ids = itertools.count(1)


def graph_pool_handle() -> Pool:
    """``torch.cuda.graph_pool_handle``."""
    return (0, next(_ids))


class CUDAGraph:
    """``torch.cuda.CUDAGraph``. A replay reads what is then at the addresses that it recorded."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.machine = active()
        self.ops: list[Callable[[], object]] = []
        self.pool_id: Pool = (0, 0)
        self.mode = "global"
        self.spoiled = False
        self._stream: Any = None
        self._captured = False

    def capture_begin(self, pool: Pool | None = None, capture_error_mode: str = "global", **_: Any) -> None:
        machine = self.machine
        stream = machine.current_stream()
        machine.call("begin a capture")
        if stream in machine.defaults:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        if stream.capture is not None or self._captured:
            raise RuntimeError("This CUDAGraph instance already owns a captured graph, or a capture is under way.")
        self.pool_id, self.mode = pool or (next(_ids), 0), capture_error_mode
        self._stream, stream.capture = stream, self
        machine.memory[stream.device_index].begin(self.pool_id)
        machine.captures.append(self)
        machine.thread.capture = self
        machine.counts["captures"] += 1

    def capture_end(self) -> None:
        machine, stream = self.machine, self._stream
        if machine.current_stream() is not stream:
            raise RuntimeError("Capture must end on the same stream it began on.")
        stream.capture = machine.thread.capture = None
        machine.captures.remove(self)
        machine.call("end a capture")
        if self.spoiled:  # torch does not come to the end of the allocation to the pool
            raise DeviceError("CUDA error: operation failed due to a previous error during capture")
        machine.memory[stream.device_index].end(self.pool_id)
        self._captured = True
        if not self.ops:
            warnings.warn(
                "The CUDA Graph is empty. This usually means that the graph was attempted to be captured on wrong "
                "device or stream.",
                UserWarning,
                stacklevel=2,
            )

    def replay(self) -> None:
        machine = self.machine
        machine.call("replay")
        if not self._captured:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        machine.counts["replays"] += 1
        stream = machine.current_stream(self._stream.device)
        with machine.lock:
            stream.queue.extend(self.ops)
        machine.run_some()

    def reset(self) -> None:
        if self._captured and is_active(self.machine):
            self._captured, self.ops = False, []
            self.machine.memory[self._stream.device_index].release(self.pool_id)

    def pool(self) -> Pool:
        return self.pool_id

    def __del__(self) -> None:
        self.reset()
