"""What a model says about a plan compiled without it: who is alike by its own embeddings, and who is the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .._core import Plan as CorePlan
from ..conditioning.rows import Conditioning
from ..conditioning.twins import same_rows
from ..errors import Error
from ..models import Adapter
from ..planning.apart import roots_of, set_apart
from ..planning.compile import compile as compile_plan
from ..planning.plan import PLAN_FILE, Plan
from ..planning.schedule import schedule_shape


def clustered_by_model(
    plan: Plan,
    adapter: Adapter,
    *,
    folder: str | os.PathLike[str] | None = None,
    memory: int | None = None,
    check: Callable[[Plan], object] | None = None,
) -> Plan:
    """The plan of the same arguments by the model's own embeddings, if ``plan`` was clustered by the built-in encoder.

    It is the plan that :func:`hsd.compile` gives with ``model=``, and the part of it that ``plan`` keeps. All prompts
    are encoded, whatever part it is, so that all parts belong to one plan.

    Parameters
    ----------
    folder
        That of the images. If an earlier run has left this plan there, nothing is encoded. If it began with ``plan``
        itself, as versions before this one did, ``plan`` is continued.
    memory
        Bytes of encoded prompts that are kept in host memory.
    check
        Called before anything is encoded, to find bad arguments of a run: with ``plan`` on the model's steps.
    """
    if not plan.is_estimate:
        return plan
    begun = None if folder is None else _plan_in(Path(folder))
    if begun is not None and begun.fingerprint == plan.fingerprint:
        return plan
    arguments = _arguments(plan)
    if check is not None:
        check(_on_steps(plan, adapter))
    found = compile_plan(
        model=adapter, conditioning_memory=memory, reuse=None if begun is None else folder, **arguments
    )
    return found if len(plan) == plan.n_prompts else found.prune(plan.kept)


def replaced(given: Plan, found: Plan) -> str:
    """A line that says that ``found`` runs instead of ``given``."""
    return (
        f"hsd: prompts are clustered by the embeddings of {found.request['encoder']}, not by those of the built-in "
        f"encoder: {found.savings:.1%} saved instead of {given.savings:.1%}"
    )


def without_twins(plan: Plan, conditioning: Conditioning) -> Plan:
    """``plan``, where images whose conditioning is equal share no step, because they would be one picture.

    A plan that was clustered by other embeddings than the model's may have found such prompts different. Prompts that
    could not be encoded share no step either, as in :func:`hsd.compile`: a later run may find one equal to another,
    whose image would have been made from its noise.
    """
    members = [root for root in roots_of(plan) if len(root) > 1] if plan.phi[0] > 0 else []
    if not members:
        return plan
    covered = np.sort(np.concatenate(members))
    labels = np.arange(plan.n_prompts, dtype=np.int64)
    labels[covered] = covered[same_rows(conditioning, covered)]
    return set_apart(plan, labels, sorted(conditioning.failed))


def _on_steps(plan: Plan, adapter: Adapter) -> Plan:
    """``plan``, with as many steps as the model's scheduler makes."""
    shape = schedule_shape("linear", adapter.sampler(plan.request["steps"]).n_steps)
    whole = Plan(CorePlan.compile(plan.tree, plan.tau * shape), plan.prompts, plan.seeds, plan.request)
    return whole if len(plan) == plan.n_prompts else whole.prune(plan.kept)


def _plan_in(folder: Path) -> Plan | None:
    """The plan of an earlier run; None if there is none that can be read."""
    try:
        return Plan.load(folder / PLAN_FILE)
    except (OSError, Error):
        return None


def _arguments(plan: Plan) -> dict[str, Any]:
    """Arguments of :func:`hsd.compile` that ``plan`` was compiled with."""
    request = plan.request
    # A plan of an earlier version does not say what was left to the defaults.
    tau, metric = request.get("asked_tau", plan.tau), request.get("asked_metric", plan.metric)
    if tau is not None and not isinstance(tau, (int, float)):
        raise Error(f"the plan says that tau was {tau!r}, which is no number: compile it again")
    budget = request.get("budget")
    schedule = request.get("schedule", "linear")
    if schedule == "custom":  # a callable or values, of which the thresholds are left
        schedule = np.minimum(plan.phi / plan.tau, 1.0)
    repeats = int(request.get("images_per_prompt", 1))
    given = plan.prompts[:: max(1, repeats)]
    if [prompt for prompt in given for _ in range(repeats)] != plan.prompts:
        repeats, given = 1, plan.prompts
    values, which = plan.settings, plan.setting[::repeats]
    return {
        "prompts": given,
        "tau": tau if budget is None else None,
        "budget": budget,
        "steps": request["steps"],
        "linkage": request.get("linkage", "ward"),
        "metric": metric,
        "schedule": schedule,
        "seeds": plan.seeds,
        "images_per_prompt": repeats,
        "noise": plan.noise,
        "catch_up": plan.catch_up,
        "settings": None if "settings" not in request else [values[i] for i in which],
    }
