"""How many latents go through the denoiser at each step: the areas of the picture are the cost and what is saved."""

from __future__ import annotations

from typing import Any

import numpy as np

from .colours import QUIET, SAVED, SHARED
from .subject import Subject


def draw_clusters(axes: Any, plan: Subject) -> None:
    """Active clusters by step, below the number of images, which run at every step without sharing."""
    counts, images = plan.counts, len(plan.kept)
    edges = np.arange(plan.n_steps + 1) - 0.5
    axes.set_title("Clusters by step")
    axes.set_xlabel("step of the denoiser")
    axes.set_ylabel("latents that run")
    axes.stairs(np.full(plan.n_steps, images), edges, fill=True, color=SAVED)
    axes.stairs(counts, edges, fill=True, color=SHARED)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, images * 1.1)
    axes.yaxis.set_major_formatter(_thousands)
    if plan.n_steps > 1:
        axes.locator_params(axis="both", integer=True)
    else:
        axes.set_xticks([0])
    axes.annotate(
        f"without sharing: {images:,} at every step",
        (edges[-1], images),
        textcoords="offset points",
        xytext=(-2, 4),
        ha="right",
        fontsize=8.5,
        color=QUIET,
    )
    ran = f"run: {plan.node_steps:,}"
    saved = f"saved: {plan.standard_node_steps - plan.node_steps:,}"
    # Where the areas are large: text in a corner of each, or in the only area that there is.
    if plan.savings > 0.1:
        axes.text(0.03, 0.80, saved, transform=axes.transAxes, color=SHARED, fontweight="bold", fontsize=11)
    right = counts[-1 - plan.n_steps // 4] if plan.n_steps > 1 else images
    if right > 0.3 * images:
        axes.text(0.97, 0.06, ran, transform=axes.transAxes, color="white", fontweight="bold", fontsize=11, ha="right")


def _thousands(value: float, _: object = None) -> str:
    return f"{value:,.0f}"
