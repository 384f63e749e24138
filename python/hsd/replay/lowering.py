"""The program that runs a plan with a denoiser: what lanes of one call may differ in is the denoiser's."""

from __future__ import annotations

from .._core import Program
from ..conditioning.rows import Conditioning
from ..names import Order
from ..planning.plan import Plan
from .denoiser import Denoiser
from .lengths import kinds_of


def program_of(
    plan: Plan,
    denoiser: Denoiser,
    conditioning: Conditioning | None,
    batch_size: int,
    order: Order = "depth",
    max_slots: int | None = None,
) -> Program:
    """:meth:`hsd.Plan.program` with what the denoiser asks of calls: their steps, rows of the network, and lengths.

    Without ``conditioning`` the lengths of texts are not known, and the program may mix them.
    """
    return plan.program(
        batch_size,
        order,
        max_slots,
        mixed_steps=denoiser.mixed_timesteps,
        rows=denoiser.rows_by_step(plan.n_steps),
        kinds=None if conditioning is None else kinds_of(plan, conditioning, denoiser),
    )
