"""Which images are resampled together: those of one prompt, and those that began from one trunk. NumPy only.

Prompts of one root cluster share their first steps. One unlucky trunk spoils all of their images at once, so these
images are no more independent than several images of one prompt. A bootstrap of single prompts would be too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ClusterKind = Literal["prompts", "root clusters", "prompts and root clusters"]

FEW = 8
"""Intervals from fewer clusters than this are marked: they are too narrow."""


@dataclass(frozen=True)
class Clusters:
    """Groups of images that are not independent of each other."""

    groupings: tuple[NDArray[np.str_], ...]
    """Each (n,), the label of every image. With one grouping, images of different groups are independent. With several
    (crossed groupings), images are independent if they have different labels in all of them."""
    by: ClusterKind
    """What the groups are."""

    @cached_property
    def count(self) -> int:
        """The number of groups; of crossed groupings the smallest."""
        return min((len(np.unique(labels)) for labels in self.groupings), default=0)

    @cached_property
    def effective(self) -> float:
        """The number of groups of equal size that show as much: (sum of sizes)² / sum of squared sizes.

        Of crossed groupings the smallest. A few large groups among many small ones decide an interval alone; see
        Carter, Schnepel & Steigerwald, Rev. Econ. Stat. 99 (2017), whose effective number this is for equal images.
        """
        return min((_effective(labels) for labels in self.groupings), default=0.0)

    @property
    def few(self) -> bool:
        """Whether an interval rests on so few clusters that it is too narrow."""
        return self.effective < FEW

    @property
    def singles(self) -> bool:
        """Whether all images are independent of each other."""
        return all(len(np.unique(labels)) == len(labels) for labels in self.groupings)

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Clusters:
        """The clusters of some of the images, by a mask (n,) or by positions."""
        return Clusters(tuple(labels[chosen] for labels in self.groupings), self.by)


def clusters_of(prompts: Sequence[object], *roots: Sequence[object] | NDArray[np.int64] | None) -> Clusters:
    """Group images by prompt and by root cluster.

    Parameters
    ----------
    prompts
        n labels: images of one prompt are in one cluster.
    roots
        One sequence of n labels for each run that the values come from (both runs, for a difference): the segment that
        is active at step 0. None for a run of which nothing is known.

    Returns
    -------
    Clusters
        The connected components of "same prompt" and "same root cluster", whose images are independent of each other's.
        If they hang together so much that fewer than ``FEW`` remain (by :attr:`Clusters.effective`), although no single
        grouping is as coarse, the groupings themselves, crossed: with several seeds of each prompt, for example, root
        clusters join prompts and prompts join root clusters until one component holds everything.
    """
    groupings = [_labels(prompts), *(_labels(labels) for labels in roots if labels is not None)]
    if any(len(labels) != len(groupings[0]) for labels in groupings):
        raise ValueError(f"labels of {[len(labels) for labels in groupings]} images: their numbers have to be equal")
    component = connected(groupings)
    if component.max(initial=-1) + 1 == len(np.unique(groupings[0])):
        return Clusters((groupings[0],), "prompts")
    # Named after the first of their prompts, so that the order of the images does not matter.
    order = np.argsort(groupings[0], kind="stable")
    _, first = np.unique(component[order], return_index=True)
    whole = Clusters((groupings[0][order][first][component],), "root clusters")
    crossed = _coarsest(groupings)
    if len(crossed) == 1 or not whole.few:
        return whole
    return Clusters(tuple(crossed), "prompts and root clusters")


def connected(groupings: Sequence[NDArray[np.str_]]) -> NDArray[np.int64]:
    """(n,) number of each image's connected component, where images with a common label in any grouping are joined.

    Union-find with path halving over the labels.
    """
    codes = [np.unique(labels, return_inverse=True)[1].astype(np.int64) for labels in groupings]
    offsets = np.cumsum([0, *(int(code.max(initial=-1)) + 1 for code in codes)])
    parent = list(range(int(offsets[-1])))

    def root(label: int) -> int:
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    for code, offset in zip(codes[1:], offsets[1:], strict=False):
        for first, other in set(zip(codes[0].tolist(), (code + offset).tolist(), strict=True)):
            parent[root(other)] = root(first)
    found = [root(label) for label in codes[0].tolist()]
    return np.unique(found, return_inverse=True)[1].astype(np.int64)


def _labels(values: Sequence[object] | NDArray[np.int64]) -> NDArray[np.str_]:
    return np.array([str(value) for value in values], dtype=np.str_)


def _effective(labels: NDArray[np.str_]) -> float:
    size = np.unique(labels, return_counts=True)[1].astype(np.float64)
    return float(size.sum() ** 2 / np.square(size).sum()) if len(size) else 0.0


def _coarsest(groupings: Sequence[NDArray[np.str_]]) -> list[NDArray[np.str_]]:
    """The groupings without those whose groups all lie within groups of another, and without repeats."""
    kept: list[NDArray[np.str_]] = []
    for i, labels in enumerate(groupings):
        others = [*kept, *groupings[i + 1 :]]
        if not any(_within(labels, other) for other in others):
            kept.append(labels)
    return kept


def _within(fine: NDArray[np.str_], coarse: NDArray[np.str_]) -> bool:
    """Whether all images of a group of ``fine`` are in one group of ``coarse``."""
    code = np.unique(fine, return_inverse=True)[1]
    both = np.unique(np.stack([code, np.unique(coarse, return_inverse=True)[1]]), axis=1)
    return both.shape[1] == int(code.max(initial=-1)) + 1
