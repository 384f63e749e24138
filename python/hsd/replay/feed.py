"""What a call needs from the host, prepared before the device needs it: noise, first latents, conditioning.

All of it follows from the program, so it can be prepared in advance. On a GPU a thread does so, in pinned memory, while
the device works. On a CPU it is prepared when the loop needs it, since a thread would take a core from the denoiser.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._core import Program
from ..conditioning.rows import Conditioning
from ..planning.plan import Plan
from ..sampler import SamplerTable
from .catch_up import History
from .denoiser import Denoiser
from .trunks import Trunk, Trunks

CHUNK = 1024
"""Calls whose tables are in memory at once."""


@dataclass(frozen=True)
class Final:
    """A lane that reaches the last step."""

    index: int
    """Index of its prompt."""
    slot: int
    """Where its latent will be."""
    generator: torch.Generator
    """The prompt's generator, in its state after denoising."""


@dataclass(frozen=True)
class ForkedLane:
    """A lane that makes the last step of a segment that forks, where the prediction of x0 is asked for."""

    segment: int
    slot: int
    generator: torch.Generator
    """A copy of the representative's, in its state after this step."""


@dataclass(frozen=True)
class TrunkLane:
    """A lane that makes the last step of a segment whose state is to be kept."""

    segment: int
    slot: int
    generator: Tensor
    """The state of the representative's generator after this step, (G,) uint8."""
    given: dict[str, Tensor]
    """What the path was given, with catch-up: :meth:`hsd.replay.catch_up.History.given`."""


@dataclass(frozen=True)
class Feed:
    """What one call needs from the host."""

    lanes: int
    table: Tensor
    """(3, B) int64: step, source and target of each lane, padding included; calls of one chunk share their storage.
    With catch-up (4, B): the last row is the lane's place in the table of weights (K, K), flattened."""
    noise: Tensor | None
    """(lanes, Z, *latent) float32; None if the scheduler draws none."""
    first: list[tuple[int, Tensor]]
    """(slot, latent) of each root that begins with this call; the latent is (*latent) float32. Of one that does not
    begin at step 0, the whole state (S, *latent)."""
    rows: list[tuple[int, dict[str, Tensor]]]
    """(slot, conditioning by name) of each segment that begins with this call."""
    differences: list[tuple[int, dict[str, Tensor]]]
    """(slot, difference by name) of each of them that catches up; empty without catch-up."""
    finals: list[Final]
    forks: list[ForkedLane]
    trunks: list[TrunkLane]
    renoised: list[tuple[int, int, int, Tensor]]
    """(lane, source slot, step, noise) of each lane that begins with fresh noise, (*latent) float32."""
    predicted: list[tuple[int, Tensor]]
    """(slot, x0) of those of them that begin late, (*latent) float32."""
    segments: NDArray[np.int64]
    """(lanes,) the segment of each lane."""


