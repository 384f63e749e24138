"""The chart of clusters by step, as SVG."""

from __future__ import annotations

from dataclasses import dataclass

from ..planning.plan import Plan

WIDTH, HEIGHT = 720, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 12, 28


@dataclass(frozen=True)
class Chart:
    """Coordinates for the template, in a box of ``WIDTH`` x ``HEIGHT``."""

    area: str
    """The path of the clusters that ran."""
    saved: str
    """The path of what sharing saved: from the clusters up to one for each image."""
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    text: str
    """The chart in words."""


def clusters_by_step(plan: Plan) -> Chart:
    """One column a step: how many clusters ran, of how many images."""
    counts, images, steps = plan.counts().tolist(), len(plan.kept), plan.n_steps

    def x(step: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * step / steps, 1)

    def y(count: float) -> float:
        return round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - count / images), 1)

    line = " ".join(f"L{x(k)} {y(n)} L{x(k + 1)} {y(n)}" for k, n in enumerate(counts))
    wanted = max(1, steps // 8)
    x_ticks = [(x(k), f"{k}") for k in range(0, steps + 1, wanted)]
    y_ticks = [(y(value), f"{value:,}") for value in sorted({0, images // 2, images})]
    return Chart(
        area=f"M{x(0)} {y(0)} {line} L{x(steps)} {y(0)} Z",
        saved=f"M{x(0)} {y(images)} {line} L{x(steps)} {y(images)} Z",
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        text=f"{counts[0]:,} clusters at the first step, {counts[steps // 2]:,} in the middle, {counts[-1]:,} at the "
        f"last, for {images:,} images.",
    )
