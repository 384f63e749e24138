"""Units: the parts of a plan that workers run at once, one after the other. What sizes they have is in the core."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Sequence

from ..errors import Notice
from ..planning.plan import Plan, check_is_plan

LEAST = 0.7
"""Workers that are used less than this, as a fraction of their time, are too many: a notice says so."""

ENOUGH = 0.9
"""How well the number of workers that the notice names is used."""


def units(plan: Plan, workers: int, *, per_worker: int | None = None) -> list[Plan]:
    """Parts of a plan for so many workers that each take the next one when they are done, costliest first.

    Units are cut where neighbours share least. Of each worker's share the first is about a half, the next a quarter,
    and so on, and the last two are equal. So what starts last is small: a slow worker, or a unit that takes longer than
    its node-steps say, does not keep the others waiting for long. How many there are follows from the work: a
    worker has at most eight, and the smallest have about four images' worth of node-steps or more, because calls of
    smaller ones are mostly empty. From six images' worth a worker on there are two, unless two would compute more than
    a tenth again. Simulated with measured call times (``benches/shards.py``), 8 workers lose 6 to 14 % of the time on
    sets of 500 to 2,000 prompts, and 7 to 23 % if one has half the speed; with two equal units each they lose 10 to 13
    % and 27 to 35 %, with one 14 to 18 % and 91 to 103 %.

    A whole plan that is too small for so many workers is said, with a number that would be sensible. A part of a plan
    is not: it may be what a run has left.

    Parameters
    ----------
    plan
        The whole plan, or a part of it.
    workers
        Number of workers.
    per_worker
        Units for each worker instead: 1 is one shard each, 2 are two equal ones, more halve.

    Returns
    -------
    list of Plan
        ``unit.kept`` are the indices of a unit's images. Each image is in one unit.

    Raises
    ------
    ValueError
        For numbers below 1.
    """
    check_is_plan(plan)
    parts = plan.units(workers, per_worker)
    if len(plan) == plan.n_prompts and (used := in_use(plan, parts, workers)) < LEAST:
        warnings.warn(_too_many(plan, parts, workers, used, per_worker), Notice, stacklevel=2)
    return parts


def recomputed(plan: Plan, parts: Sequence[Plan]) -> float:
    """The share of a plan's node-steps that its parts compute again, because they share steps: 0.01 is 1 %."""
    return sum(part.node_steps for part in parts) / plan.node_steps - 1.0


def in_use(plan: Plan, parts: Sequence[Plan], workers: int) -> float:
    """The share of the workers' time that goes into what the whole plan needs, 1 at best. The rest is what is computed
    again, and waiting for the last one. Workers are equally fast here, and take the parts in their order.
    """
    ends = [0] * workers
    for part in parts:
        heapq.heapreplace(ends, ends[0] + part.node_steps)
    return plan.node_steps / (workers * max(ends))


def _too_many(plan: Plan, parts: Sequence[Plan], workers: int, used: float, per_worker: int | None) -> str:
    """The text of the notice."""
    fewer = _sensible(plan, workers, per_worker)
    return (
        f"{len(plan):,} images are too few for {workers:,} workers, which are {used * workers:.1f} times as fast as "
        f"one: {recomputed(plan, parts):.1%} of the node-steps are computed again, and some workers wait. "
        f"{fewer:,} {'worker' if fewer == 1 else 'workers'} would be used to {ENOUGH:.0%} or more"
    )


def _sensible(plan: Plan, workers: int, per_worker: int | None) -> int:
    """A number of workers below ``workers`` that are used enough: the first on the way down in steps of a tenth."""
    fewer = min(workers - 1, len(plan))
    while fewer > 1 and in_use(plan, plan.units(fewer, per_worker), fewer) < ENOUGH:
        fewer -= max(1, fewer // 10)
    return fewer
