"""Properties of a tree of prompts, or of its plan, that the figures show."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from .._core import Tree
from ..planning.plan import Plan


def tau_above_root(tree: Tree, factor: float = 1.05) -> float:
    """``factor`` times the root's height, to 3 digits: a tau above the root lets all prompts share the first step."""
    return float(f"{factor * float(tree.heights.max(initial=0.0)):.3g}") or 1.0


def nearly_equal(group: NDArray[np.int64]) -> NDArray[np.float32]:
    """(N, D) rows of groups (N,): cosine distances up to 2e-4 within a group and about 1 between two.

    Not 0 within a group: equal rows are the same prompt to :func:`hsd.compile`, and share nothing.
    """
    angle = 2 * np.pi * np.arange(len(group)) / len(group)
    apart = 0.01 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([np.eye(int(group.max()) + 1)[group], apart], axis=1).astype(np.float32)


def joins_one(tree: Tree) -> NDArray[np.bool_]:
    """(N - 1,) whether each merge joins a single prompt to all prompts merged before. The tree is a chain if all do."""
    n, merges, j = tree.n_leaves, np.sort(tree.merges, axis=1), np.arange(tree.n_leaves - 1)
    return (merges[:, 0] < n) & ((merges[:, 1] == n + j - 1) | (j == 0))  # merge j creates node n + j


def in_order(tree: Tree) -> bool:
    """Whether a chain merges the last two prompts first, and then the others in order up to the first prompt."""
    n = tree.n_leaves
    return bool((np.sort(tree.merges, axis=1)[:, 0] == np.arange(n - 2, -1, -1)).all())


def lowest_clusters(tree: Tree, size: int) -> list[list[int]]:
    """The leaves of the nodes that have at least ``size`` leaves, but whose children have fewer; by height."""
    n = tree.n_leaves
    small = {i: [i] for i in range(n)}  # the leaves of the nodes that have fewer than ``size``
    found: list[tuple[float, list[int]]] = []
    for j, ((a, b), height) in enumerate(zip(tree.merges.tolist(), tree.heights.tolist(), strict=True)):
        children = [small.pop(child, None) for child in (a, b)]
        if None in children or not np.isfinite(height):  # equal prompts are merged at an infinite height
            continue
        leaves = sorted(itertools.chain.from_iterable(c for c in children if c is not None))
        if len(leaves) < size:
            small[n + j] = leaves
        else:
            found.append((height, leaves))
    return [leaves for _, leaves in sorted(found)]


def splits_at(plan: Plan, height: float) -> int:
    """The first step at which a node of this height is split."""
    return int(np.argmax(plan.phi <= height))
