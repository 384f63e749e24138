"""The tree of a run as data: which images shared which steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..generation.forks import FORKS, read_forks
from ..planning.plan import Plan
from .read import Source
from .urls import url_of


def tree_of(source: Source) -> dict[str, Any] | None:
    """The segments of the plan in its leaf order; None where no plan says who shared.

    The plan has to be that of the images: where their texts differ, nothing is told.
    """
    plan = source.plan
    if plan is None or source.mismatch is not None:
        return None
    segments = plan.segments
    fields = ("parent", "first_step", "end_step", "leaf_begin", "leaf_end")
    table = np.stack([segments[name] for name in fields], axis=1)  # (segments, 5)
    return {
        "steps": plan.n_steps,
        "order": plan.tree.leaf_order.tolist(),
        "segments": table.ravel().tolist(),
        "forks": _forks(source, plan),
    }


def _forks(source: Source, plan: Plan) -> dict[str, str]:
    """URLs of the pictures of forks, by the number of the segment."""
    if plan.extensions:  # the leaf order has changed, by which forks are known
        return {}
    segments = plan.segments
    keys = zip(
        segments["end_step"].tolist(), segments["leaf_begin"].tolist(), segments["leaf_end"].tolist(), strict=True
    )
    number = {key: i for i, key in enumerate(keys)}
    forks = (fork for fork in read_forks(source.path) if fork.key in number)
    return {str(number[fork.key]): url_of(f"{FORKS}/{fork.file_name}") for fork in forks}
