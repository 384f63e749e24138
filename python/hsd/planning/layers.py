"""Layers: which prompts of a plan were there when, for a plan that was extended.

Prompts that are added to a plan share steps with clusters that exist. What these clusters are conditioned on must not
change by that: their images may be made already, and others come from the same steps. So a cluster is conditioned on
the mean of those of its prompts that are of the layer of its lowest one, or of an earlier one. For the prompts that
came later the cluster is borrowed.

Layers need no table of their own. Prompts are numbered in the order in which they came, so a layer is a range of
indices, and the lowest prompt of a cluster, which draws its noise, is of the earliest layer in it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


class Layers:
    """The layers of the segments of a plan.

    Parameters
    ----------
    begins
        How many prompts there were before each extension, ascending. None: all prompts came at once.
    n_prompts
        N.
    leaf_order
        (N,)
    segments
        Structured array with ``leaf_begin``, ``leaf_end`` and ``representative``.
    """

    def __init__(
        self, begins: tuple[int, ...], n_prompts: int, leaf_order: NDArray[np.int64], segments: NDArray[np.void]
    ) -> None:
        self._ends = np.array([*begins, n_prompts], dtype=np.int64)
        self._leaf_order = leaf_order
        self._begin, self._end = segments["leaf_begin"].astype(np.int64), segments["leaf_end"].astype(np.int64)
        self._layer = np.searchsorted(self._ends, segments["representative"], side="right")

    @property
    def several(self) -> bool:
        """Whether the plan was extended."""
        return len(self._ends) > 1

    def members(self, segment: int) -> NDArray[np.int64]:
        """The prompts on whose mean a segment is conditioned, in leaf order."""
        prompts = self._leaf_order[self._begin[segment] : self._end[segment]]
        return prompts[prompts < self._ends[self._layer[segment]]] if self.several else prompts

    def counts(self) -> NDArray[np.int64]:
        """(segments,) how many prompts these are."""
        out = self._end - self._begin
        for chosen, member in self._each():
            before = np.concatenate([[0], np.cumsum(member)])
            out[chosen] = before[self._end[chosen]] - before[self._begin[chosen]]
        return out

    def any_member(self) -> NDArray[np.int64]:
        """The prompts that any segment is conditioned on, ascending."""
        found = np.zeros(len(self._leaf_order), dtype=bool)
        for chosen, member in self._each():
            found |= places_within(self._begin[chosen], self._end[chosen], len(member)) & member
        return np.sort(self._leaf_order[found])

    def borrowed(self, kept: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(segments,) whether any of the prompts ``kept`` came after the layer of the segment's lowest prompt."""
        out = np.zeros(len(self._begin), dtype=bool)
        if not self.several:
            return out
        is_kept = np.zeros(len(self._leaf_order), dtype=bool)
        is_kept[kept] = True
        for chosen, member in self._each():
            before = np.concatenate([[0], np.cumsum(is_kept[self._leaf_order] & ~member)])
            out[chosen] = before[self._end[chosen]] > before[self._begin[chosen]]
        return out

    def longest(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """(segments, F) the largest of ``lengths`` (N, F) over the members of each segment."""
        out = np.zeros((len(self._begin), lengths.shape[1]), dtype=np.int64)
        ends = np.stack([self._begin, self._end], axis=1)
        for chosen, member in self._each():
            of_leaves = np.where(member[:, None], lengths[self._leaf_order], 0)
            padded = np.vstack([of_leaves, np.zeros_like(lengths[:1])])  # a range may end behind the last leaf
            out[chosen] = np.maximum.reduceat(padded, ends[chosen].reshape(-1))[::2]
        return out

    def origins(self, parent: NDArray[np.integer], first_step: NDArray[np.integer]) -> NDArray[np.int64]:
        """(segments,) the step from which on each path has been conditioned on the mean that it has in this segment.

        Where prompts that came later fork from a cluster, its segment is cut in two, of one mean: the second continues
        the first.
        """
        out = np.asarray(first_step, dtype=np.int64).copy()
        if self.several:
            counts = self.counts()
            same = (parent >= 0) & (self._layer[parent] == self._layer) & (counts[parent] == counts)
            for segment in np.flatnonzero(same).tolist():  # parents come first
                out[segment] = out[parent[segment]]
        return out

    def _each(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """The segments of each layer that has any, and (N,) which leaves are members of such segments."""
        for layer in np.unique(self._layer).tolist():
            yield np.flatnonzero(self._layer == layer), self._leaf_order < self._ends[layer]


def places_within(begin: NDArray[np.integer], end: NDArray[np.integer], n: int) -> NDArray[np.bool_]:
    """(n,) which places of the leaf order are in any of the ranges from ``begin`` to ``end``, exclusive."""
    edges = np.zeros(n + 1, dtype=np.int64)
    np.add.at(edges, begin, 1)
    np.add.at(edges, end, -1)
    return np.asarray(np.cumsum(edges[:-1]) > 0)
