"""What all tables are made from, and how they are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import counting
import fills
import roofline
from counting import Count
from fills import Fill
from results import EAGER, GRAPH, Results
from roofline import Model

from hsd.tuning.curve import Curve

NONE = "—"
"""Where nothing was measured."""

BATCH = 16
"""The batch size at which sets were measured."""


@dataclass
class Paper:
    """What the tables are made from."""

    known: Results
    """What predictions are calibrated by."""
    measured: Results
    """What stands in the measured columns."""
    fills: list[Fill] = field(default_factory=fills.read)
    counts: dict[str, dict[str, Count]] = field(default_factory=counting.read)

    @cached_property
    def models(self) -> dict[str, Model]:
        """The counted models."""
        return roofline.models(self.counts, self.known)

    @property
    def sets(self) -> Results:
        """By what the times of prompt sets are predicted: the measured device, if its denoiser and parts were."""
        whole = all(self.measured.seconds("kandinsky", mode) for mode in (EAGER, GRAPH))
        return self.measured if whole and "denoise_alone" in self.measured.end_to_end() else self.known

    def curve(self, mode: str = GRAPH) -> Curve:
        """Kandinsky's seconds a call."""
        found = self.sets.curve("kandinsky", mode)
        assert found is not None, f"the denoiser of Kandinsky was not measured, {mode}"
        return found

    def of(self, name: str, tau: float, order: str | None = None) -> list[Fill]:
        """The fills of a set."""
        mine = [one for one in self.fills if (one.set, one.tau) == (name, tau)]
        return [one for one in mine if order in (None, one.order)]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column to the left, all others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    assert len({len(line) for line in lines}) == 1, lines
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(share: float | None, goal: float | None = None) -> str:
    """A share; bold where it is below the goal."""
    if share is None:
        return NONE
    text = f"{share:.1%}"
    return f"**{text}**" if goal is not None and share < goal else text


def number(value: float | None, digits: int = 3) -> str:
    """With so many digits, without an exponent."""
    if value is None:
        return NONE
    whole = 0 if value == 0 else len(str(int(abs(value))))
    return f"{value:,.{max(0, digits - whole)}f}"


def both(predicted: str, measured: str) -> str:
    """A cell with a measured value beside the predicted one."""
    return f"{predicted} / {measured}"
