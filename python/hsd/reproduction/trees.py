"""What the figures ask a tree of prompts, or its plan."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from .._core import Tree
from ..planning.plan import Plan


def above(tree: Tree, factor: float = 1.05) -> float:
    """A tau above the root, rounded. By default a little: then all prompts share the first step, and soon not all."""
    return float(f"{factor * float(tree.heights.max(initial=0.0)):.3g}") or 1.0


def joins_one(tree: Tree) -> NDArray[np.bool_]:
    """(N - 1,) whether each merge joins a single prompt to all that was merged before. All do: the tree is a chain."""
    n, merges, j = tree.n_leaves, np.sort(tree.merges, axis=1), np.arange(tree.n_leaves - 1)
    return (merges[:, 0] < n) & ((merges[:, 1] == n + j - 1) | (j == 0))  # merge j makes node n + j


def in_order(tree: Tree) -> bool:
    """Whether a chain begins with its last two prompts and takes one after the other up to the first."""
    n = tree.n_leaves
    return bool((np.sort(tree.merges, axis=1)[:, 0] == np.arange(n - 2, -1, -1)).all())


def lowest(tree: Tree, size: int) -> list[list[int]]:
    """The leaves of the nodes that have ``size`` leaves or more, and no such node below them; by height."""
    n = tree.n_leaves
    small = {i: [i] for i in range(n)}  # leaves of the nodes that have fewer
    found: list[tuple[float, list[int]]] = []
    for j, ((a, b), height) in enumerate(zip(tree.merges.tolist(), tree.heights.tolist(), strict=True)):
        children = [small.pop(child, None) for child in (a, b)]
        if None in children or not np.isfinite(height):  # repeats of a prompt are joined at infinity
            continue
        leaves = sorted(itertools.chain.from_iterable(c for c in children if c is not None))
        if len(leaves) < size:
            small[n + j] = leaves
        else:
            found.append((height, leaves))
    return [leaves for _, leaves in sorted(found)]


def splits_at(plan: Plan, height: float) -> int:
    """The first step at which a node of this height is no longer one cluster."""
    return int(np.argmax(plan.phi <= height))
