"""The tree of prompts with the thresholds of some steps drawn across it.

A small tree is drawn as a dendrogram. Of a large one, every merge would be thinner than a pixel. So the picture shows
for each prompt (from left to right) and each threshold (from the bottom up) how many images its cluster has there, with
lines between the largest clusters.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._core import Tree
from ...work.text import shortened
from .colours import APART, CHOSEN, QUIET, SHARED, SINGLE
from .layout import Scale, merges_of, scale_of
from .savings import why_nothing
from .subject import Subject

LARGEST = 200
"""Up to this number of prompts the whole tree is drawn."""

_COLUMNS, _ROWS = 1200, 160
"""Points of the picture of a large tree."""

_NAMED = 48
"""Up to this number of prompts each is named."""

_LINES = 5
"""Thresholds that are drawn, beside the first and the last."""


def draw_tree(axes: Any, plan: Subject) -> None:
    """The tree of all prompts, whatever part of them the plan keeps."""
    tree, n = plan.tree, plan.n_prompts
    approximate = "" if tree.exact else ", approximate"
    what = " and the threshold of each step" if n <= LARGEST else ": each column is a prompt"
    axes.set_title(f"Tree ({tree.linkage}{approximate}){what}", y=1.0)  # beside the bar of colours
    axes.set_xticks([])
    why = why_nothing(plan)
    if why is not None and not np.isfinite(tree.heights).any():
        axes.set_yticks([])
        axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", color=QUIET)
        return
    scale = scale_of(tree, plan.phi)
    axes.set_xlim(0, n)
    axes.set_ylim(0, 1.02)
    if n <= LARGEST:
        _dendrogram(axes, tree, scale)
    else:
        _sizes(axes, tree, scale)
    _thresholds(axes, plan, scale)
    _ticks(axes, scale)
    _names(axes, plan)


def _dendrogram(axes: Any, tree: Tree, scale: Scale) -> None:
    """Every merge as a bar with two legs; what is above the first threshold is grey."""
    from matplotlib.collections import LineCollection

    lines: dict[str, list[list[tuple[float, float]]]] = {APART: [], SHARED: [], SINGLE: []}
    # Of each part of the leaf order that is a tree so far: where it stands, and its height.
    parts = {(i, i + 1): (i + 0.5, 0.0) for i in range(tree.n_leaves)}

    def stem(leaves: tuple[int, int], x: float, low: float, high: float) -> None:
        """The branch above a part: below the first threshold it is one cluster at some steps."""
        cut = min(max(scale.first, low), high)
        for colour, begin, end in (
            (SHARED if leaves[1] - leaves[0] > 1 else SINGLE, low, cut),
            (APART, cut, high),
        ):
            if begin < end:
                lines[colour].append([(x, scale(begin)), (x, scale(end))])

    for merge in merges_of(tree):
        ends = []
        for leaves in (merge.left, merge.right):
            x, low = parts.pop(leaves)
            stem(leaves, x, low, merge.height)
            ends.append(x)
        y = scale(merge.height)
        lines[SHARED if merge.height < scale.first else APART].append([(ends[0], y), (ends[1], y)])
        parts[merge.left[0], merge.right[1]] = sum(ends) / 2, merge.height
    for leaves, (x, low) in parts.items():  # the roots
        stem(leaves, x, low, max(low, scale.first))
    width = 2.2 if tree.n_leaves <= 60 else 1.4
    for colour, drawn in lines.items():
        axes.add_collection(LineCollection(drawn, colors=colour, linewidths=width, capstyle="round"))


def _sizes(axes: Any, tree: Tree, scale: Scale) -> None:
    """The size of each prompt's cluster at each height as a colour, and lines between the largest clusters."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LogNorm

    n = tree.n_leaves
    heights = [scale.height((row + 0.5) / _ROWS) for row in range(_ROWS)]
    image = cluster_sizes(tree, heights, min(n, _COLUMNS))
    first = int(np.searchsorted(heights, scale.first))
    for rows, colours in ((slice(first, _ROWS), "Greys"), (slice(0, first), "Blues")):
        if rows.start == rows.stop:
            continue
        norm = LogNorm(1, max(2.0, float(image[rows].max())))
        drawn = axes.imshow(
            image[rows],
            cmap=colours,
            norm=norm,
            alpha=0.45 if colours == "Greys" else 1.0,
            aspect="auto",
            origin="lower",
            interpolation="nearest",
            extent=(0, n, rows.start / _ROWS, rows.stop / _ROWS),
        )
        if colours == "Blues":
            _colour_bar(axes, drawn)
    lines = [
        [(merge.right[0], scale(scale.first)), (merge.right[0], scale(merge.height))]
        for merge in merges_of(tree, max(2, n // LARGEST))
        if merge.height > scale.first
    ]
    axes.add_collection(LineCollection(lines, colors="white", linewidths=1.2))


def _colour_bar(axes: Any, drawn: Any) -> None:
    """What the colours mean, beside the title."""
    bar = axes.figure.colorbar(drawn, cax=axes.inset_axes((0.76, 1.02, 0.24, 0.03)), orientation="horizontal")
    bar.ax.xaxis.set_ticks_position("top")
    most = drawn.norm.vmax
    ticks = [value for value in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 100_000) if value <= most]
    bar.set_ticks(ticks, labels=[f"{value:,}" for value in ticks], minor=False)
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=8, length=2, pad=1)
    bar.outline.set_visible(False)
    bar.ax.text(-0.02, 0.5, "images in its cluster", transform=bar.ax.transAxes, ha="right", va="center", fontsize=8.5)


