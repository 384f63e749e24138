"""Rows of the network where guidance varies: two of a guided lane, one of another.

The program says how many rows a lane has at each step. The denoiser is told which rows are whose by three tensors
beside the conditioning, and :class:`hsd.models.Guidance` reads them. Where guidance does not vary there are none.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._core import Program
from ..errors import PlanMismatch
from ..planning.plan import Plan
from .denoiser import Denoiser

PICK = "_pick"
"""(R,) int64: for each row of the network, which of the 2L inputs [unconditional; conditional] it takes."""

UNCONDITIONAL = "_unconditional_row"
"""(L,) int64: each lane's unconditional row; its conditional one if the lane is not guided."""

CONDITIONAL = "_conditional_row"
"""(L,) int64: each lane's conditional row."""


def check_rows(plan: Plan, program: Program, denoiser: Denoiser) -> None:
    """``PlanMismatch`` unless the program has the rows that the denoiser takes at each step."""
    needed, found = denoiser.rows_by_step(plan.n_steps), program.rows
    if (needed is None) != (found is None) or (
        needed is not None and found is not None and not np.array_equal(needed, found)
    ):
        raise PlanMismatch(
            "the program was made for other rows of the network at each step than the model's guidance_interval gives: "
            "lower the plan with plan.program(..., rows=model.rows_by_step(plan.n_steps))"
        )


class Layout:
    """Assigns rows of the network to the lanes of a call: first the unconditional rows, then the conditional ones.

    Parameters
    ----------
    rows
        (K,) the rows of a lane at each step, 1 or 2: :attr:`hsd.Program.rows`.
    device
        Where the denoiser runs.
    """

    def __init__(self, rows: NDArray, device: torch.device) -> None:
        self._on_host = torch.from_numpy(rows)
        self._on_device = self._on_host.to(device)

    def count(self, step: Tensor) -> int:
        """Rows of lanes at ``step`` (L,), which is on the host."""
        return int(self._on_host[step].sum())

    def fitting(self, step: Tensor, most: int) -> int:
        """How many first lanes at ``step`` (L,), on the host, have at most ``most`` rows together; at least 1."""
        return max(1, int((self._on_host[step].cumsum(0) <= most).sum()))

    def of(self, step: Tensor, real: Tensor, size: int) -> dict[str, Tensor]:
        """What the denoiser is told about a call of ``size`` rows, R.

        It has static shapes and never waits for the device, so that a CUDA graph can hold it.

        Parameters
        ----------
        step
            (L,) int64, on the device.
        real
            (L,) bool: not padding. Real lanes come first, and there is at least one. A padded lane reads the last row
            that is in use, and rows that no lane needs are the unconditional row of lane 0.
        """
        lanes, spare = len(step), size  # one more row than there are: what is not needed is written there
        guided = (self._on_device[step] == 2) & real
        conditional = guided.sum() + real.cumsum(0) - 1
        unconditional = torch.where(guided, guided.cumsum(0) - 1, conditional)
        lane = torch.arange(lanes, device=step.device)
        pick = torch.zeros(size + 1, dtype=torch.int64, device=step.device)
        pick.scatter_(0, torch.where(real, conditional, spare), lanes + lane)
        pick.scatter_(0, torch.where(guided, unconditional, spare), lane)
        return {PICK: pick[:size], UNCONDITIONAL: unconditional, CONDITIONAL: conditional}