class Feeder:
    """Goes through a program call by call, and draws from each prompt's generator in the order of its steps.

    Parameters
    ----------
    plan, program, denoiser, sampler
        As for the executor.
    conditioning
        What differs between the plan's prompts.
    history
        For catch-up; None without it.
    forks
        (segments,) bool: whose last step's prediction of x0 is asked for.
    trunks
        Where segments that begin late begin from, and whose state at their end is kept; None: nothing of the kind.
    renoised
        (segments,) bool: which begin with fresh noise; None: no segment does.
    pinned
        Whether tensors are in pinned memory, from which a GPU reads while the host continues.
    """

    def __init__(
        self,
        plan: Plan,
        program: Program,
        denoiser: Denoiser,
        conditioning: Conditioning,
        sampler: SamplerTable,
        history: History | None,
        forks: NDArray[np.bool_] | None,
        trunks: Trunks | None,
        renoised: NDArray[np.bool_] | None,
        pinned: bool,
    ) -> None:
        self._program, self._denoiser, self._conditioning, self._sampler = program, denoiser, conditioning, sampler
        self._history, self._forks, self._pinned = history, forks, pinned
        self._renoised = renoised
        self._trunks, self._keeps = trunks, None if trunks is None else trunks.wanted()
        self._dtype, self._shape = denoiser.noise_dtype, denoiser.latent_shape()
        segments = plan.segments
        self._seeds, self._leaf_order, self._layers = plan.seeds, plan.tree.leaf_order, plan.layers()
        self._leaf_begin, self._leaf_end = segments["leaf_begin"], segments["leaf_end"]
        self._representative = segments["representative"]
        self._weight_row = self._layers.origins(segments["parent"], segments["first_step"]) * plan.n_steps
        self._late = (segments["parent"] < 0) & (segments["first_step"] > 0)
        self._last_step = segments["end_step"] - 1
        self._shared_latent = plan.noise == "shared"
        # A generator is kept as long as some segment draws from it. The child with the same representative continues
        # to use it; if there is no such child, it is dropped.
        children = np.flatnonzero(segments["parent"] >= 0)
        parents = segments["parent"][children]
        continued = parents[segments["representative"][children] == segments["representative"][parents]]
        self._drops_generator = np.ones(len(segments), dtype=bool)
        self._drops_generator[continued] = False
        self._generators: dict[int, torch.Generator] = {}

    def __iter__(self) -> Iterator[Feed]:
        """One :class:`Feed` per call."""
        for chunk in self._program.chunks(CHUNK):
            columns = np.stack([chunk[name] for name in ("step", "source", "target")], axis=1)  # [calls, 3, B]
            if self._history is not None:  # of padded lanes too, whose segment is -1: some place inside the table
                place = self._weight_row[chunk["segment"]] + chunk["step"]
                columns = np.concatenate([columns, place[:, None]], axis=1)  # [calls, 4, B]
            tables = self._on_host(torch.from_numpy(columns.astype(np.int64)))
            real = chunk["segment"] >= 0
            lanes_of = real.sum(axis=1).tolist()
            representative = self._representative[chunk["segment"]]
            drops = real & (chunk["step"] == self._last_step[chunk["segment"]])
            drops &= self._drops_generator[chunk["segment"]]
            for call, (lanes, table) in enumerate(zip(lanes_of, tables.unbind(0), strict=True)):
                yield self._feed(chunk[call, :lanes], representative[call, :lanes].tolist(), lanes, table)
                for lane in np.flatnonzero(drops[call]):
                    self._generators.pop(int(representative[call, lane]), None)

    def _feed(self, entries: NDArray[np.void], representative: list[int], lanes: int, table: Tensor) -> Feed:
        rows, differences, first, renoised, predicted = [], [], [], [], []
        for lane in np.flatnonzero(entries["begins"]).tolist():
            segment = int(entries["segment"][lane])
            before, source, continues = None, int(entries["source"][lane]), False
            if self._late[segment]:
                trunk, continues = self._begun(segment)
                before = trunk.given
                first.append((source, self._on_host(trunk.state)))
                if trunk.predicted is not None:
                    predicted.append((source, self._on_host(trunk.predicted)))
            if self._renoised is not None and self._renoised[segment] and not continues:
                noise_of_one = torch.empty((1, *self._shape))
                draw_noise(noise_of_one, self._generator(representative[lane]), (None,), self._dtype)
                renoised.append((lane, source, int(entries["step"][lane]), self._on_host(noise_of_one[0])))
            means = self._conditioning.mean(self._layers.members(segment))
            slot = int(entries["target"][lane])
            rows.append((slot, {name: self._on_host(row) for name, row in means.items()}))
            if self._history is not None and (caught := self._history.begin(segment, means, before)):
                differences.append((slot, {name: self._on_host(row) for name, row in caught.items()}))
        for lane in np.flatnonzero(entries["fresh"] & ~self._late[entries["segment"]]).tolist():
            first.append((int(entries["source"][lane]), self._on_host(self._first_latent(representative[lane]))))
        noise = self._noise(representative, entries["step"].tolist()) if self._sampler.n_noise else None
        finals = []
        for lane in np.flatnonzero(entries["final"]).tolist():
            generator = self._generator(representative[lane])
            finals.append(Final(representative[lane], int(entries["target"][lane]), generator))
        forks = [] if self._forks is None else self._forked(entries, representative)
        trunks = [] if self._keeps is None else self._left_by(entries, representative, self._keeps)
        return Feed(
            lanes,
            table,
            noise,
            first,
            rows,
            differences,
            finals,
            forks,
            trunks,
            renoised,
            predicted,
            entries["segment"],
        )

    def _begun(self, segment: int) -> tuple[Trunk, bool]:
        """What a segment that begins late goes on from, and whether that is a state of its own prompt."""
        assert self._trunks is not None, "a plan that begins late needs what it begins from"
        start = self._trunks.starts(segment)
        if start.continues:
            prompt = int(self._representative[segment])
            self._generator(prompt).set_state(start.trunk.generator)
        return start.trunk, start.continues

    def _left_by(
        self, entries: NDArray[np.void], representative: list[int], keeps: NDArray[np.bool_]
    ) -> list[TrunkLane]:
        segment = entries["segment"]
        lanes = np.flatnonzero(keeps[segment] & (entries["step"] == self._last_step[segment])).tolist()
        return [
            TrunkLane(
                int(segment[i]),
                int(entries["target"][i]),
                self._generator(representative[i]).get_state(),
                {} if self._history is None else self._history.given(int(segment[i])),
            )
            for i in lanes
        ]

    def _forked(self, entries: NDArray[np.void], representative: list[int]) -> list[ForkedLane]:
        assert self._forks is not None
        segment = entries["segment"]
        lanes = np.flatnonzero(self._forks[segment] & (entries["step"] == self._last_step[segment])).tolist()
        return [
            ForkedLane(int(segment[i]), int(entries["target"][i]), copied(self._generator(representative[i])))
            for i in lanes
        ]

    def members(self, segment: int) -> NDArray[np.int64]:
        """The prompts of a segment, kept or not."""
        return self._leaf_order[self._leaf_begin[segment] : self._leaf_end[segment]]

    def _on_host(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self._pinned else tensor

    def _generator(self, representative: int) -> torch.Generator:
        """The generator of a prompt, created at its first use."""
        if representative not in self._generators:
            self._generators[representative] = self._denoiser.generator(int(self._seeds[representative]))
        return self._generators[representative]

    def _noise(self, representative: list[int], steps: list[int]) -> Tensor:
        """(lanes, Z, *latent) float32: what the scheduler draws, each lane from its own generator.

        Draws are in the model's dtype unless the scheduler fixes another. Where a step draws fewer than Z, the rest
        is 0.
        """
        shape = (len(steps), self._sampler.n_noise, *self._shape)
        noise = torch.empty(shape, pin_memory=self._pinned)
        for lane, (prompt, step) in enumerate(zip(representative, steps, strict=True)):
            dtypes = self._sampler.noise_dtypes[step]
            if dtypes:
                draw_noise(noise[lane], self._generator(prompt), dtypes, self._dtype)
            if len(dtypes) < self._sampler.n_noise:
                noise[lane, len(dtypes) :] = 0.0
        return noise

    def _first_latent(self, representative: int) -> Tensor:
        """The latent that a root segment starts from, (*latent) float32 at the scheduler's own scale."""
        latent = self._denoiser.first_latent(self._generator(representative), self._sampler)
        if self._shared_latent:  # the draw above is done in any case, so that later draws do not change
            latent = self._denoiser.first_latent(self._denoiser.generator(int(self._seeds[0])), self._sampler)
        return latent[0]


def copied(generator: torch.Generator) -> torch.Generator:
    """A generator in the same state, which goes on by itself."""
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy


def draw_noise(
    noise: Tensor, generator: torch.Generator, dtypes: Sequence[torch.dtype | None], default: torch.dtype
) -> None:
    """Draw the first entries of ``noise`` (Z, *latent) float32, one for each of ``dtypes``; None is ``default``."""
    for draw, dtype in enumerate(dtypes):
        into, dtype = noise[draw], dtype or default
        if dtype == torch.float32:
            into.normal_(generator=generator)
        else:  # the numbers that a generator gives depend on the dtype
            into.copy_(torch.randn(into.shape, generator=generator, dtype=dtype))


def now_on(device: torch.device) -> torch.cuda.Event:
    """An event that follows what is enqueued on ``device`` now.

    It blocks: a thread that waits for another kind of event takes a core while it waits.
    """
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event


class Throttle:
    """Limits how many calls are prepared or enqueued but not yet done by the device.

    Without it a fast host would enqueue the whole program, and keep pinned memory for all of it.
    """

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self._events: deque[torch.cuda.Event] = deque()

    def done(self, event: torch.cuda.Event) -> None:
        """Record the event that follows a call, in the order of the calls."""
        self._events.append(event)

    def wait(self) -> None:
        """Wait until the device has done enough calls. The thread that prepares calls waits here, never the loop."""
        while len(self._events) > self._calls:
            self._events.popleft().synchronize()
