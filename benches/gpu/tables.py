"""The tables of docs/gpu.md, one function each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import fills
from fills import Fill
from forecast import Forecast, automatic
from results import GRAPH, Results

from hsd.tuning.curve import Curve

NONE = "—"
"""Where nothing was measured."""


@dataclass
class Paper:
    """What the tables are made from."""

    known: Results
    """What predictions are calibrated by."""
    measured: Results
    """What stands in the measured columns."""
    fills: list[Fill] = field(default_factory=fills.read)

    def curve(self, mode: str = GRAPH) -> Curve:
        """Kandinsky's seconds a call."""
        found = self.known.curve("kandinsky", mode)
        assert found is not None
        return found

    def of(self, name: str, tau: float, order: str | None = None) -> list[Fill]:
        """The fills of a set."""
        mine = [one for one in self.fills if (one.set, one.tau) == (name, tau)]
        return [one for one in mine if order in (None, one.order)]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column to the left, all others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.1%}"


def styles(paper: Paper) -> str:
    """Batch sizes and orders of the set whose calls are the least full."""
    curve = paper.curve()

    def row(name: str, one: Forecast) -> list[str]:
        filled = one.fill
        return [
            name,
            f"{filled.n_calls} ({filled.bound})",
            percent(filled.filled),
            f"{one.seconds:.2f}",
            percent(one.efficiency),
            percent(Forecast(filled, curve, padded=False).efficiency),
            percent(one.bound),
        ]

    rows = []
    for order in ("depth", "breadth"):
        mine = paper.of(fills.NARROW, 1.0, order)
        rows += [row(f"{order}, {one.batch_size}", Forecast(one, curve)) for one in mine if one.batch_size in _SHOWN]
    for order in ("depth", None):
        chosen = automatic(paper.of(fills.NARROW, 1.0, order), curve)
        what = f'"auto": {chosen.fill.order}, {chosen.fill.batch_size}'
        rows.append(row(f"{what}, if depth is asked for" if order else what, chosen))
    return table(["order, B", "calls (bound)", "filled", "s", "efficiency", "unpadded", "bound"], rows)


_SHOWN = (8, 16, 32, 64)


def together(paper: Paper) -> str:
    """More work in one run."""
    curve = paper.curve()
    names = [fills.NARROW, f"{fills.NARROW} and animals", *(f"{fills.NARROW}, {n} images each" for n in fills.IMAGES)]
    rows = []
    for name in names:
        for one in paper.of(name, 1.0, "depth"):
            if one.batch_size in fills.SIZES:
                made = Forecast(one, curve)
                calls = f"{one.n_calls} ({one.bound})"
                cells = [percent(one.filled), f"{made.seconds:.2f}", percent(made.efficiency)]
                rows.append([name, str(one.batch_size), calls, *cells])
    return table(["in one run", "B", "calls (bound)", "filled", "s", "efficiency"], rows)


TABLES: dict[str, Callable[[Paper], str]] = {"styles": styles, "together": together}
