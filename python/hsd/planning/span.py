"""A measured quantity that is not the same each time: from its smallest to its largest value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_UNITS = ((1.0, 1e3, "ms", 0), (120.0, 1.0, "s", 1), (7200.0, 1 / 60, "min", 1), (math.inf, 1 / 3600, "h", 1))
"""Up to so many seconds: how many of a unit a second is, the unit, and its digits."""


@dataclass(frozen=True)
class Span:
    """Seconds from ``low`` to ``high``, both measured."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Span:
        """From the smallest to the largest of one or more values."""
        every = list(values)
        return cls(min(every), max(every))

    @property
    def middle(self) -> float:
        """Half way, where one number is needed."""
        return (self.low + self.high) / 2

    def ends(self) -> list[float]:
        """Both, for JSON."""
        return [self.low, self.high]

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> Span:
        return Span(self.low * factor, self.high * factor)

    def __str__(self) -> str:
        """In a unit that is easy to read: ``12.1 to 15.4 min``, or ``about 5.6 s`` where both ends read alike."""
        _, factor, unit, digits = next(one for one in _UNITS if self.high < one[0])
        low, high = (f"{end * factor:.{digits}f}" for end in (self.low, self.high))
        return f"about {high} {unit}" if low == high else f"{low} to {high} {unit}"


def duration(seconds: float) -> str:
    """Seconds in a unit that is easy to read."""
    return str(Span(seconds, seconds)).removeprefix("about ")


def per_hour(images: int, seconds: Span) -> str:
    """How many images an hour that is."""
    low, high = (images / max(end, 1e-9) * 3600.0 for end in (seconds.high, seconds.low))
    low_text, high_text = (f"{rate:,.0f}" if low >= 10 else f"{rate:.2g}" for rate in (low, high))
    return f"{low_text if low_text == high_text else f'{low_text} to {high_text}'} images per hour"
