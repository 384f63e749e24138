"""Parts of a plan as people name them: prompts by number, and clusters by their lowest prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..work.text import shortened
from .plan import Plan


class Cluster(NamedTuple):
    """A cluster of a plan at one step, and the prompt in the middle of it."""

    step: int
    representative: int
    """Its lowest prompt: with the step, its name."""
    prompts: NDArray[np.int64]
    """Those that the plan keeps."""
    medoid: int
    """Of these, the one nearest to the mean of their vectors; the lowest where vectors are not known."""

    @property
    def name(self) -> str:
        """As :func:`selected` takes it."""
        return f"cluster:{self.representative}@{self.step}"


def clusters_at(plan: Plan, step: int) -> list[Cluster]:
    """The clusters of a step, by their lowest prompt.

    Raises
    ------
    IndexError
        If there is no such step.
    """
    active = plan.active(step)
    vectors = plan.vectors
    order = np.argsort(active, kind="stable")
    order = order[active[order] >= 0]
    groups = np.split(order, np.flatnonzero(np.diff(active[order])) + 1)
    representative = plan.segments["representative"]
    found = []
    for prompts in groups:
        medoid = int(prompts[0])
        if vectors is not None and len(prompts) > 2:
            rows = vectors.rows(prompts)
            if plan.metric == "cosine":
                rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
            medoid = int(prompts[np.argmin(np.linalg.norm(rows - rows.mean(axis=0), axis=1))])
        found.append(Cluster(step, int(representative[active[prompts[0]]]), prompts, medoid))
    return sorted(found, key=lambda cluster: cluster.representative)


def step_with(plan: Plan, clusters: int) -> int:
    """The last step that has at most so many clusters; 0 if the first has more already.

    Raises
    ------
    ValueError
        For a number below 1.
    """
    if clusters < 1:
        raise ValueError(f"{clusters} clusters: there has to be at least one")
    few = np.flatnonzero(plan.counts() <= clusters)
    return int(few[-1]) if len(few) else 0


def selected(plan: Plan, names: Sequence[str]) -> NDArray[np.int64]:
    """The prompts that are named, ascending, of those that the plan keeps.

    Each name is a number (``17``), a range (``10-20``, both included), ``cluster:17``, the cluster of the first step
    whose lowest prompt is 17, or ``cluster:17@9``, that of step 9; several may be joined by commas.

    Raises
    ------
    ValueError
        For anything else, and for what the plan does not have.
    """
    chosen = np.zeros(plan.n_prompts, dtype=bool)
    for name in (part.strip() for text in names for part in text.split(",")):
        chosen[_prompts(plan, name)] = True
    kept = plan.kept[chosen[plan.kept]]
    if not len(kept):
        raise ValueError(f"none of the prompts {shortened(', '.join(names))} is in this list")
    return kept


def _prompts(plan: Plan, name: str) -> NDArray[np.int64]:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", name)
    if found is not None:
        first, last = int(found[1]), int(found[2] or found[1])
        if first > last or last >= plan.n_prompts:
            raise ValueError(f"{name}: prompts are numbered 0 to {plan.n_prompts - 1}, a range is FIRST-LAST")
        return np.arange(first, last + 1)
    found = re.fullmatch(r"cluster:(\d+)(?:@(\d+))?", name)
    if found is None:
        raise ValueError(f"{name!r}: write the number of a prompt (17), a range (10-20), or cluster:17 or cluster:17@9")
    lowest, step = int(found[1]), int(found[2] or 0)
    if step >= plan.n_steps:
        raise ValueError(f"{name}: there is no step {step}; the last one is {plan.n_steps - 1}")
    segments = plan.segments
    at = (segments["first_step"] <= step) & (step < segments["end_step"]) & (segments["representative"] == lowest)
    rows = np.flatnonzero(at)
    if not len(rows):
        raise ValueError(f"{name}: no cluster of step {step} has {lowest} as its lowest prompt; --preview names them")
    return plan.tree.leaf_order[segments["leaf_begin"][rows[0]] : segments["leaf_end"][rows[0]]]
