"""More images of prompts that a plan has: variations, which fork late from the path of the image that they vary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import Tree


def check_depth(depth: Any) -> float:
    """``ValueError`` or ``TypeError`` unless ``depth`` is a number inside (0, 1)."""
    if isinstance(depth, bool) or not isinstance(depth, (int, float, np.integer, np.floating)):
        raise TypeError(f"depth has to be a number, not {depth!r}")
    if not 0.0 < depth < 1.0:
        raise ValueError(f"depth is {depth}: it has to be above 0 (all steps anew) and below 1 (the same image)")
    return float(depth)


def fork_step(phi: NDArray[np.float64], depth: float) -> int:
    """The first step at which a variation of this depth is alone, where clusters can split.

    Raises
    ------
    ValueError
        If the plan shares no step, so that nothing can fork.
    """
    falls = np.flatnonzero(np.diff(phi) < 0) + 1
    if not len(falls):
        raise ValueError(
            "the plan shares no step (tau is 0), and variations share most: compile one with a tau above 0"
        )
    return int(falls[np.argmin(np.abs(falls - depth * len(phi)))])


def varied(tree: Tree, phi: NDArray[np.float64], of: Sequence[int], step: int) -> Tree:
    """``tree`` with a new leaf for each prompt ``of``, which leaves its cluster at ``step``; clusters stay as they are.

    The new leaf joins the cluster in which its prompt is at the step before.
    """
    n, merges = tree.n_leaves, tree.merges
    height = np.concatenate([np.zeros(n), tree.heights])
    parent = np.full(2 * n - 1, -1, dtype=np.int64)
    parent[merges] = np.arange(n, 2 * n - 1)[:, None]
    joins: dict[int, list[int]] = {}
    for new, prompt in enumerate(of, start=n):
        node = int(prompt)
        while parent[node] >= 0 and height[parent[node]] < phi[step - 1]:
            node = int(parent[node])
        joins.setdefault(node, []).append(new)
    pairs: list[tuple[int, int]] = []
    scores: list[float] = []

    def merge(a: int, b: int, score: float) -> int:
        pairs.append((a, b))
        scores.append(score)
        return n + len(of) + len(pairs) - 1

    def grown(node: int, named: int) -> int:
        """The name of an old node, after what joins it."""
        for leaf in joins.get(node, ()):
            named = merge(named, leaf, max(float(height[node]), float(phi[step])))
        return named

    names = [grown(leaf, leaf) for leaf in range(n)]
    for node, ((a, b), score) in enumerate(zip(merges.tolist(), tree.scores.tolist(), strict=True), start=n):
        names.append(grown(node, merge(names[a], names[b], score)))
    return Tree.from_merges(np.array(pairs, dtype=np.int64), np.array(scores), tree.linkage, exact=tree.exact)
