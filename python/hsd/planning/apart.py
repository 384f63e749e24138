"""A plan in which some images that shared steps no longer do: what `compile` would have done, had it known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .._core import Plan as CorePlan
from .._core import Tree
from .plan import Plan
from .prompts import occurrences


def roots_of(plan: Plan) -> list[NDArray[np.int64]]:
    """The prompts of each cluster of the first step, ascending, the ones that the plan does not keep included."""
    segments = plan.segments
    order = plan.tree.leaf_order
    first = segments[segments["parent"] < 0]
    return [np.sort(order[begin:end]) for begin, end in zip(first["leaf_begin"], first["leaf_end"], strict=True)]


def set_apart(
    plan: Plan, labels: NDArray[np.int64], alone: Sequence[int] = (), together: Mapping[int, int] | None = None
) -> Plan:
    """``plan``, where images with an equal label share no step; itself, if none do.

    Of the images with a label in one cluster of the first step, the r-th is in the cluster's r-th part. At each step,
    every cluster is replaced by its parts. So a cluster without such images stays as it is, and a part of a plan (for
    resuming, or a shard) becomes that part of the whole plan, set apart: only the full cluster decides.

    Parameters
    ----------
    labels
        (N,) equal for images that have to be apart. Only those of ``plan.covered()`` count.
    alone
        Images that share no step with any other. Their labels do not count.
    together
        Images that are where another one is, by their index. Their labels do not count.
    """
    part = np.zeros(plan.n_prompts, dtype=np.int64)
    is_alone = np.zeros(plan.n_prompts, dtype=bool)
    is_alone[list(alone)] = True
    follow = together or {}
    follows = np.zeros(plan.n_prompts, dtype=bool)
    follows[list(follow)] = True
    for members in roots_of(plan):
        members = members[~follows[members]]
        single = is_alone[members]
        rest = occurrences(labels[members[~single]].tolist())
        part[members[~single]] = rest
        first = max(rest, default=-1) + 1
        part[members[single]] = first + np.arange(np.count_nonzero(single))
    for image, other in follow.items():
        part[image] = part[other]
    if not part.any():
        return plan
    core = CorePlan.compile(split_tree(plan.tree, part), plan.phi)
    whole = Plan(core, plan.prompts, plan.seeds, plan.request)
    return whole if len(plan) == plan.n_prompts else whole.prune(plan.kept)


def split_tree(tree: Tree, part: NDArray[np.int64]) -> Tree:
    """``tree`` taken apart: at every height, its clusters are those of ``tree``, each divided by the ``part`` (N,) of
    its leaves. The parts are joined at infinite height.
    """
    n = tree.n_leaves
    merges: list[tuple[int, int]] = []
    scores: list[float] = []
    # For each node of the old tree: the node of the new one that holds its leaves of each part.
    nodes: list[dict[int, int]] = [{which: leaf} for leaf, which in enumerate(part.tolist())]

    def merge(a: int, b: int, score: float) -> int:
        merges.append((a, b))
        scores.append(score)
        return n + len(merges) - 1

    for (a, b), height in zip(tree.merges.tolist(), tree.heights.tolist(), strict=True):
        large, small = sorted((nodes[a], nodes[b]), key=len, reverse=True)
        for which, node in small.items():
            other = large.get(which)
            large[which] = node if other is None else merge(other, node, height)
        nodes.append(large)
    trunk, *others = (node for _, node in sorted(nodes[-1].items()))
    for node in others:
        trunk = merge(trunk, node, np.inf)
    return Tree.from_merges(
        np.array(merges, dtype=np.int64).reshape(-1, 2), np.array(scores), tree.linkage, exact=tree.exact
    )
