"""The executor replays a program: gather lanes from the slots, evaluate, update, scatter. It decides nothing."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Generator, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._core import Program
from ..conditioning.rows import Conditioning
from ..errors import PlanMismatch
from ..planning.catch_up import catch_up_weights
from ..planning.plan import Plan
from ..sampler import Predictions, SamplerTable
from ..work.broadcast import per_row
from ..work.device import FittingSize, synchronize
from ..work.faults import HOPELESS, described, ends_run
from ..work.threads import ahead
from .buffers import Buffers, Contents
from .catch_up import History, caught_up_fields
from .denoiser import Denoiser, step_rows
from .feed import Feed, Feeder, Throttle, now_on
from .graphs import Compiled, Graphs, bucket, can_capture
from .kept import Captured, drop_everywhere, kept_by, with_room
from .layout import check_rows
from .lengths import lengths_of, read_by
from .trunks import Trunks
from .worth import CallsLeft

T = TypeVar("T")


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
    """A latent that can be decoded: one that reached the last step, or the prediction of x0 at a fork."""

    index: int
    """Index of its prompt; at a fork, of its segment."""
    latent: Tensor
    """(1, *latent) float32."""
    generator: torch.Generator
    """The prompt's generator, in its state after denoising: some models draw noise when they decode."""
    is_fork: bool = False


@dataclass(frozen=True)
class Forks:
    """Segments whose last step's prediction of x0 is given out, too."""

    wanted: NDArray[np.bool_]
    """(segments,)"""
    predictions: Predictions


@dataclass(frozen=True)
class FreshNoise:
    """Segments that begin with fresh noise on what their parent's last step predicts."""

    wanted: NDArray[np.bool_]
    """(segments,)"""
    predictions: Predictions
    signal: NDArray[np.float64]
    noise: NDArray[np.float64]
    """(K,) both: the latent that enters step k is signal * x0 + noise * e."""


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


def _weakly(method: Callable[[], T]) -> Callable[[], T]:
    """A method of an object that has to be alive when it is called.

    The executor has what calls it, so it would be in a circle, and its buffers would stay until the next collection.
    """
    reference = weakref.WeakMethod(method)

    def call() -> T:
        alive = reference()
        assert alive is not None
        return alive()

    return call


def _write(row: Tensor, value: Tensor) -> None:
    """Copy a row, which may be shorter than its place: then nothing reads what stands behind it. It does not wait."""
    (row if row.shape == value.shape else row[: len(value)]).copy_(value, non_blocking=True)


def _upto(rows: Tensor, name: str, lengths: dict[str, int] | None) -> Tensor:
    """Rows (slots, L, ...) up to the length of the field; all of them where it is padded or has none."""
    return rows if lengths is None or name not in lengths else rows[:, : lengths[name]]


