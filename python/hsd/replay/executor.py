"""The executor replays a program: gather lanes from the slots, evaluate, update, scatter. It decides nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .._core import Program
from ..conditioning.rows import MASK, Conditioning
from ..errors import PlanMismatch
from ..planning.catch_up import catch_up_weights
from ..planning.plan import Plan
from ..sampler import SamplerTable
from ..work.broadcast import per_row
from ..work.device import FittingSize, synchronize
from ..work.faults import HOPELESS, described, ends_run
from ..work.threads import ahead
from .catch_up import History, caught_up_fields
from .denoiser import Denoiser
from .feed import Feed, Feeder, Throttle
from .graphs import Compiled, Graphs, bucket, can_capture
from .layout import Layout, check_rows


def check_fit(plan: Plan, sampler: SamplerTable) -> None:
    """``PlanMismatch`` unless the plan has as many steps as the scheduler makes evaluations."""
    if sampler.n_steps != plan.n_steps:
        raise PlanMismatch(
            f"the plan has {plan.n_steps} steps, but {sampler.scheduler} makes {sampler.n_steps} evaluations for "
            f"steps={plan.request['steps']}: compile the plan with model=, which counts them"
        )


_AHEAD = 4
"""Calls that the host prepares and enqueues ahead of a GPU."""


@dataclass(frozen=True)
class Finished:
    """A latent that reached the last step."""

    index: int
    """Index of its prompt."""
    latent: Tensor
    """(1, *latent) float32."""
    generator: torch.Generator
    """The prompt's generator, in its state after denoising: some models draw noise when they decode."""


@dataclass(frozen=True)
class Evaluation:
    """Inputs and outputs of one evaluation of the denoiser, before the sampler's update."""

    latents: Tensor
    """(B, *latent) float32, before the scheduler scales them."""
    output: Tensor
    """(B, *latent) float32, guidance included."""
    variance: Tensor | None
    """(B, *latent) float32, where the denoiser predicts one."""
    step: Tensor
    """(B,) int64."""


