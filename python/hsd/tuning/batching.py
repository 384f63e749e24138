"""The batch size: the denoiser is measured on this machine, then the size is chosen for the plan.

Larger calls use a device better, up to a point that depends on model and device; but they take memory, and lanes remain
empty when too few latents of the plan are ready. So the denoiser is timed by itself at 1, 2, 4... lanes, which takes
seconds, and :func:`choose` adds up the time of each batch size over the calls of the plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from .._core import Program
from ..conditioning.rows import Conditioning
from ..errors import OutOfMemory
from ..names import Order, check_count
from ..planning.plan import Plan
from ..replay.buffers import rounded_up
from ..replay.catch_up import caught_up_fields
from ..replay.denoiser import Denoiser
from ..replay.graphs import can_capture
from ..replay.lengths import kinds_of
from ..sampler import SamplerTable
from ..work.memory import memory_budget
from .curve import MEMORY_SHARE, MOST, CudaMemory, Curve, measure, time_to_take

_TIME_SHARE = 0.1
"""Measuring may take this share of the time that the plan would take with one lane per call."""

_FIRST = 0.5
"""Approximate seconds for measuring one lane."""

_LOWERED = 20_000_000
"""Up to this number of node-steps candidates are lowered (about a second each); above, their calls are estimated."""

_LOWERED_AT_ONCE = 50_000
"""Up to this number of node-steps all candidates are lowered, which is quick; above, only those that may be best."""

_TIE = 1e-9
"""Relative difference of predictions that differ only by rounding."""


@dataclass(frozen=True)
class Candidate:
    """A batch size and an order, and what the plan would cost with them."""

    batch_size: int
    order: Order
    seconds: float
    n_calls: int
    n_slots: int | None
    """None where the plan was not lowered."""
    status: str
    """``fits``; ``too large`` for the memory; ``not lowered``: ``seconds`` and ``n_calls`` are lower bounds
    (for huge plans, estimates), and another candidate takes less."""


@dataclass(frozen=True)
class Choice:
    """The batch size and order that take the least time by prediction."""

    batch_size: int
    order: Order
    seconds: float
    """Predicted, of the denoiser over the whole plan."""
    n_calls: int
    n_slots: int
    table: tuple[Candidate, ...]
    """The compared candidates, by batch size."""

    def __str__(self) -> str:
        lines = [f"{'batch':>5}  {'order':8}{'seconds':>12}{'calls':>12}{'slots':>10}"]
        for one in self.table:
            slots = "" if one.n_slots is None else f"{one.n_slots:,}"
            mark = "chosen" if (one.batch_size, one.order) == (self.batch_size, self.order) else one.status
            mark = "" if mark == "fits" else f"  {mark}"
            lines.append(f"{one.batch_size:5}  {one.order:8}{one.seconds:12.3f}{one.n_calls:12,}{slots:>10}{mark}")
        return "\n".join(lines)


def free_memory(device: torch.device) -> int:
    """Bytes that slots and calls may use on ``device``: a share of what is free."""
    if device.type == "cuda":
        return int(CudaMemory(device).free() * MEMORY_SHARE)
    return memory_budget()


def slot_bytes(
    denoiser: Denoiser, conditioning: Conditioning, sampler: SamplerTable, plan: Plan, catch_up: float = 0.0
) -> int:
    """Bytes of a slot in the executor: the state in float32, and the conditioning that prompts differ in.

    That is one row of each tensor, and with catch-up a second one of those that it changes.
    """
    _, own = conditioning.split(plan.covered())
    late = caught_up_fields(plan, own, catch_up)
    bytes_of = {name: math.prod(row) * dtype.itemsize for name, (row, dtype) in own.shapes().items()}
    rows = sum(bytes_of.values()) + sum(bytes_of[name] for name in late)
    return sampler.n_state * math.prod(denoiser.latent_shape()) * 4 + rows


def curve_of(
    plan: Plan, denoiser: Denoiser, conditioning: Conditioning, sampler: SamplerTable, *, cuda_graphs: bool = True
) -> Curve:
    """:func:`measure` for a plan.

    Apart from a few calls of one lane, it takes at most a tenth of the time that the plan would take with one lane per
    call. With ``torch.compile`` the uncompiled networks are measured: each size would have to be compiled.
    """
    leaves, cuda_graphs = plan.covered(), cuda_graphs and can_capture(denoiser)
    most = min(MOST, len(plan))
    single = measure(denoiser, conditioning, sampler, leaves, sizes=[1], seconds=_FIRST, cuda_graphs=cuda_graphs)
    seconds = min(time_to_take(denoiser.device), _TIME_SHARE * plan.node_steps * single.seconds(1))
    return measure(denoiser, conditioning, sampler, leaves, most=most, seconds=seconds, cuda_graphs=cuda_graphs)


def automatic(
    plan: Plan,
    denoiser: Denoiser,
    conditioning: Conditioning,
    sampler: SamplerTable,
    *,
    order: Order | None = None,
    max_slots: int | None = None,
    cuda_graphs: bool = True,
    compile: bool = False,
    catch_up: float = 0.0,
    curve: Curve | None = None,
) -> Choice:
    """What ``batch_size="auto"`` means: :func:`curve_of`, then :func:`choose`, for the executor with these arguments.

    With a ``curve`` of an earlier part of the plan nothing is measured.
    """
    if curve is None:
        curve = curve_of(plan, denoiser, conditioning, sampler, cuda_graphs=cuda_graphs)
    cuda_graphs, device = cuda_graphs and can_capture(denoiser), denoiser.device
    return choose(
        plan,
        curve,
        order=order,
        max_slots=max_slots,
        slot_bytes=slot_bytes(denoiser, conditioning, sampler, plan, catch_up),
        free_bytes=free_memory(device),
        mixed_steps=denoiser.mixed_timesteps,
        rows=denoiser.rows_by_step(plan.n_steps),
        kinds=kinds_of(plan, conditioning, denoiser),
        padded=cuda_graphs or compile,
        captured=cuda_graphs,
    )


def choose(
    plan: Plan,
    curve: Curve,
    *,
    order: Order | None = None,
    max_slots: int | None = None,
    slot_bytes: int = 0,
    free_bytes: int | None = None,
    mixed_steps: bool = True,
    rows: NDArray[np.int64] | None = None,
    kinds: NDArray[np.int64] | None = None,
    padded: bool = False,
    captured: bool = False,
    sizes: Iterable[int] | None = None,
) -> Choice:
    """The batch size, and the order if none is given, with which ``plan`` takes the least time by ``curve``.

    Parameters
    ----------
    plan
        The plan to run.
    curve
        From :func:`measure`.
    order
        The order of the calls. Default: the faster of both, if its slots fit.
    max_slots, mixed_steps, rows, kinds
        As for :meth:`Plan.program`. With ``rows``, a call of n rows takes as long as one of n / 2 lanes of two rows,
        which is what was measured.
    slot_bytes
        Bytes of one slot, see :func:`slot_bytes`.
    free_bytes
        Bytes that slots and a call may use together, see :func:`free_memory`. Default: no limit.
    padded
        Whether calls are padded to a few sizes, as the executor does where it captures or compiles them.
    captured
        Whether calls are captured as CUDA graphs: they hold memory beside that of other calls, see
        :meth:`Curve.memory_of_run`, and some slots are spare.
    sizes
        Batch sizes to choose from. Default: the measured sizes, and one between each two.

    Returns
    -------
    Choice
        Among equally fast ones the smallest batch size, and ``depth`` before ``breadth``. The batch size is never
        larger than the largest call of the plan.

    Raises
    ------
    ValueError
        For bad arguments, and for a ``max_slots`` that is too small.
    OutOfMemory
        If the slots of no candidate fit.
    """
    wanted = sorted({check_count("a size", size) for size in (curve.candidates() if sizes is None else sizes)})
    if not wanted:
        raise ValueError("sizes is empty: there is no batch size to choose from")
    orders: tuple[Order, ...] = get_args(Order) if order is None else (order,)
    for name in orders:
        plan.check_program(wanted[0], name, max_slots, mixed_steps=mixed_steps, rows=rows)
    lower = _Lowering(plan, curve, max_slots, slot_bytes, free_bytes, mixed_steps, rows, kinds, padded, captured)
    large, huge = plan.node_steps > _LOWERED_AT_ONCE, plan.node_steps > _LOWERED
    if huge and order is None:
        orders = ("depth",)  # an estimate cannot tell the orders apart, and breadth first keeps all prompts alive
    guesses = [lower.guess(size, name, huge) for size in wanted for name in orders]
    table: dict[tuple[int, Order], Candidate] = {}
    best = math.inf
    for guess in sorted(guesses, key=lambda candidate: (candidate.seconds, candidate.batch_size)):
        # A huge plan is lowered until it fits, a large one for candidates that may be better, or as good and smaller.
        skipped = best < math.inf if huge else large and guess.seconds > best * (1 + _TIE)
        candidate = guess if skipped else lower.candidate(guess, huge)
        if candidate.status == "fits":
            best = min(best, candidate.seconds)
        table.setdefault((candidate.batch_size, candidate.order), candidate)
    compared = sorted(table.values(), key=lambda candidate: (candidate.batch_size, orders.index(candidate.order)))
    fitting = [candidate for candidate in compared if candidate.status == "fits"]
    if not fitting:
        least = min(candidate.n_slots for candidate in compared if candidate.n_slots is not None)
        raise OutOfMemory(
            f"{least:,} latents alive at once of {slot_bytes:,} bytes each, and a call, do not fit into {free_bytes:,} "
            "bytes: set a smaller max_slots=, or order='depth'"
        )
    chosen = next(candidate for candidate in fitting if candidate.seconds <= best * (1 + _TIE))
    assert chosen.n_slots is not None
    return Choice(chosen.batch_size, chosen.order, chosen.seconds, chosen.n_calls, chosen.n_slots, tuple(compared))


@dataclass(frozen=True)
class _Lowering:
    """What candidates cost: bounds and estimates without lowering the plan, and exact sums over its calls."""

    plan: Plan
    curve: Curve
    max_slots: int | None
    slot_bytes: int
    free_bytes: int | None
    mixed_steps: bool
    rows: NDArray[np.int64] | None
    kinds: NDArray[np.int64] | None
    padded: bool
    captured: bool

    @property
    def _full(self) -> int:
        """Rows of a lane of the curve."""
        return 1 if self.rows is None else 2

    @property
    def _lanes(self) -> float:
        """Node-steps, or where guidance varies, as many guided ones as take the plan's rows."""
        return self.plan.node_steps if self.rows is None else int(self.plan.counts() @ self.rows) / 2

    def guess(self, size: int, order: Order, huge: bool) -> Candidate:
        """Without lowering the plan: a lower bound of the seconds, or for huge plans an estimate."""
        calls = self.plan.lower_bound(size, mixed_steps=self.mixed_steps, rows=self.rows, kinds=self.kinds)
        seconds = self._estimate(size, calls) if huge else self._bound(size)
        return Candidate(size, order, seconds, calls, None, "not lowered")

    def _bound(self, size: int) -> float:
        """A lower bound: every lane takes at least its time in the best call of at most ``size`` lanes.

        Between two measured points the time per lane changes in one direction only, so the best is one of them.
        """
        best = min(self.curve.seconds_per_lane(n) for n in (*self.curve.lanes, size) if n <= size)
        return self._lanes * best

    def _estimate(self, size: int, calls: int) -> float:
        """Seconds if calls meet their lower bound (both orders are within a few percent of it), all equally full."""
        if self.mixed_steps or self.kinds is not None:
            return calls * self.curve.seconds(self._lanes / calls)
        rows = self.plan.counts() * (1 if self.rows is None else self.rows)
        full, rest = np.divmod(rows, size * self._full)  # exact: calls of one step meet the bound
        return int(full.sum()) * self.curve.seconds(size) + self.curve.total(rest[rest > 0], rows=self._full)

    def candidate(self, guess: Candidate, huge: bool) -> Candidate:
        """The plan lowered for the candidate: its seconds, calls and slots, and whether they fit."""
        size, order = guess.batch_size, guess.order
        program = self._program(size, order)
        seconds = guess.seconds
        if not huge:
            filled = program.rows_per_call
            if (widest := -(-int(filled.max()) // self._full)) < size:  # the same calls, without what is never filled
                size = widest
                program = self._program(size, order)
                filled = program.rows_per_call
            padded_to = program.max_rows if self.padded else None
            seconds = self.curve.total(filled, padded_to, rows=self._full)
        slots = program.n_slots + 1  # one more for padded lanes
        slots = rounded_up(slots) if self.captured else slots
        needed = slots * self.slot_bytes + self.curve.memory_of_run(size, captured=self.captured, rows=self._full)
        fits = self.free_bytes is None or needed <= self.free_bytes
        return Candidate(size, order, seconds, program.n_calls, program.n_slots, "fits" if fits else "too large")

    def _program(self, size: int, order: Order) -> Program:
        return self.plan.program(
            size, order, self.max_slots, mixed_steps=self.mixed_steps, rows=self.rows, kinds=self.kinds
        )
