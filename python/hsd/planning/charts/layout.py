"""Where the parts of a tree stand in a picture: leaves from left to right, heights from the bottom up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..._core import Tree

_BELOW = 0.8
"""Share of the picture's height for what is below both the first threshold and the tallest merge."""

_ALIKE = 1.25
"""Up to this ratio of the two, the scale is one straight line."""


@dataclass(frozen=True)
class Merge:
    """One merge: two children that stand side by side in the leaf order."""

    height: float
    left: tuple[int, int]
    """The range of the leaf order of the left child, and so on."""
    right: tuple[int, int]


@dataclass(frozen=True)
class Scale:
    """Heights to places in the picture, 0 to 1: two straight lines, so that a few tall merges, or a threshold above all
    merges, do not take all of it.
    """

    first: float
    """The threshold of the first step."""
    top: float
    """The largest finite height."""

    @property
    def end(self) -> float:
        """What is at the upper end."""
        return max(self.first, self.top)

    @property
    def knee(self) -> float:
        """Where the second line begins; ``end`` if there is one line."""
        low = min(self.first, self.top)
        return low if 0 < low * _ALIKE < self.end else self.end

    def __call__(self, height: float) -> float:
        """The place of a height."""
        knee = self.knee
        if knee == self.end:
            return height / knee
        return height / knee * _BELOW if height <= knee else _BELOW + (height - knee) / (self.end - knee) * (1 - _BELOW)

    def height(self, place: float) -> float:
        """The height at a place, the other way round."""
        knee = self.knee
        if knee == self.end:
            return place * knee
        return place / _BELOW * knee if place <= _BELOW else knee + (place - _BELOW) / (1 - _BELOW) * (self.end - knee)


def scale_of(tree: Tree, phi: NDArray[np.float64]) -> Scale:
    """The scale for a tree and its thresholds."""
    heights = tree.heights[np.isfinite(tree.heights)]
    return Scale(float(phi[0]), float(heights.max(initial=0.0)))


def merges_of(tree: Tree, least: int = 1) -> list[Merge]:
    """The merges at finite height whose two children both have at least ``least`` leaves. Linear in N.

    There are at most ``N / least`` of them: so a picture of any set has a bounded number of parts.
    """
    n, merges, heights = tree.n_leaves, tree.merges.tolist(), tree.heights.tolist()
    place = np.empty(n, dtype=np.int64)
    place[tree.leaf_order] = np.arange(n)
    begin = [*place.tolist(), *[0] * (n - 1)]
    end = [*(place + 1).tolist(), *[0] * (n - 1)]
    out = []
    for j, (a, b) in enumerate(merges):
        if begin[a] > begin[b]:
            a, b = b, a
        begin[n + j], end[n + j] = begin[a], end[b]
        if heights[j] < np.inf and min(end[a] - begin[a], end[b] - begin[b]) >= least:
            out.append(Merge(heights[j], (begin[a], end[a]), (begin[b], end[b])))
    return out