class Executor:
    """Slots on the device, and one loop over the calls of a program.

    Buffers are allocated once: the state of each slot (n_slots + 1, S, *latent) float32 (padding writes to the
    last row), and one row of conditioning per slot, two with catch-up. What a call needs from the host comes from a
    :class:`~hsd.replay.feed.Feeder`, which on a GPU is some calls ahead; the loop only enqueues. The memory
    does not grow with the number of calls.

    Parameters
    ----------
    plan, program
        What to run.
    denoiser, conditioning, sampler
        The network, what it is conditioned on, and its scheduler as a table.
    cuda_graphs
        Replay calls as CUDA graphs where that is possible: on a GPU, for a denoiser that is not offloaded.
    compile
        Run full calls through ``torch.compile``. Other calls, whose size varies, run uncompiled.
    catch_up
        The gamma of catch-up conditioning; 0, the paper, is off.
    observer
        Called after each evaluation. Calls are then neither captured nor compiled, since a replay runs no Python.
    make_room
        Called when an evaluation runs out of memory, before calls become smaller for good: see
        :class:`~hsd.work.device.FittingSize`.
    """

    def __init__(
        self,
        plan: Plan,
        program: Program,
        denoiser: Denoiser,
        conditioning: Conditioning,
        sampler: SamplerTable,
        *,
        cuda_graphs: bool = True,
        compile: bool = False,
        catch_up: float = 0.0,
        observer: Callable[[Evaluation], object] | None = None,
        make_room: Callable[[], bool] | None = None,
    ) -> None:
        check_fit(plan, sampler)
        if conditioning.n_prompts != plan.n_prompts:
            raise PlanMismatch(f"{conditioning.n_prompts} rows of conditioning for {plan.n_prompts} prompts")
        check_rows(plan, program, denoiser)
        self.program = program
        self.denoiser = denoiser
        # Looked up once: a pipeline goes through all of its modules to find its device.
        device, shape = denoiser.device, denoiser.latent_shape()
        self._device, self._on_gpu = device, device.type == "cuda"
        self.sampler = sampler.to(device, torch.float32)
        self._scales_input = denoiser.scales_input

        # Where guidance varies, calls are padded to a number of rows, and their lanes to that number too: the network
        # then has few sizes, and a padded lane costs next to nothing.
        slots, lanes = program.n_slots + 1, program.max_rows
        self._layout = None if program.rows is None else Layout(program.rows, device)
        self.state = torch.zeros((slots, self.sampler.n_state, *shape), device=device)
        # What all prompts have in common is one row, read by every lane; for the rest each slot has a row.
        common, own = conditioning.split(plan.covered())
        self._shared = {name: row.to(device) for name, row in common.items()}
        self._rows = {
            name: torch.zeros((slots, *row), dtype=dtype, device=device) for name, (row, dtype) in own.shapes().items()
        }
        for name, rows in self._rows.items():
            if rows.dtype == torch.bool and name.endswith(MASK):
                rows[-1] = True  # padded lanes attend to it: an empty mask would give nan
        late = caught_up_fields(plan, own, catch_up)
        self._differences = {name: torch.zeros_like(self._rows[name]) for name in late}
        weights = torch.from_numpy(catch_up_weights(plan.n_steps, catch_up)) if late else None
        self._weights = None if weights is None else weights.flatten().to(device)
        history = History(plan, late, catch_up) if late else None
        self._feeder = Feeder(plan, program, denoiser, own, sampler, history, pinned=self._on_gpu)
        # Captured calls read their lanes and their noise from these buffers.
        self._table = torch.zeros((4 if late else 3, lanes), dtype=torch.int64, device=device)
        self._table[1:3] = program.n_slots
        self._noise = torch.zeros((lanes, self.sampler.n_noise, *shape), device=device) if sampler.n_noise else None
        self._observer, watched = observer, observer is not None
        self._compiled = Compiled(denoiser.modules(), lanes) if compile and not watched else None
        self._graphs = Graphs(device) if cuda_graphs and can_capture(denoiser) and not watched else None
        items = "latents" if self._layout is None else "rows of the network"
        self._lanes = FittingSize(
            lanes, items, device, on_change=self._fewer_lanes, make_room=make_room or (lambda: False)
        )
        """Lanes of one evaluation, or rows where guidance varies: fewer than the program's after the memory ran out."""
        self.errors: dict[int, str] = {}
        """By prompt, what the denoiser raised for its lane or for one that it comes from. Its latent is NaN."""
        self._works, self._failed = False, 0  # whether any evaluation has worked; lanes that raised
        self._last_error: Exception | None = None

    @torch.no_grad()
    def run(self) -> Iterator[tuple[int, list[Finished]]]:
        """Replay all calls. After each, yield the number of its lanes and the latents it finished.

        On a GPU the call is then enqueued, not finished: work that is enqueued later may read the latents.
        """
        with self.denoiser.running(), self._feeds() as (feeds, throttle):
            for feed in feeds:
                self._place(feed)
                self._call(feed)
                done = [Finished(f.index, self.state[f.slot, :1].clone(), f.generator) for f in feed.finals]
                if throttle is not None:
                    event = torch.cuda.Event()
                    event.record(torch.cuda.current_stream(self._device))
                    throttle.done(event)
                yield feed.lanes, done
        if self._last_error is not None and not self._works:
            raise self._last_error

    def wait(self) -> None:
        """Wait until the device has done what was enqueued."""
        synchronize(self._device)

    @contextlib.contextmanager
    def _feeds(self) -> Iterator[tuple[Iterator[Feed], Throttle | None]]:
        if not self._on_gpu:
            yield iter(self._feeder), None
            return
        throttle = Throttle(_AHEAD)
        with ahead(self._feeder, _AHEAD, name="hsd-feed", before=throttle.wait) as feeds:
            yield feeds, throttle

    def _place(self, feed: Feed) -> None:
        """Copy first latents and conditioning of the segments that begin with this call. Pinned memory: no wait."""
        for slot, row in feed.rows:
            for name, value in row.items():
                self._rows[name][slot].copy_(value, non_blocking=True)
        for slot, row in feed.differences:
            for name, value in row.items():
                self._differences[name][slot].copy_(value, non_blocking=True)
        for slot, latent in feed.first:
            self.state[slot, 0].copy_(latent, non_blocking=True)
            self.state[slot, 1:].zero_()

    def _call(self, feed: Feed) -> None:
        """One call of the program: one evaluation, or several if it does not fit into the memory.

        A call may be cut, because no lane reads what another lane of the same call writes. An evaluation that runs out
        of memory has written nothing.
        """
        begin = 0
        while begin < feed.lanes:
            left = self._rows_of(feed, begin, feed.lanes)
            try:
                begin += self._lanes.run(partial(self._evaluate, feed, begin), left)[0]
            except Exception as error:
                if ends_run(error):
                    raise
                begin = self._one_by_one(feed, begin)
            else:
                self._works = True

    def _rows_of(self, feed: Feed, begin: int, end: int) -> int:
        """Rows of the network of some lanes."""
        return end - begin if self._layout is None else self._layout.count(feed.table[0, begin:end])

    def _one_by_one(self, feed: Feed, begin: int) -> int:
        """The lanes from ``begin`` on of a call that raised. Those that raise by themselves become NaN.

        Unless some evaluation has worked, many such lanes mean that the denoiser itself fails: their error is raised.
        """
        for lane in range(begin, feed.lanes):
            try:
                self._lanes.run(partial(self._evaluate, feed, lane), self._rows_of(feed, lane, lane + 1))
                self._works = True
            except Exception as error:
                self._failed += 1
                if ends_run(error) or (not self._works and self._failed >= HOPELESS):
                    raise
                self._last_error = error
                self.state[int(feed.table[2, lane])] = float("nan")
                for prompt in self._feeder.members(int(feed.segments[lane])).tolist():
                    self.errors.setdefault(prompt, described(error))
        return feed.lanes

    def _fewer_lanes(self) -> None:
        """Compiled and captured calls have another size from now on."""
        if self._compiled is not None:
            self._compiled.size = self._lanes.most
        if self._graphs is not None:
            self._graphs.clear()

    def _evaluate(self, feed: Feed, begin: int, rows: int) -> int:
        """The lanes of a call from ``begin`` on that have at most ``rows`` rows; returns their number."""
        lanes = rows
        if self._layout is not None:
            lanes = self._layout.fitting(feed.table[0, begin : feed.lanes], rows)
            rows = self._layout.count(feed.table[0, begin : begin + lanes])
        end = begin + lanes
        table = feed.table.to(self._device, non_blocking=True)  # the whole table: the copy of a slice would wait
        noise = None if feed.noise is None else feed.noise[begin:end]
        if self._graphs is None and self._compiled is None:
            self._step(table[:, begin:end], None if noise is None else noise.to(self._device, non_blocking=True), rows)
            return lanes
        size = bucket(rows, max(rows, self._lanes.most))
        self._table[:, :lanes].copy_(table[:, begin:end])
        self._table[1:3, lanes:size] = self.program.n_slots  # padded lanes read and write the scratch slot
        if noise is not None:
            assert self._noise is not None
            self._noise[:lanes].copy_(noise, non_blocking=True)
        if self._graphs is None:
            self._padded(size)
        else:
            self._graphs.run(size, self._padded)
        return lanes

    def _padded(self, size: int) -> None:
        """A call of ``size`` lanes (and rows) from the buffers; this is what CUDA graphs capture."""
        with self._compiled.for_lanes(size) if self._compiled is not None else contextlib.nullcontext():
            self._step(self._table[:, :size], None if self._noise is None else self._noise[:size], size)

    def _step(self, table: Tensor, noise: Tensor | None, n_rows: int) -> None:
        """One step of each lane: gather, evaluate, update, scatter (Eq. 8 and Algorithm 1 of arXiv 2508.21032).

        Every lane reads its source before any lane writes its target.

        ``table`` (3, B) int64: step, source and target, with catch-up (4, B) and the place of the weight; ``noise``
        (B, Z, *latent) float32; ``n_rows`` rows of the network, which are lanes unless guidance varies.
        """
        step, source, target, *place = table.unbind(0)
        state = self.state.index_select(0, source)  # [B, S, *latent]
        rows = {name: buffer.index_select(0, target) for name, buffer in self._rows.items()}
        if self._weights is not None:
            weight = self._weights.index_select(0, place[0])
            for name, buffer in self._differences.items():  # 0 where a row is padded; the weight is 0 in a root segment
                late = torch.addcmul(rows[name], buffer.index_select(0, target), per_row(weight, rows[name]))
                rows[name] = late.to(buffer.dtype)  # added in float32
        rows |= {name: row.expand(len(step), *row.shape[1:]) for name, row in self._shared.items()}
        if self._layout is not None:
            rows |= self._layout.of(step, target != self.program.n_slots, n_rows)
        latents = self.sampler.model_input(state, step) if self._scales_input else state[:, 0]
        output, variance = self.denoiser.denoise(latents, self.sampler.timesteps.index_select(0, step), rows)
        new = self.sampler.update(state, output, noise, step, variance)
        if self._observer is not None:  # before the state is written: until then the step may be repeated
            self._observer(Evaluation(state[:, 0], output, variance, step))
        self.state.index_copy_(0, target, new)
