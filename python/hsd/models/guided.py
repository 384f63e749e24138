"""Families with classifier-free guidance: the setting ``guidance_interval``, which is the same in all of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import LATER, Adapter


@dataclass(eq=False)
class GuidedAdapter(Adapter):
    """An adapter that may be guided. A family with a ``__post_init__`` of its own calls this one first."""

    guidance_interval: tuple[float, float] | None = field(default=None, kw_only=True, metadata=LATER)
    """The part (a, b) of the run that is guided, 0 <= a < b <= 1: step k of K if a <= k / K < b. None: all of it.

    (Kynkaanniemi et al., arXiv 2404.07724.) The other steps evaluate the conditional half only, which is half the work.
    A prior is guided throughout.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.guidance_interval = _interval(self.guidance_interval)

    def rows_by_step(self, n_steps: int) -> NDArray[np.int64] | None:
        """(K,) 2 at guided steps and 1 at others; None if all steps are guided, or none is by the other settings."""
        if self.guidance_interval is None or not self.guided:
            return None
        begin, end = self.guidance_interval
        guided = [begin <= k / n_steps < end for k in range(n_steps)]
        return None if all(guided) else np.where(guided, 2, 1).astype(np.int64)


def _interval(value: Any) -> tuple[float, float] | None:
    """A checked ``guidance_interval``; a list of two, as in JSON, is accepted too."""
    if value is None:
        return None
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(map(_is_number, value)):
        raise ValueError(f"guidance_interval is {value!r}: it has to be a pair of fractions of the run, like (0, 0.6)")
    begin, end = float(value[0]), float(value[1])
    if not 0.0 <= begin < end <= 1.0:
        raise ValueError(
            f"guidance_interval is ({begin:g}, {end:g}): it has to begin at 0 or later, end at 1 or earlier, and end "
            "after it begins; guidance_interval=None guides all steps"
        )
    return (begin, end)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
