"""Embeddings to plan with the defaults, for callers that have already encoded and checked their prompts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .clustering import Limits, replica_tree, single_prompts
from .plan import Plan
from .schedule import schedule_shape
from .twins import replicas, same_texts, same_vectors
from .vectors import Vectors


def plan_of(
    vectors: NDArray[np.float32],
    prompts: list[str],
    seeds: NDArray[np.int64],
    tau: float,
    n_steps: int,
    rounding: float | None = None,
) -> Plan:
    """The plan of prompts that are encoded (N, D) and checked, with the defaults of :func:`compile`.

    ``rounding`` is up to which share of their length vectors count as equal, see ``planning/twins.py``.
    """
    if tau > 0:
        rows = np.arange(len(prompts), dtype=np.int64)
        _core.check_embeddings(vectors)
        labels = [same_texts(prompts), same_vectors(Vectors(vectors), cosine=True, rounding=rounding)]
        replica = replicas(labels, np.zeros(len(prompts), dtype=np.int64))
        tree = replica_tree(Vectors(vectors), rows, replica, "ward", Limits(), None)
    else:
        tree = single_prompts(len(prompts))
    core = _core.Plan.compile(tree, tau * schedule_shape("linear", n_steps))
    return Plan(core, prompts, seeds, {"tau": tau, "steps": n_steps, "noise": "independent"})