class Executor:
    """Slots on the device, and one loop over the calls of a program.

    Buffers are allocated once: the state of each slot (slots, S, *latent) float32 (padding writes to the last slot),
    and one row of conditioning per slot, two with catch-up. What a call needs from the host comes from a
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
    forks
        Whose predictions of x0 at their last step :meth:`run` yields, beside the latents; None costs nothing.
    fresh
        Segments that begin with fresh noise; None: all begin with what their parent ended with.
    trunks
        Where the segments of a resumed plan begin from, and whose states at their end are kept.
    make_room
        Called when a call does not fit into the memory, after captured calls were dropped and before the call is cut:
        frees memory or waits for work that holds some, and returns whether there was any.

    Attributes
    ----------
    buffers
        What the calls read and write on the device. On a GPU they may be those of an earlier run of the same denoiser,
        with its captured calls, and a later run may use them: see :mod:`hsd.replay.kept`.
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
        forks: Forks | None = None,
        trunks: Trunks | None = None,
        fresh: FreshNoise | None = None,
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
        self._scales_input = denoiser.scales_input
        # What all prompts have in common is one row, read by every lane; for the rest each slot has a row.
        self._lengths = lengths_of(plan, conditioning, denoiser)
        common, own = read_by(denoiser, conditioning).split(
            plan.covered(), set() if trunks is None else trunks.fields()
        )
        late = caught_up_fields(plan, own, catch_up, set() if trunks is None else trunks.fields())
        self._trunks = trunks
        weights = torch.from_numpy(catch_up_weights(plan.n_steps, catch_up)) if late else None
        # Where guidance varies, calls are padded to a number of rows, and their lanes to that number too: the network
        # then has few sizes, and a padded lane costs next to nothing.
        lanes = program.max_rows
        self._contents = Contents(
            slots=program.n_slots + 1,
            lanes=lanes,
            latent=tuple(shape),
            sampler=sampler,
            shared=common,
            rows=own.shapes(),
            late=tuple(late),
            weights=None if weights is None else weights.flatten(),
            rows_by_step=program.rows,
            predictions=next((one.predictions for one in (forks, fresh) if one is not None), None),
            shifts=fresh is not None,
        )
        self._observer, watched = observer, observer is not None
        self._compiled = (
            Compiled(denoiser.modules(), lanes, dynamic=denoiser.one_length) if compile and not watched else None
        )
        self._prepare(cuda_graphs and can_capture(denoiser) and not watched)
        history = History(plan, late, catch_up) if late else None
        wanted = None if forks is None else forks.wanted
        self._fresh = fresh
        renoised = None if fresh is None else fresh.wanted
        self._feeder = Feeder(
            plan, program, denoiser, own, sampler, history, wanted, trunks, renoised, pinned=self._on_gpu
        )
        items = "latents" if program.rows is None else "rows of the network"
        self._other_room = make_room
        changed, room = _weakly(self._fewer_lanes), _weakly(self._make_room)
        self._lanes = FittingSize(lanes, items, device, on_change=changed, make_room=room)
        """Lanes of one evaluation, or rows where guidance varies: fewer than the program's after the memory ran out."""
        self._shift: Tensor | None = None
        """Of the call that runs: :meth:`_shifts`."""
        self.errors: dict[int, str] = {}
        """By prompt, what the denoiser raised for its lane or for one that it comes from. Its latent is NaN."""
        self._works, self._failed = False, 0  # whether any evaluation has worked; lanes that raised
        self._last_error: Exception | None = None

    def _prepare(self, captures: bool) -> None:
        """The buffers, and the graphs if calls are captured: those of an earlier run, if this one can use them."""
        key = self._graph_key() if captures else None
        kept = kept_by(self.denoiser).take(self, key, self._contents) if key is not None else None
        self._keeps = key is not None
        self._key = None if kept is None else key
        """Of what is captured; None before the first capture."""
        self._graphs: Graphs | None = None
        if kept is not None:
            self.buffers, self._graphs = kept.buffers, kept.graphs
        else:
            self.buffers = with_room(lambda: Buffers(self._contents, self._device, spare=self._keeps))
            self._graphs = Graphs(self._device) if captures else None
        self._left: CallsLeft | None = None
        """Calls of each size that are still to come, which decide what is captured."""
        if self._graphs is not None:
            self._left = CallsLeft(self.program.rows_per_call, bucket, self._contents.lanes)
            self._graphs.left = self._left.of

    def _graph_key(self) -> Hashable | None:
        """Equal where a captured call may be replayed; None if the denoiser keeps none between runs."""
        key = self.denoiser.graph_key()
        return None if key is None else (key, self._compiled is not None, self._scales_input)

    @property
    def state(self) -> Tensor:
        """(slots, S, *latent) float32: the latent of each slot, then what its scheduler remembers."""
        return self.buffers.state

    @torch.no_grad()
    def run(self) -> Generator[tuple[int, list[Finished]], None, None]:
        """Replay all calls. After each, yield the number of its lanes and the latents it finished, then its forks.

        On a GPU the call is then enqueued, not finished: work that is enqueued later may read the latents.
        """
        ended = False
        try:
            with self.denoiser.running(), self._feeds() as (feeds, throttle):
                for feed in feeds:
                    self._place(feed)
                    self._call(feed)
                    done = [Finished(f.index, self.state[f.slot, :1].clone(), f.generator) for f in feed.finals]
                    if (predicted := self.buffers.predicted) is not None:
                        done += [
                            Finished(f.segment, predicted[f.slot : f.slot + 1].clone(), f.generator, is_fork=True)
                            for f in feed.forks
                        ]
                    for left in feed.trunks:
                        assert self._trunks is not None
                        x0 = None if predicted is None else predicted[left.slot].clone()
                        self._trunks.keep(left.segment, self.state[left.slot].clone(), left.generator, left.given, x0)
                    if throttle is not None:
                        throttle.done(now_on(self._device))
                    yield feed.lanes, done
            ended = True
        finally:
            self._put_back(ended)
        if self._last_error is not None and not self._works:
            raise self._last_error

    def _put_back(self, ended: bool) -> None:
        """Leave the captured calls to a later run, unless this one did not end well: then they go with it."""
        if not self._keeps or self._graphs is None:
            return
        self._graphs.left = None
        sound = ended and not self.errors and self._graphs.sound and self._lanes.most == self._contents.lanes
        captured = Captured(self.buffers, self._graphs) if sound and self._key is not None else None
        kept_by(self.denoiser).put_back(self, self._key, self._contents, captured)

    @property
    def ahead(self) -> int:
        """Calls that :meth:`run` may yield before the device has done the first of them; 0 on a CPU."""
        # Those that are enqueued when the thread that prepares calls waits, its queue, and the one in its hand.
        return 2 * _AHEAD + 1 if self._on_gpu else 0

    def wait(self) -> None:
        """Wait until the device has done what was enqueued."""
        synchronize(self._device)

    @contextlib.contextmanager
    def _feeds(self) -> Iterator[tuple[Iterator[Feed], Throttle | None]]:
        if not self._on_gpu:
            yield iter(self._feeder), None
            return
        throttle = Throttle(_AHEAD)
        with ahead(self._feeder, _AHEAD, name="hsd-feed", before=throttle.wait, device=self._device) as feeds:
            yield feeds, throttle

    def _place(self, feed: Feed) -> None:
        """Copy first latents and conditioning of the segments that begin with this call. Pinned memory: no wait."""
        for slot, row in feed.rows:
            for name, value in row.items():
                _write(self.buffers.rows[name][slot], value)
        for slot, row in feed.differences:
            for name, value in row.items():
                _write(self.buffers.differences[name][slot], value)
        for slot, latent in feed.first:
            if latent.ndim == self.state.ndim - 1:  # the whole state of a segment that begins late
                self.state[slot].copy_(latent, non_blocking=True)
                continue
            self.state[slot, 0].copy_(latent, non_blocking=True)
            self.state[slot, 1:].zero_()

    def _shifts(self, feed: Feed) -> Tensor | None:
        """(lanes, *latent) float32: what is added to the latents that the lanes of a call begin with. None: nothing."""
        if self._fresh is None or self.buffers.predicted is None:
            return None
        for slot, predicted in feed.predicted:
            self.buffers.predicted[slot].copy_(predicted, non_blocking=True)
        shifts = torch.zeros((feed.lanes, *self.state.shape[2:]), device=self._device)
        for lane, slot, step, noise in feed.renoised:
            signal, level = float(self._fresh.signal[step]), float(self._fresh.noise[step])
            renoised = signal * self.buffers.predicted[slot] + level * noise.to(self._device, non_blocking=True)
            shifts[lane] = renoised - self.state[slot, 0]
        return shifts

    def _call(self, feed: Feed) -> None:
        """One call of the program: one evaluation, or several if it does not fit into the memory.

        A call may be cut, because no lane reads what another lane of the same call writes. An evaluation that runs out
        of memory has written nothing.
        """
        self._shift = self._shifts(feed)
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
        if self._left is not None:
            self._left.done(self._rows_of(feed, 0, feed.lanes))

    def _rows_of(self, feed: Feed, begin: int, end: int) -> int:
        """Rows of the network of some lanes."""
        layout = self.buffers.layout
        return end - begin if layout is None else layout.count(feed.table[0, begin:end])

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
                if self.buffers.predicted is not None:
                    self.buffers.predicted[int(feed.table[2, lane])] = float("nan")
                for prompt in self._feeder.members(int(feed.segments[lane])).tolist():
                    self.errors.setdefault(prompt, described(error))
        return feed.lanes

    def _make_room(self) -> bool:
        """The memory has run out: drop captured calls, and let others free what they hold. Whether there was any."""
        dropped = self._graphs is not None and self._graphs.make_room()
        kept = drop_everywhere()
        others = self._other_room is not None and self._other_room()
        return dropped or kept or others

    def _fewer_lanes(self) -> None:
        """Compiled and captured calls have another size from now on."""
        if self._compiled is not None:
            self._compiled.size = self._lanes.most
        if self._left is not None:
            self._left.cut_to(self._lanes.most)
        if self._graphs is not None:
            self._graphs.clear()

    def _evaluate(self, feed: Feed, begin: int, rows: int) -> int:
        """The lanes of a call from ``begin`` on that have at most ``rows`` rows; returns their number.

        They have one length of each ragged field, where the denoiser asks for that: a program that was made without
        ``kinds`` is cut where the length changes.
        """
        buffers, most, lengths = self.buffers, feed.lanes - begin, None
        if self._lengths is not None:
            most = self._lengths.run(feed.segments, begin)
            lengths = self._lengths.of_kind[self._lengths.kinds[feed.segments[begin]]]
        if buffers.layout is None:
            lanes = rows = min(rows, most)
        else:
            lanes = buffers.layout.fitting(feed.table[0, begin : begin + most], rows)
            rows = buffers.layout.count(feed.table[0, begin : begin + lanes])
        end = begin + lanes
        table = feed.table.to(self._device, non_blocking=True)  # the whole table: the copy of a slice would wait
        noise = None if feed.noise is None else feed.noise[begin:end]
        # Where guidance varies, such a denoiser calls its network once for each half, and needs to know their sizes.
        exact = self._compiled is None or (lengths is not None and buffers.layout is not None)
        if self._graphs is None and exact:
            drawn = None if noise is None else noise.to(self._device, non_blocking=True)
            shift = None if self._shift is None else self._shift[begin:end]
            self._step(table[:, begin:end], drawn, rows, lengths, shift)
            return lanes
        size = bucket(rows, max(rows, self._lanes.most))
        buffers.table[:, :lanes].copy_(table[:, begin:end])
        buffers.table[1:3, lanes:size] = buffers.scratch  # padded lanes read and write the scratch slot
        if noise is not None:
            assert buffers.noise is not None
            buffers.noise[:lanes].copy_(noise, non_blocking=True)
        if buffers.shift is not None:
            buffers.shift.zero_()
            if self._shift is not None:
                buffers.shift[:lanes].copy_(self._shift[begin:end])
        if self._graphs is None:
            self._padded(size, lengths)
        else:
            self._graphs.run(size, self._padded)
            if self._keeps and self._key is None and self._graphs.any:
                self._key = self._graph_key()  # now, since networks make some of their tensors in their first call
        return lanes

    def _padded(self, size: int, lengths: dict[str, int] | None = None) -> None:
        """A call of ``size`` lanes (and rows) from the buffers; this is what CUDA graphs capture."""
        table, noise = self.buffers.table, self.buffers.noise
        with self._compiled.for_lanes(size) if self._compiled is not None else contextlib.nullcontext():
            shift = None if self.buffers.shift is None else self.buffers.shift[:size]
            self._step(table[:, :size], None if noise is None else noise[:size], size, lengths, shift)

    def _step(
        self,
        table: Tensor,
        noise: Tensor | None,
        n_rows: int,
        lengths: dict[str, int] | None = None,
        shift: Tensor | None = None,
    ) -> None:
        """One step of each lane: gather, evaluate, update, scatter (Eq. 8 and Algorithm 1 of arXiv 2508.21032).

        Every lane reads its source before any lane writes its target.

        ``table`` (3, B) int64: step, source and target, with catch-up (4, B) and the place of the weight; ``noise``
        (B, Z, *latent) float32; ``n_rows`` rows of the network, which are lanes unless guidance varies; ``lengths`` of
        rows that are not padded; ``shift`` (B, *latent) float32, added to the latents of the sources.
        """
        buffers, sampler = self.buffers, self.buffers.sampler
        step, source, target, *place = table.unbind(0)
        state = buffers.state.index_select(0, source)  # [B, S, *latent]
        if shift is not None:
            state[:, 0] += shift
        rows = {name: _upto(buffer, name, lengths).index_select(0, target) for name, buffer in buffers.rows.items()}
        if buffers.weights is not None:
            weight = buffers.weights.index_select(0, place[0])
            for name, buffer in buffers.differences.items():  # 0 where a row is padded; weight 0 in a root segment
                difference = _upto(buffer, name, lengths).index_select(0, target)
                late = torch.addcmul(rows[name], difference, per_row(weight, rows[name]))
                rows[name] = late.to(buffer.dtype)  # added in float32
                del difference, late  # or they would be in memory during the call
        rows |= {name: row.expand(len(step), *row.shape[1:]) for name, row in buffers.shared.items()}
        if self.denoiser.reads_steps:
            rows |= step_rows(sampler.timesteps, step)
        if buffers.layout is not None:
            rows |= buffers.layout.of(step, target != buffers.scratch, n_rows)
        latents = sampler.model_input(state, step) if self._scales_input else state[:, 0]
        output, variance = self.denoiser.denoise(latents, sampler.timesteps.index_select(0, step), rows)
        new = sampler.update(state, output, noise, step, variance)
        if buffers.predictions is not None and buffers.predicted is not None:
            buffers.predicted.index_copy_(0, target, buffers.predictions(state[:, 0], output, step))
        if self._observer is not None:  # before the state is written: until then the step may be repeated
            self._observer(Evaluation(state[:, 0], output, variance, step))
        buffers.state.index_copy_(0, target, new)
