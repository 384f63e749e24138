"""How a plan is run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..names import BatchSize, Order, is_integer


@dataclass(frozen=True)
class Options:
    """How a plan is run. Nothing here changes the images beyond rounding. See :func:`stream`.

    Raises
    ------
    TypeError
        For a value of another type. Numbers that are too small are found with the plan that runs.
    """

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

    def __post_init__(self) -> None:
        for name in ("compile", "cuda_graphs", "channels_last", "keep_forks"):
            value = getattr(self, name)
            if not isinstance(value, (bool, np.bool_)):
                raise TypeError(f"{name} is {value!r}: it has to be True or False")
        if self.batch_size != "auto" and not is_integer(self.batch_size):
            raise TypeError(f"batch_size is {self.batch_size!r}: it has to be an integer or 'auto'")
        if self.max_slots is not None and not is_integer(self.max_slots):
            raise TypeError(f"max_slots is {self.max_slots!r}: it has to be an integer or None")
