"""An earlier plan instead of a new one, where it was compiled from the same prompts and arguments."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Error
from ..work.files import IDENTITY, METADATA, PARTS, RUN
from ..work.objects import Objects
from ..work.paths import user_path
from ..work.urls import below, is_url
from .goal import goal_of
from .plan import PLAN_COPY, PLAN_FILE, Plan
from .vectors import VECTORS_FILE, read_vectors

_ANY = frozenset(("hsd_version", "columns"))
"""What a plan records that does not decide its images."""


def earlier_plan(
    given: str | os.PathLike[str] | Plan,
    request: dict[str, Any],
    n_steps: int,
    prompts: list[str],
    seeds: NDArray[np.int64],
    exact: bool | None,
) -> Plan | None:
    """The plan, or that in the file or folder ``given``, if it was compiled from the same prompts and arguments.

    It has the columns of ``request``.

    Raises
    ------
    Error
        If ``given`` is a file that is not a valid plan, or cannot be read. In the folder of a run it is passed over.
    """
    plan = plan_in(given)
    if plan is None or not same_arguments(plan, request, n_steps, prompts, seeds):
        return None
    if exact is not None and plan.tree.exact != exact:
        return None
    return with_columns(plan.whole(), request)


def plan_in(given: str | os.PathLike[str] | Plan) -> Plan | None:
    """The plan, or that in the file or folder ``given``, with the vectors that the folder keeps; None if it has none.

    Raises
    ------
    Error
        If ``given`` is a file that is not a valid plan, or cannot be read. In the folder of a run it is passed over.
    """
    if isinstance(given, Plan):
        return given
    if is_url(given):
        return _load_url(str(given))
    plan, folder = _load(given), user_path(given)
    if plan is None or not folder.is_dir():
        return plan
    whole = plan.whole()
    return whole.with_vectors(read_vectors(folder / VECTORS_FILE, whole.fingerprint, whole.n_prompts))


def has_images(out: str | os.PathLike[str]) -> bool:
    """Whether images were made in a folder."""
    if is_url(out):
        return Objects(os.fspath(out)).has(METADATA)
    return any((user_path(out) / name).exists() for name in (METADATA, PARTS))


def begun_in(out: str | os.PathLike[str] | None) -> Plan | None:
    """The plan of a folder in which there are images; None without a folder, and before there are any, when another
    plan may have it.
    """
    return plan_in(out) if out is not None and has_images(out) else None


def same_arguments(
    plan: Plan,
    request: dict[str, Any],
    n_steps: int,
    prompts: list[str],
    seeds: NDArray[np.int64],
    ignored: Collection[str] = (),
) -> bool:
    """Whether ``plan`` was compiled from these prompts and arguments, whatever those say that are ``ignored``."""
    return (
        same_request(plan, request, ignored)
        and plan.n_steps == n_steps  # another scheduler may make more evaluations for the same ``steps``
        and plan.prompts == prompts
        and np.array_equal(plan.seeds, seeds)
    )


def same_request(plan: Plan, request: dict[str, Any], ignored: Collection[str] = ()) -> bool:
    """Whether ``plan`` was compiled with these arguments, whatever those say that are ``ignored``."""
    # Any version of HSD will do. With a goal, tau is a result and not an argument: and another speed may be known now.
    passed = {*_ANY, *ignored} if goal_of(request) is None else {*_ANY, *ignored, "tau"}
    found = {"metric": "cosine", **plan.request}  # the only one there was when plans did not name it
    return all(found.get(name) == request.get(name) for name in {*request, "settings"} - passed)


def with_columns(plan: Plan, request: dict[str, Any]) -> Plan:
    """``plan``, a whole one, with the columns of ``request``, which decide nothing."""
    own = {name: value for name, value in plan.request.items() if name != "columns"}
    if request.get("columns"):
        own["columns"] = request["columns"]
    return Plan(plan._core, plan.prompts, plan.seeds, own).with_vectors(plan.vectors)


def _load(path: str | os.PathLike[str]) -> Plan | None:
    path = user_path(path)
    # The folder of an earlier run, whose other files say whether a plan is its own.
    of_run = any((path / name).is_file() for name in (RUN, IDENTITY))
    if not path.is_dir():
        return _plan_in(path, of_run=of_run) if path.is_file() else None
    for name in (PLAN_FILE, PLAN_COPY):  # a plan that has grown cannot be compiled again
        if (path / name).is_file() and (plan := _plan_in(path / name, of_run=of_run)) is not None:
            return plan
    return None


def _load_url(url: str) -> Plan | None:
    """As :func:`_load`. A URL that does not end as the files of plans do is that of a folder."""
    if url.endswith(os.path.splitext(PLAN_FILE)[1]):
        return _plan_in(url, of_run=False)
    folder = Objects(url)
    if not folder.has(PLAN_FILE):
        return None
    return _plan_in(below(url, PLAN_FILE), of_run=folder.has(IDENTITY) or folder.has(RUN))


def _plan_in(path: str | Path, *, of_run: bool) -> Plan | None:
    """The plan of a file; None for one that cannot be read, in the folder of a run."""
    try:
        return Plan.load(path)
    except FileNotFoundError:
        return None
    except (Error, OSError) as error:
        if of_run:
            return None
        if isinstance(error, Error):
            raise
        raise Error(f"cannot read {path}: {error.strerror or error}; delete it to compile its plan again") from None
