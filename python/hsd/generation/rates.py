"""How fast a run is, and when it ends."""

from __future__ import annotations

import math
import time
from collections import deque

_RECENT = 30.0
"""Seconds that count as recent."""

_LEAST = 10
"""Items that count, however long ago they were."""

_FADES = 60.0
"""Seconds of work after which a measurement counts a third as much: the first calls of a run are slow."""


class Rate:
    """Items a second, lately: in the last half minute, or of the last ten items where that is longer."""

    def __init__(self) -> None:
        self._times: deque[float] = deque([time.monotonic()])
        """When it began, or of the item before the first that counts; then of all that count."""

    def add(self) -> None:
        """One more item, now."""
        self._times.append(time.monotonic())

    def value(self) -> float:
        """Items a second."""
        now, times = time.monotonic(), self._times
        while len(times) > _LEAST + 1 and times[1] < now - _RECENT:
            times.popleft()
        return (len(times) - 1) / max(now - times[0], 1.0)


class Fading:
    """Seconds for one unit of work, from measurements of which the latest count most."""

    def __init__(self) -> None:
        self._seconds = self._work = 0.0
        self._last = (0.0, 0.0)

    def measure(self, seconds: float, work: float) -> None:
        """What there is in total until now."""
        new, done = seconds - self._last[0], work - self._last[1]
        self._last = seconds, work
        fade = math.exp(-max(new, 0.0) / _FADES)
        self._seconds, self._work = self._seconds * fade + new, self._work * fade + done

    def per_unit(self) -> float | None:
        """Seconds for one unit; None before any is done."""
        return self._seconds / self._work if self._work > 0 else None


class Remaining:
    """The time that a run still takes: of the denoiser by the cost of what is left, of the decoder by its images.

    Images say little about it: shared steps come first, and then all images at once.
    """

    def __init__(self, expected: float | None) -> None:
        self._expected = expected
        self._denoise, self._decode = Fading(), Fading()

    def measure(self, fraction: float, denoise: float, images: int, decode: float) -> None:
        """Add what is done: the denoiser's fraction and seconds, the images and seconds of the decoder."""
        self._denoise.measure(denoise, fraction)
        self._decode.measure(decode, float(images))

    def seconds(self, fraction: float, images: int) -> float | None:
        """Seconds left, with this fraction of the denoiser's work done and so many images not decoded."""
        whole = self._denoise.per_unit()
        if whole is None:
            whole = self._expected
        if whole is None:
            return None
        return whole * (1.0 - fraction) + (self._decode.per_unit() or 0.0) * images
