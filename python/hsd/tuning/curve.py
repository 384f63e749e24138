"""Seconds per call of the denoiser by number of lanes, measured on the conditioning of real prompts."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning.rows import Conditioning
from ..errors import OutOfMemory
from ..names import check_count
from ..replay.denoiser import Denoiser
from ..replay.graphs import EAGER_FIRST, Graphs, bucket, can_capture, smaller_bucket
from ..replay.kept import kept_by
from ..sampler import SamplerTable
from ..work.device import synchronize
from ..work.faults import first_line
from .inputs import Inputs

MOST = 256
"""Largest number of lanes that is tried by default."""

_LEAST_GAIN = 0.03
"""Doubling the lanes has to lower the time per lane by this share to count as a gain."""

MEMORY_SHARE = 0.85
"""Share of the free device memory that is used: the rest is for decoding and for fragmentation."""

_SECONDS = {"cuda": 10.0}
_SECONDS_ELSEWHERE = 5.0

_SAMPLES = 7
"""Blocks of calls timed at each size, if there is time."""

_BLOCK = 0.02
"""Approximate seconds of a block: much longer than reading the clock and synchronizing."""


@dataclass(frozen=True)
class Curve:
    """Seconds per call of the denoiser, by lanes."""

    lanes: tuple[int, ...]
    """Measured lane counts, ascending."""
    seconds_per_call: tuple[float, ...]
    """Measured seconds, one value per lane count."""
    bytes_per_call: tuple[int, ...] | None = None
    """Device memory of a call by itself, without weights and slots, on CUDA; :meth:`memory_of_run` adds up those of a
    run."""
    ended: str = ""
    """Why no more lanes were measured."""
    spread: tuple[tuple[float, float], ...] | None = None
    """Seconds per call of the fastest and of the slowest block of calls, by lanes; None if they were not kept."""

    @property
    def flat(self) -> bool:
        """Whether more lanes were found to gain nothing."""
        return self.ended == _FLAT

    def ends(self) -> tuple[tuple[float, float], ...]:
        """Seconds per call, the smallest and the largest that were measured, by lanes."""
        return self.spread or tuple((seconds, seconds) for seconds in self.seconds_per_call)

    def __post_init__(self) -> None:
        parts = (self.lanes, self.seconds_per_call, self.bytes_per_call, self.spread)
        sizes = [len(part) for part in parts if part is not None]
        if not self.lanes or len(set(sizes)) > 1:
            raise ValueError(
                f"a curve of {sizes} lane counts, seconds and bytes: it needs the same number of each, 1 or more"
            )
        if self.lanes[0] < 1 or any(b <= a for a, b in itertools.pairwise(self.lanes)):
            raise ValueError(f"the lane counts of a curve are {self.lanes}: they have to ascend from 1 or more")
        if not all(math.isfinite(s) and s > 0 for s in self.seconds_per_call):
            raise ValueError(f"the seconds of a curve are {self.seconds_per_call}: they have to be finite and above 0")

    def seconds(self, lanes: float) -> float:
        """Seconds of a call with ``lanes`` lanes.

        Linear between measured points, and proportional to the lanes beyond the last. It never decreases with more
        lanes: a call that took longer than a larger one was disturbed, and could have been padded to the larger one.
        Below the first measured point it is constant.
        """
        if not lanes > 0:
            raise ValueError(f"the number of lanes is {lanes}: it has to be above 0")
        rising = np.minimum.accumulate(self.seconds_per_call[::-1])[::-1]
        if lanes > self.lanes[-1]:
            return float(rising[-1]) * lanes / self.lanes[-1]
        return float(np.interp(lanes, self.lanes, rising))

    def seconds_per_lane(self, lanes: float) -> float:
        """``seconds(lanes) / lanes``."""
        return self.seconds(lanes) / lanes

    def total(self, filled: NDArray[np.integer], padded_to: int | None = None, rows: int = 1) -> float:
        """Seconds of n calls with ``filled`` (n,) rows of the network; a lane of this curve has ``rows`` of them.

        With ``padded_to``, calls are padded as the executor does it where it captures them, for programs whose calls
        have that many rows at most.
        """
        counts = np.bincount(filled)
        used = np.flatnonzero(counts).tolist()
        sizes = used if padded_to is None else [bucket(n, padded_to) for n in used]
        return math.fsum(int(counts[n]) * self.seconds(size / rows) for n, size in zip(used, sizes, strict=True))

    def memory(self, lanes: int) -> int:
        """Bytes of device memory of a call with ``lanes`` lanes; 0 if that was not measured."""
        if self.bytes_per_call is None:
            return 0
        if lanes > self.lanes[-1]:
            return self.bytes_per_call[-1] * lanes // self.lanes[-1]
        return int(np.interp(lanes, self.lanes, np.maximum.accumulate(self.bytes_per_call)))

    def memory_of_run(self, most: int, *, captured: bool, rows: int = 1) -> int:
        """Bytes that the calls of a run hold at the worst moment, where the largest has ``most`` lanes.

        Calls run one after the other and use the same memory, so it is that of the largest one. Captured calls have
        memory of their own, which no other call may use: all graphs share one pool, about as large as the largest
        captured call needs. Beside it are the calls that are not captured, as the first two of each size and all of a
        size for which it does not pay. Both cannot be of the largest size, because a capture begins by
        freeing what calls of that size have left in the caches. So the worst moment has the largest size in one of the
        two and the next smaller one in the other. What several captures leave unused in the pool between their blocks
        is not known, and is part of what ``MEMORY_SHARE`` leaves free.

        Parameters
        ----------
        most
            Lanes of the largest call.
        captured
            Whether calls are captured as CUDA graphs.
        rows
            Rows of the network of a lane of this curve; calls are padded to a number of rows.
        """
        beside = -(-smaller_bucket(most * rows) // rows) if captured else 0
        return self.memory(most) + (self.memory(beside) if beside else 0)

    def candidates(self) -> list[int]:
        """Batch sizes to compare: the lane counts that were measured, and 3, 6, 12... between them."""
        between = [3 << k for k in range(self.lanes[-1].bit_length())]
        return sorted({*self.lanes, *(n for n in between if self.lanes[0] < n < self.lanes[-1])})

    def __str__(self) -> str:
        head, rows = f"{'lanes':>5}{'ms per call':>14}{'ms per lane':>14}", []
        for i, (lanes, seconds) in enumerate(zip(self.lanes, self.seconds_per_call, strict=True)):
            memory = "" if self.bytes_per_call is None else f"{self.bytes_per_call[i] / 2**20:14,.0f}"
            rows.append(f"{lanes:5}{1e3 * seconds:14.3f}{1e3 * seconds / lanes:14.3f}{memory}")
        head += "" if self.bytes_per_call is None else f"{'MiB per call':>14}"
        return "\n".join([head, *rows, *([f"ended: {self.ended}"] if self.ended else [])])


class Memory(Protocol):
    """The memory of a device, as :func:`measure` needs it."""

    def free(self) -> int:
        """Bytes that could be allocated now."""

    def begin(self) -> None:
        """Start to record the peak."""

    def grown(self) -> int:
        """Bytes by which the peak since :meth:`begin` exceeds what was allocated then."""


class CudaMemory:
    """The memory of a CUDA device, as torch's allocator sees it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0

    def free(self) -> int:
        """Free memory of the driver, and what torch's allocator reserves but does not use."""
        held = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(torch.cuda.mem_get_info(self._device)[0]) + held

    def begin(self) -> None:
        """Start to record the peak."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def grown(self) -> int:
        """Bytes by which the peak since :meth:`begin` exceeds what was allocated then."""
        return max(0, torch.cuda.max_memory_allocated(self._device) - self._before)


def time_to_take(device: torch.device) -> float:
    """Approximate seconds that :func:`measure` takes by default."""
    return _SECONDS.get(device.type, _SECONDS_ELSEWHERE)


def measure(
    denoiser: Denoiser,
    conditioning: Conditioning,
    sampler: SamplerTable,
    leaves: NDArray[np.int64],
    *,
    most: int = MOST,
    seconds: float | None = None,
    sizes: Sequence[int] | None = None,
    cuda_graphs: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    memory: Memory | None = None,
) -> Curve:
    """Time the denoiser by itself, on the conditioning of real prompts, with 1, 2, 4... lanes per call.

    What a model keeps of captured calls between runs is dropped: it would take the memory that is measured here.
    The doubling ends when it has gained less than 3 % per lane twice in a row, when the next size does not fit into the
    free memory of the device (predicted or tried), at ``most`` lanes, and when the time is used up.

    Parameters
    ----------
    denoiser, conditioning, sampler
        As for the executor. The lanes are at different steps, if the denoiser allows it.
    leaves
        (n,) prompts whose conditioning is used: those of one pass of the executor.
    most
        Largest number of lanes to try.
    seconds
        Approximate seconds to take. Default: 10 on CUDA, 5 elsewhere. One lane is always measured.
    sizes
        Lane counts to measure, ascending, instead of doubling; time and gain are then ignored.
    cuda_graphs
        Replay each size as a CUDA graph, where that is possible: each, since it is replays that are timed. Without it,
        the time of small networks is the host's time to start their kernels.
    clock, memory
        Where seconds and bytes come from; tests replace them.

    Raises
    ------
    OutOfMemory
        If even the first size does not fit.
    """
    device = denoiser.device
    limit = time_to_take(device) if seconds is None else seconds
    if not limit > 0:
        raise ValueError(f"seconds is {seconds}: it has to be above 0")
    if memory is None and device.type == "cuda":
        memory = CudaMemory(device)
    kept_by(denoiser).free()
    graphs = Graphs(device) if cuda_graphs and can_capture(denoiser) else None
    probe = _Probe(denoiser, conditioning, sampler, leaves, graphs, clock, memory)
    with denoiser.running():
        if sizes is None:
            points, ended = probe.doubling(check_count("most", most), limit)
        else:
            points, ended = probe.each([check_count("a size", size) for size in sizes], limit)
    del probe, graphs
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the next work needs other sizes
    lanes, times, grown, spread = zip(*points, strict=True)
    return Curve(lanes, times, None if memory is None else grown, ended, spread)


_Point = tuple[int, float, int, tuple[float, float]]
"""Lanes, seconds per call, bytes per call, seconds per call of the fastest and of the slowest block."""

_FLAT = "the time per lane no longer falls"


def _enough(points: list[_Point], left: float, warm_up: int, memory: Memory | None) -> str:
    """The reason not to measure twice the lanes of the last point, or an empty string."""
    best, idle = math.inf, 0
    for lanes, seconds, *_ in points:
        falls = seconds / lanes < best * (1 - _LEAST_GAIN)
        best, idle = (seconds / lanes, 0) if falls else (best, idle + 1)
    if idle > 1:
        return _FLAT
    lanes, seconds, grown, _ = points[-1]
    if memory is not None:
        # Memory that grows with the lanes continues to grow; the rest, such as workspaces, is allocated already.
        predicted = 2 * grown if len(points) == 1 else 3 * grown - 2 * points[-2][2]
        if (free := memory.free()) * MEMORY_SHARE < predicted:
            return (
                f"{2 * lanes:,} lanes would take {predicted / 2**20:,.0f} of the {free / 2**20:,.0f} MiB that are free"
            )
    if 2 * seconds * (warm_up + 1) > left:
        return f"{2 * lanes:,} lanes would take longer than the time left"
    return ""


class _Probe:
    """Calls of the denoiser, without the executor."""

    def __init__(
        self,
        denoiser: Denoiser,
        conditioning: Conditioning,
        sampler: SamplerTable,
        leaves: NDArray[np.int64],
        graphs: Graphs | None,
        clock: Callable[[], float],
        memory: Memory | None,
    ) -> None:
        self._denoiser, self._graphs, self._clock, self._memory = denoiser, graphs, clock, memory
        self._device, self._inputs = denoiser.device, Inputs(denoiser, conditioning, sampler, leaves)
        self.warm_up = 1 if graphs is None else EAGER_FIRST + 1

    def doubling(self, most: int, seconds: float) -> tuple[list[_Point], str]:
        """Measure 1, 2, 4... lanes, and return why the doubling ended."""
        began, points, lanes = self._clock(), list[_Point](), 1
        while lanes <= most:
            left = seconds - (self._clock() - began)
            if points and (ended := _enough(points, left, self.warm_up, self._memory)):
                return points, ended
            if failed := self._add(points, lanes, seconds):
                return points, failed
            lanes *= 2
        return points, f"{most:,} lanes are the largest number to try"

    def each(self, sizes: list[int], seconds: float) -> tuple[list[_Point], str]:
        """Measure the given sizes, up to the first that fails."""
        points: list[_Point] = []
        failed = (self._add(points, lanes, seconds) for lanes in sizes)
        return points, next(filter(None, failed), "")

    def _add(self, points: list[_Point], lanes: int, seconds: float) -> str:
        """Measure one size, in a share of the ``seconds``; return the reason if it fails, else an empty string."""
        try:
            points.append(self._at(lanes, seconds / 8))
            if self._graphs is not None:
                self._graphs.clear()  # no other call may use the memory of a graph, so it would not count as free
        except RuntimeError as error:  # out of memory, or a size that some kernel does not take
            if points:
                return f"{lanes:,} lanes failed: {first_line(error)}"
            if isinstance(error, torch.OutOfMemoryError):
                raise OutOfMemory(f"a call of {lanes:,} lanes does not fit into the memory: {error}") from error
            raise
        return ""

    @torch.no_grad()
    def _at(self, lanes: int, seconds: float) -> _Point:
        """Time calls of ``lanes`` lanes after a warm-up, for about ``seconds``: the median of several."""
        if self._memory is not None:
            self._memory.begin()
        inputs = self._inputs.of(lanes)
        once = [self._timed(inputs, 1) for _ in range(self.warm_up)][-1]
        calls = max(1, min(round(_BLOCK / max(once, 1e-6)), round(seconds / max(once, 1e-6) / _SAMPLES)))
        times = [self._timed(inputs, calls)]
        while len(times) < _SAMPLES and (sum(times) + times[-1]) * calls <= seconds:
            times.append(self._timed(inputs, calls))
        grown = 0 if self._memory is None else self._memory.grown()
        return lanes, statistics.median(times), grown, (min(times), max(times))

    def _timed(self, inputs: tuple[Tensor, Tensor, dict[str, Tensor]], calls: int) -> float:
        """Seconds per call, of ``calls`` calls that are enqueued one after the other."""

        def call(_: int) -> None:
            self._denoiser.denoise(*inputs)

        synchronize(self._device)
        start = self._clock()
        for _ in range(calls):
            if self._graphs is None:
                call(len(inputs[0]))
            else:
                self._graphs.run(len(inputs[0]), call)
        synchronize(self._device)
        return (self._clock() - start) / calls
