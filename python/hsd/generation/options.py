"""How a plan is run."""

from __future__ import annotations

from dataclasses import dataclass

from ..names import BatchSize, Order


@dataclass(frozen=True)
class Options:
    """How a plan is run. Nothing here changes the images beyond rounding. See :func:`stream`."""

    batch_size: BatchSize = 16
    order: Order = "depth"
    max_slots: int | None = None
    conditioning_memory: int | None = None
    compile: bool = False
    cuda_graphs: bool = True
    channels_last: bool = False
    keep_forks: bool = False
    keep_trunks: int = 0
    """Bytes of states at forks that are kept beside the images."""
    neighbours: int = 1
    """Processes on this machine that do the same, this one included: the memory is for all of them."""