def cluster_sizes(tree: Tree, heights: list[float], columns: int) -> NDArray[np.float64]:
    """(heights, columns) how many leaves the cluster has that a leaf is in where the tree is cut at each height: the
    geometric mean over the leaves of each column, which are neighbours in the leaf order.
    """
    n = tree.n_leaves
    begins = np.arange(columns) * n // columns
    out = np.empty((len(heights), columns))
    for row, height in enumerate(heights):
        sizes = np.bincount(tree.cut(height))  # labels count from 0 in leaf order
        out[row] = np.add.reduceat(np.repeat(np.log(sizes), sizes), begins)
    return np.exp(out / np.diff(np.append(begins, n)))


def _thresholds(axes: Any, plan: Subject, scale: Scale) -> None:
    """Lines at the thresholds of some steps; at the right, the steps and how many clusters there are."""
    if scale.first == 0.0:
        return
    counts, last = plan.tree.counts(plan.phi), plan.n_steps - 1
    steps = sorted({round(i * last / (_LINES + 1)) for i in range(_LINES + 2)})
    placed = 2.0
    for k in steps:
        y = scale(float(plan.phi[k]))
        first = k == 0
        if placed - y < 0.07 and not first:  # the names would run into each other
            continue
        placed = y
        axes.axhline(
            y, color=CHOSEN, linewidth=1.8 if first else 0.9, linestyle="-" if first else (0, (4, 3)), zorder=4
        )
        count = int(counts[k])
        text = f" step {k}: {count:,} cluster{'' if count == 1 else 's'}"
        bold = "bold" if first else "normal"
        axes.annotate(
            text, (1, y), xycoords=("axes fraction", "data"), va="center", color=CHOSEN, fontsize=8.5, weight=bold
        )
    if scale.top > scale.first:
        _beside(axes, " not shared", max((1 + scale(scale.first)) / 2, scale(scale.first) + 0.06), color=QUIET)


def _beside(axes: Any, text: str, y: float, **style: Any) -> None:
    """Text at the right of the picture."""
    axes.annotate(text, (1, y), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, **style)


def _ticks(axes: Any, scale: Scale) -> None:
    """Heights at the left: round values below the knee of the scale, and the largest one; a mark where it bends."""
    from matplotlib.ticker import MaxNLocator

    values = [float(v) for v in MaxNLocator(4).tick_values(0, scale.knee) if v <= scale.knee * (1 + 1e-9)]
    label = "height of the merge"
    if scale.end > scale.knee:
        values.append(scale.end)
        label += f"; compressed above {scale.knee:.3g}"
        slash = [(-1, -0.5), (1, 0.5)]
        axes.plot([0], [scale(scale.knee)], marker=slash, markersize=11, color="black", clip_on=False, zorder=5)
    axes.set_yticks([scale(v) for v in values], [f"{v:.3g}" for v in values])
    axes.set_ylabel(label)


def _names(axes: Any, plan: Subject) -> None:
    """Prompts below their places, as many as there is space for."""
    n, order = plan.n_prompts, plan.tree.leaf_order
    if n <= 6:
        texts = [textwrap.fill(shortened(plan.prompts[i], 90), max(14, 110 // n)) for i in order]
        axes.set_xticks(np.arange(n) + 0.5, texts, fontsize=8.5, color=QUIET)
    elif n <= _NAMED:
        texts = [shortened(plan.prompts[i], 34) for i in order]
        axes.set_xticks(np.arange(n) + 0.5, texts, rotation=90, fontsize=7.5 if n > 30 else 8.5, color=QUIET)
    else:
        _cluster_names(axes, plan)
    axes.tick_params(axis="x", length=0)


def _cluster_names(axes: Any, plan: Subject) -> None:
    """The lowest prompt of each of the largest parts of a tree, where the part is wide enough for its text."""
    tree, n = plan.tree, plan.n_prompts
    finite = np.sort(tree.heights[np.isfinite(tree.heights)])
    if not len(finite):
        return
    labels = tree.cut(float(finite[-min(len(finite), 7)]))
    sizes = np.bincount(labels)
    begins = np.cumsum(sizes) - sizes
    wide = np.flatnonzero(sizes >= 0.08 * n)
    places = [float(begins[c] + sizes[c] / 2) for c in wide]
    texts = []
    for c in wide:
        width = max(12, int(140 * sizes[c] / n))
        name = textwrap.wrap(plan.prompts[tree.leaf_order[begins[c]]], width, max_lines=3, placeholder="...")
        texts.append("\n".join([*name, f"({sizes[c]:,} prompts)"]))
    axes.set_xticks(places, texts, fontsize=7.5, color=QUIET)
