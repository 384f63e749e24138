"""How much is saved at other thresholds: the curve of one tree, exact at every point."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._core import Plan as CorePlan
from .colours import CHOSEN, QUIET, SHARED
from .subject import Subject

_GRID = 120
"""Points of the curve where it has too many jumps to draw each."""

_JUMPS = 1500
"""Up to this number, every jump is drawn."""

_ROOM = 1.9
"""The picture ends at this multiple of the plan's tau or later: the plan's label stands at the right of its point."""

_BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Savings that are marked on the curve."""


class Curve:
    """Savings of the plan's prompts by tau. Its own tau is above 0, and some images may share steps."""

    def __init__(self, plan: Subject) -> None:
        self._tree, self._kept = plan.tree, None if len(plan.kept) == plan.n_prompts else plan.kept
        self.shape = plan.phi / plan.tau
        self._standard = plan.standard_node_steps
        heights = plan.tree.heights
        self.heights = np.unique(heights[np.isfinite(heights)])
        self.tau = plan.tau

    def savings(self, tau: float) -> float:
        """1 - node-steps / (images * steps) at ``tau``."""
        phi = tau * self.shape
        if self._kept is None:
            return 1.0 - self._tree.node_steps(phi) / self._standard
        return 1.0 - CorePlan.compile(self._tree, phi).prune(self._kept).node_steps / self._standard

    @property
    def enough(self) -> float:
        """A tau at which all steps are shared that can be."""
        return float(np.nextafter(self.heights[-1], np.inf) / self.shape[self.shape > 0][-1] * (1 + 1e-9))

    def tau_for(self, savings: float) -> float:
        """The smallest tau that saves at least this, nearly: by bisection."""
        low, high = 0.0, self.enough
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self.savings(middle) >= savings else (middle, high)
        return high

    def points(self, end: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values of tau in [0, end], and what each saves from there to the next one, or up to it."""
        positive = self.shape[self.shape > 0]
        if len(self.heights) * len(positive) <= _JUMPS:  # a cluster runs where its height is below phi, so after it
            jumps = np.unique((self.heights[:, None] / positive).ravel())
            taus = np.concatenate([[0.0], jumps[jumps < end], [end]])
            return taus, np.array([self.savings(float(np.nextafter(tau, np.inf))) for tau in taus])
        taus = np.unique(np.append(np.linspace(0.0, end, _GRID), self.tau))
        return taus, np.array([self.savings(float(tau)) for tau in taus])


def why_nothing(plan: Subject) -> str | None:
    """Why this plan has no curve: in what way no two of its images could share a step, whatever tau; else None."""
    if plan.n_prompts == 1:
        return "There is one image."
    if plan.tau == 0:
        return "At tau 0 nothing is shared,\nand no prompts were compared."
    if not np.isfinite(plan.tree.heights).any():
        return "No two images may share a step:\nthey are repeats, or have other settings."
    return None if (plan.phi > 0).any() else "No step can be shared."


def draw_savings(axes: Any, plan: Subject) -> None:
    """Savings over tau, with the plan's own point and the budgets that can be asked for."""
    axes.set_title("Savings over the threshold")
    axes.set_xlabel("threshold tau")
    axes.set_ylabel("evaluations saved")
    axes.yaxis.set_major_formatter(_percent)
    why = why_nothing(plan)
    if why is not None:
        axes.set_ylim(0, 1)
        axes.set_xticks([])
        axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=QUIET)
        return
    curve = Curve(plan)
    most = curve.savings(curve.enough)
    widest = max(4.0 * curve.tau, curve.tau_for(0.5 * most))
    end = max(_ROOM * curve.tau, min(widest, curve.tau_for(0.85 * most)))
    axes.set_xlim(0, end)
    axes.set_ylim(0, most * 1.15 if most > 0 else 1.0)
    taus, saved = curve.points(end)
    exact = len(curve.heights) * int((curve.shape > 0).sum()) <= _JUMPS
    axes.plot(taus, saved, color=SHARED, linewidth=2, drawstyle="steps-post" if exact else "default", zorder=3)
    axes.axhline(most, color=QUIET, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.annotate(
        f"most that is possible: {most:.1%}",
        (end, most),
        textcoords="offset points",
        xytext=(-2, 4),
        ha="right",
        fontsize=8.5,
        color=QUIET,
    )
    _mark_budgets(axes, curve, end)
    _mark_plan(axes, plan, curve, end)


def _mark_budgets(axes: Any, curve: Curve, end: float) -> None:
    """A small dot where each round budget is met, with the tau that it takes."""
    own = curve.savings(curve.tau)
    for budget in _BUDGETS:
        if budget > curve.savings(end) or abs(budget - own) < 0.09:
            continue
        tau = curve.tau_for(budget)
        axes.plot([tau], [budget], "o", color="white", markeredgecolor=SHARED, markersize=5, zorder=4)
        _beside(axes, f"{budget:.0%}: tau {tau:.3g}", tau, budget, end, fontsize=8.5, color=QUIET)


def _mark_plan(axes: Any, plan: Subject, curve: Curve, end: float) -> None:
    """The plan's own point. Its label is below the curve, which never falls; with no space there, above all of it."""
    axes.plot([plan.tau, plan.tau], [0, plan.savings], color=CHOSEN, linewidth=1.2, linestyle="--", zorder=2)
    axes.plot([plan.tau], [plan.savings], "D", color=CHOSEN, markersize=8, zorder=5, markeredgecolor="white")
    text = f"this plan: {plan.savings:.1%} at tau {plan.tau:.4g}"
    low = not _has_space_below(axes, plan.savings)
    at = curve.savings(min(end, plan.tau + 0.5 * end)) if low else plan.savings
    _label(axes, text, plan.tau, at, (9, 7) if low else (9, -11), color=CHOSEN, fontweight="bold")


def _has_space_below(axes: Any, savings: float) -> bool:
    return bool(savings > 0.08 * axes.get_ylim()[1])


def _beside(axes: Any, text: str, tau: float, savings: float, end: float, **style: Any) -> None:
    """Text at a point of the curve, on the side of it that is free: below at the right, or above at the left."""
    if tau < 0.7 * end:
        _label(axes, text, tau, savings, (9, -11 if _has_space_below(axes, savings) else 7), **style)
    else:
        _label(axes, text, tau, savings, (-7, -14 if savings > 0.75 * axes.get_ylim()[1] else 7), **style)


def _label(axes: Any, text: str, tau: float, savings: float, offset: tuple[int, int], **style: Any) -> None:
    """Text at an offset, in points, from a point of the picture; at its right or left."""
    from matplotlib.patheffects import withStroke

    axes.annotate(
        text,
        (tau, savings),
        textcoords="offset points",
        xytext=offset,
        ha="left" if offset[0] > 0 else "right",
        path_effects=[withStroke(linewidth=3, foreground="white")],  # lines behind it do not cross it
        zorder=6,
        **style,
    )


def _percent(value: float, _: object = None) -> str:
    return f"{value:.0%}"
