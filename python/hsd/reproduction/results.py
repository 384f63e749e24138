"""Tables and figures, the results of experiments, as Markdown, CSV and PNG."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ..evaluation.clusters import FEW
from ..evaluation.stats import Interval

Kind = Literal["text", "count", "number", "share", "signed"]


class Estimate(NamedTuple):
    """A number and its 95 % interval; either may be missing."""

    value: float | None
    interval: Interval | None = None
    few: bool = False
    """Whether the interval rests on so few clusters that it is too narrow."""


@dataclass(frozen=True)
class Column:
    """The title and number format of a column: ``share`` in per cent, ``signed`` with its sign."""

    title: str
    kind: Kind = "number"


Cell = str | int | float | Estimate | None


@dataclass(frozen=True)
class Table:
    """Rows of cells, and their columns."""

    name: str
    """The name of its file, without suffix."""
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """For people: numbers are rounded, intervals are in brackets."""
        titles = [column.title for column in self.columns]
        rules = ["---" if column.kind == "text" else "---:" for column in self.columns]
        body = [[_text(c, column.kind) for c, column in zip(row, self.columns, strict=True)] for row in self.rows]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in [titles, rules, *body])

    @property
    def marked(self) -> bool:
        """Whether any interval rests on few clusters."""
        return any(isinstance(c, Estimate) and c.few and c.interval is not None for row in self.rows for c in row)

    def csv(self) -> str:
        """For programs: numbers are exact; estimates have three columns, two for the ends ``... low``, ``... high``."""
        estimated = [any(isinstance(row[i], Estimate) for row in self.rows) for i in range(len(self.columns))]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        header: list[str] = []
        for column, wide in zip(self.columns, estimated, strict=True):
            header += [column.title, f"{column.title} low", f"{column.title} high"] if wide else [column.title]
        writer.writerow(header)
        for row in self.rows:
            cells: list[Any] = []
            for cell, wide in zip(row, estimated, strict=True):
                if not wide:
                    cells.append(cell)
                    continue
                value, interval = cell[:2] if isinstance(cell, Estimate) else (cell, None)
                cells += [value, *(interval or (None, None))]
            writer.writerow(cells)
        return out.getvalue()


@dataclass(frozen=True)
class Figure:
    """A plot or a sheet of images, and its caption."""

    name: str
    """The name of its file, without suffix."""
    caption: str
    png: bytes


Result = Table | Figure

MARK = "†"
"""Marks an interval that rests on few clusters."""

MARKED = f"{MARK} Too narrow: the interval rests on few clusters, as much as fewer than {FEW} of equal size."
"""The explanation below a table."""


def _text(cell: Cell, kind: Kind) -> str:
    if isinstance(cell, Estimate):
        value = _text(cell.value, kind)
        if cell.interval is None or cell.value is None:
            return value
        low, high = (_text(end, kind) for end in cell.interval)
        return f"{value} ({low} to {high}){MARK * cell.few}"
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell.replace("|", "\\|")
    if kind == "count":
        return f"{cell:,.0f}" if float(cell).is_integer() else f"{cell:,.1f}"
    if kind == "share":
        return f"{cell:.1%}"
    return f"{cell:+.3f}" if kind == "signed" else f"{cell:.3f}"
