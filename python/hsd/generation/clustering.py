"""What a model says about a plan compiled without it: who is alike by its own embeddings, and who is the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .._core import Plan as CorePlan
from ..conditioning.rows import Conditioning
from ..conditioning.twins import same_rows
from ..errors import Error
from ..models import Adapter, number_of_steps, variants_of
from ..planning.apart import roots_of, set_apart
from ..planning.compile import compile as compile_plan
from ..planning.encoders import EARLIER_NAME
from ..planning.plan import Plan
from ..planning.reuse import plan_in, same_arguments, with_columns
from ..planning.schedule import schedule_shape
from ..work.progress import StageReport


def clustered_by_model(
    plan: Plan,
    adapter: Adapter,
    *,
    folder: str | os.PathLike[str] | None = None,
    memory: int | None = None,
    check: Callable[[Plan], object] | None = None,
    report: StageReport | None = None,
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
    report
        Called with the stages of compiling, and their finished fractions.
    """
    if not plan.is_estimate:
        return plan
    begun = None if folder is None else _plan_in(folder)
    if begun is not None and begun.fingerprint == plan.fingerprint:
        return plan
    if begun is not None and _by_earlier_encoder(begun, plan):
        return _part(with_columns(begun.whole(), plan.request), plan)
    arguments = _arguments(plan)
    if begun is not None and _first_seed(begun) == _first_seed(plan) is not None:
        arguments["seeds"] = _first_seed(plan)  # a longer list goes on with it
    if check is not None:
        check(on_steps(plan, adapter))
    larger = begun if len(plan) == plan.n_prompts else None  # a part is numbered as its plan is
    found = compile_plan(
        model=adapter, conditioning_memory=memory, reuse=begun, extend=larger, progress=report, **arguments
    )
    return _part(found, plan)


def replaced(given: Plan, found: Plan) -> str:
    """A line that says that ``found`` runs instead of ``given``."""
    if found.is_estimate:
        return "an earlier version of HSD began this folder; its plan, by the built-in encoder, is continued"
    return (
        f"prompts are clustered by the embeddings of {found.request['encoder']}, not by those of the built-in "
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
    encoded = np.zeros(plan.n_prompts, dtype=bool)  # of prompts that came later, and are not made, some are not
    for field in conditioning.fields.values():
        encoded |= field.index >= 0
    covered = np.sort(np.concatenate(members))
    covered = covered[encoded[covered]]
    labels = np.arange(plan.n_prompts, dtype=np.int64)
    labels[covered] = covered[same_rows(conditioning, covered)]
    # A variation is meant to share what it shares, and differs by its noise.
    return set_apart(plan, labels, sorted(conditioning.failed), plan.variations)


def on_steps(plan: Plan, adapter: Adapter) -> Plan:
    """``plan``, with as many steps as the model's scheduler makes."""
    n_steps, steps = number_of_steps(variants_of(adapter, plan.settings), plan.request["steps"])
    if (n_steps, steps) == (plan.n_steps, plan.request["steps"]):
        return plan
    core = CorePlan.compile(plan.tree, plan.tau * schedule_shape("linear", n_steps))
    return _part(Plan(core, plan.prompts, plan.seeds, {**plan.request, "steps": steps}), plan)


def _part(whole: Plan, plan: Plan) -> Plan:
    """The part of ``whole`` that ``plan`` keeps."""
    return whole if len(plan) == plan.n_prompts else whole.prune(plan.kept)


def _by_earlier_encoder(begun: Plan, plan: Plan) -> bool:
    """Whether ``begun`` is what an earlier version of HSD, whose built-in encoder was another one, made of the prompts
    and arguments of ``plan``, and ran as it was.
    """
    ignored = ("encoder", "asked_tau", "asked_metric")
    return begun.request["encoder"] == EARLIER_NAME and same_arguments(
        begun, plan.request, plan.n_steps, plan.prompts, plan.seeds, ignored
    )


def _plan_in(folder: str | os.PathLike[str]) -> Plan | None:
    """The plan of an earlier run, with its vectors; None if there is none that can be read."""
    try:
        return plan_in(folder)
    except (OSError, Error):
        return None


def _arguments(plan: Plan) -> dict[str, Any]:
    """Arguments of :func:`hsd.compile` that ``plan`` was compiled with."""
    request = plan.request
    # A plan of an earlier version does not say what was left to the defaults.
    tau, metric = request.get("asked_tau", plan.tau), request.get("asked_metric", plan.metric)
    budget = request.get("budget")
    schedule = request.get("schedule", "linear")
    if schedule == "custom":  # a callable or values, of which the thresholds are left
        schedule = np.minimum(plan.phi / plan.tau, 1.0)
    repeats = request.get("images_per_prompt") or 1
    given = plan.prompts[::repeats]
    if [prompt for prompt in given for _ in range(repeats)] != plan.prompts:
        repeats, given = 1, plan.prompts
    own, which = plan.settings, plan.setting[::repeats]
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
        "settings": None if request.get("settings") is None else [own[i] for i in which],
        "columns": {name: values[::repeats] for name, values in plan.columns.items()},
    }


def _first_seed(plan: Plan) -> int | None:
    """The one integer that a plan's seeds follow from, if they do."""
    first = int(plan.seeds[0])
    return first if np.array_equal(plan.seeds, first + np.arange(plan.n_prompts)) else None
