"""Plots, drawn by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..work import drawing
from .results import Estimate

MARKERS = "osD^v*XP"


def figure(width: float, height: float) -> Any:
    """An empty figure; width and height in inches. ``Error`` if matplotlib is missing."""
    return drawing.figure(width, height, extra="reproduce")


def png(figure: Any) -> bytes:
    """The PNG file of a figure; the same figure gives the same bytes."""
    return drawing.encoded(figure)


def line(axes: Any, label: str, points: Sequence[tuple[float, Estimate]], index: int = 0, dashed: bool = False) -> None:
    """Draw estimates against numbers as a line, with the intervals as error bars."""
    known = sorted((x, e.value, e.interval or (e.value, e.value)) for x, e in points if e.value is not None)
    x, y = [at for at, _, _ in known], [value for _, value, _ in known]
    # The ends of an interval without width may miss the value by a rounding error.
    below = [max(0.0, value - low) for _, value, (low, _) in known]
    above = [max(0.0, high - value) for _, value, (_, high) in known]
    style = "--" if dashed else "-"
    marker = MARKERS[index % len(MARKERS)]
    axes.errorbar(
        x, y, yerr=[below, above], label=label, fmt=marker + style, color=f"C{index}", capsize=3, markersize=5
    )


def bars(axes: Any, values: Mapping[str, Estimate], baseline: float | None = None) -> None:
    """Draw one estimate per name, from the top down, as points with intervals; a vertical line at ``baseline``."""
    names = list(values)
    for row, (name, estimate) in enumerate(values.items()):
        if estimate.value is None:
            continue
        low, high = estimate.interval or (estimate.value, estimate.value)
        axes.errorbar(
            [estimate.value],
            [row],
            xerr=[[max(0.0, estimate.value - low)], [max(0.0, high - estimate.value)]],
            fmt="o",
            color=f"C{row}",
            capsize=3,
            label=name,
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    if baseline is not None:
        axes.axvline(baseline, color="0.6", linewidth=1)
    axes.grid(axis="x", alpha=0.3)
