"""The memory of a device: what is allocated, cached and private to graphs, and what becomes of a block that is freed.

Sizes are added up, places are not: a cached byte fits everywhere, so that there is no fragmentation.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

PAGE = 512
"""Bytes that sizes are rounded up to, as in torch's allocator."""

Pool = tuple[int, int]
"""The id of a private pool; :data:`COMMON` is the one that calls outside of graphs use."""

COMMON: Pool = (0, 0)


def spoil(raw: Tensor) -> None:
    """What memory holds that belongs to nobody: NaN. Integers become 0, which is an index that exists."""
    raw.fill_(float("nan") if raw.is_floating_point() or raw.is_complex() else 0)


class Block:
    """Memory of tensors that share a storage. It is freed when the last of them is gone, as the host sees it."""

    def __init__(self, memory: Memory, raw: Tensor, stream: Any, size: int, pool: Pool) -> None:
        self.memory, self.raw, self.stream, self.size, self.pool = memory, raw, stream, size, pool
        self.capture = stream.capture
        self.used_by: set[Any] = set()

    def record_stream(self, stream: Any) -> None:
        """``Tensor.record_stream``: the block is used by another stream too."""
        self.used_by.add(stream)

    def __del__(self) -> None:
        if self.memory.machine.streams:  # an emulation that is over has none
            self.memory.free(self)


class Memory:
    """One device's allocator: it gives memory in the order of the host's calls, and takes back what streams are past.

    Attributes
    ----------
    fails_at
        The number of the allocation that raises ``torch.OutOfMemoryError``; 0: none.
    allocations
        How many there were.
    """

    def __init__(self, machine: Any, index: int, limit: int) -> None:
        self.machine, self.index, self.limit = machine, index, limit
        self.allocations = self.fails_at = 0
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self.cached: dict[tuple[Pool, Any], int] = defaultdict(int)  # by pool and stream
        self.users: dict[Pool, int] = defaultdict(int)  # graphs that hold a pool
        self.capturing: list[Pool] = []  # pools that a capture allocates to
        self.postponed: list[Block] = []

    def reset_peak(self) -> None:
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    def allocate(self, raw: Tensor, stream: Any) -> Block:
        """A block for ``raw``, on the stream that will use it."""
        pool = COMMON if stream.capture is None else stream.capture.pool_id
        size = -(-max(1, raw.untyped_storage().nbytes()) // PAGE) * PAGE
        with self.machine.lock:
            self.allocations += 1
            if self.allocations == self.fails_at or not self._take(size, pool, stream):
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {size} bytes. GPU {self.index} has a total capacity of "
                    f"{self.limit} bytes of which {self.limit - self.reserved} bytes is free."
                )
            self.allocated += size
            self.peak_allocated = max(self.peak_allocated, self.allocated)
        return Block(self, raw, stream, size, pool)

    def _take(self, size: int, pool: Pool, stream: Any) -> bool:
        for attempt in range(2):
            own = self.cached[pool, stream]
            fresh = max(0, size - own)
            if self.reserved + fresh <= self.limit:
                self.cached[pool, stream] = own - (size - fresh)
                self.reserved += fresh
                self.peak_reserved = max(self.peak_reserved, self.reserved)
                return True
            if not attempt:
                self.empty_cache()
        return False

    def empty_cache(self) -> None:
        """Give cached memory back; that of private pools only if no graph holds them."""
        with self.machine.lock:
            for pool, stream in list(self.cached):
                if not self.users[pool]:
                    self.reserved -= self.cached.pop((pool, stream))

    def free(self, block: Block) -> None:
        """Memory comes back once the streams that use it are past it; then anything may be written there."""
        with self.machine.lock:
            self.allocated -= block.size
            if block.capture is not None:
                if block.stream.capture is block.capture:  # inside of the capture: a replay spoils it at this point
                    block.capture.ops.append(lambda raw=block.raw: spoil(raw))
                self._give_back(block)
            elif block.used_by - {block.stream}:
                self.postponed.append(block)
                self.free_postponed()
            else:
                block.stream.put(lambda raw=block.raw: spoil(raw))
                self._give_back(block)

    def free_postponed(self) -> None:
        """Blocks that several streams use wait for events, which torch does not ask for while a graph is captured."""
        if self.capturing:
            return
        blocks, self.postponed = self.postponed, []
        for block in blocks:
            markers = [stream.mark() for stream in (block.stream, *block.used_by)]
            self.machine.later(markers, lambda block=block: self._come_back(block))

    def _come_back(self, block: Block) -> None:
        spoil(block.raw)
        self._give_back(block)

    def _give_back(self, block: Block) -> None:
        self.cached[block.pool, block.stream] += block.size

    def begin(self, pool: Pool) -> None:
        """From now on the capture under way allocates in ``pool``."""
        with self.machine.lock:
            self.capturing.append(pool)
            self.users[pool] += 1

    def end(self, pool: Pool) -> None:
        with self.machine.lock:
            if pool not in self.capturing:
                raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
            self.capturing.remove(pool)
            self.free_postponed()

    def release(self, pool: Pool) -> None:
        """A graph no longer holds ``pool``."""
        with self.machine.lock:
            self.users[pool] -= 1

    def private(self) -> int:
        """Bytes that only graphs can use."""
        return sum(size for (pool, _), size in self.cached.items() if pool != COMMON)
