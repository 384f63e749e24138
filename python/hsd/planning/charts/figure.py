"""The figure of a plan: three pictures on one page."""

from __future__ import annotations

from typing import Any

from ...work.drawing import figure, matplotlib_for, style
from .clusters import draw_clusters
from .colours import QUIET
from .savings import draw_savings
from .subject import Subject
from .tree import draw_tree


def draw(plan: Subject) -> Any:
    """The ``matplotlib.figure.Figure`` of a plan: savings over tau, clusters by step, and the tree.

    Raises
    ------
    Error
        If matplotlib is missing.
    """
    with matplotlib_for("plot").rc_context(style()):
        page = figure(11.0, 8.2)
        above, below = page.subfigures(2, 1, height_ratios=(1.0, 1.3))  # each with its own margins
        left, right = above.subplots(1, 2)
        draw_savings(left, plan)
        draw_clusters(right, plan)
        draw_tree(below.subplots(), plan)
        page.suptitle(_title(plan), x=0.01, ha="left", fontsize=14, fontweight="bold")
        page.supxlabel(plan.about, x=0.01, ha="left", fontsize=8.5, color=QUIET)
        return page


def _title(plan: Subject) -> str:
    images = f"{len(plan.kept):,} image{'' if len(plan.kept) == 1 else 's'}"
    part = f" of {plan.n_prompts:,}" if len(plan.kept) < plan.n_prompts else ""
    return f"{images}{part}, {plan.n_steps} steps: {plan.savings:.1%} of the denoiser's evaluations saved"
