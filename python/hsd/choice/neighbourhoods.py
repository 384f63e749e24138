"""The prompts that settings are compared on: whole subtrees of the tree of all prompts.

Prompts share steps with their neighbours. A random sample of single prompts would have hardly any, so that it would
show nothing of what sharing does in the whole set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .._core import Tree

SMALLEST, LARGEST = 8, 32
"""Largest size of a neighbourhood: it depends on the sample, within these limits."""

WANTED = 8
"""A sample should have at least this number of neighbourhoods, since an interval needs several."""


def neighbourhoods(tree: Tree, largest: int) -> list[NDArray[np.int64]]:
    """The largest subtrees with at most ``largest`` prompts: they are disjoint and cover all prompts.

    A prompt without near neighbours is one alone. No neighbourhood spans a merge of infinite height: such prompts never
    share a step.

    Returns
    -------
    list of (m,) int64
        Indices of the prompts, ascending; in the order of the leaves of the tree.
    """
    n, merges, order = tree.n_leaves, tree.merges, tree.leaf_order
    size = np.concatenate([np.ones(n, np.int64), tree.sizes])
    is_split = np.concatenate([np.zeros(n, bool), (tree.sizes > largest) | ~np.isfinite(tree.heights)])
    lowest = np.arange(2 * n - 1)
    for merge, children in enumerate(merges):
        lowest[n + merge] = lowest[children].min()
    found, stack = [], [(2 * n - 2, 0)]  # a node, and where its leaves begin in the leaf order
    while stack:
        node, begin = stack.pop()
        if not is_split[node]:
            found.append(np.sort(order[begin : begin + size[node]]))
            continue
        # A cluster begins with its lowest prompt, so the child that has it comes first.
        first, second = sorted(merges[node - n].tolist(), key=lambda child: int(lowest[child]))
        stack += [(second, begin + int(size[first])), (first, begin)]
    return found


def largest_size(sample: int) -> int:
    """The largest size of a neighbourhood, with which a sample of this number of prompts has several."""
    return int(np.clip(sample // WANTED, SMALLEST, LARGEST))


def draw(among: list[NDArray[np.int64]], sample: int, seed: int) -> list[NDArray[np.int64]]:
    """Whole neighbourhoods in random order, until the next one would exceed ``sample`` prompts; at least one."""
    order = np.random.default_rng(seed).permutation(len(among))
    drawn: list[NDArray[np.int64]] = []
    total = 0
    for i in order:
        total += len(among[i])
        if drawn and total > sample:
            break
        drawn.append(among[i])
    return drawn
