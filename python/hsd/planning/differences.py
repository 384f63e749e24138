"""What two plans differ in: short texts for the message that refuses to mix their images."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..work.text import shortened
from .goal import goal_of
from .plan import Plan

_MISSING: Any = object()


def plan_differences(before: Plan, now: Plan) -> list[str]:
    """What two plans differ in, the whole ones that they are parts of; empty if they are one plan.

    Returns
    -------
    list
        Texts such as ``tau: 1.0 before, 0.8 now`` or ``prompt 3: 'a cat' before, 'a dog' now (2 of 40 differ)``.
    """
    if before.fingerprint == now.fingerprint:
        return []
    found = _requests(before, now)
    added = before.n_prompts < now.n_prompts and set(before.prompts) <= set(now.prompts)
    if not (found and added):  # prompts may be added: the arguments alone are in the way
        found = _texts(before, now) + _seeds(before, now) + _prompt_settings(before, now) + found
    if before.n_steps != now.n_steps and not any(text.startswith("steps") for text in found):
        found.append(
            f"evaluations of the denoiser: {before.n_steps} before, {now.n_steps} now (by the scheduler, or strength)"
        )
    if not found and before.tau != now.tau:  # with a goal, tau is a result
        found.append(f"tau: {before.tau:.6g} before, {now.tau:.6g} now")
    return found or [
        "the same prompts and arguments, but another tree: the embeddings differ, or the rounding of their distances"
    ]


def _requests(before: Plan, now: Plan) -> list[str]:
    """Arguments of :func:`hsd.compile`. One that an earlier version did not record has the value it had then."""
    found = []
    for name, default in _ARGUMENTS.items():
        old, new = before.request.get(name, default), now.request.get(name, default)
        if name == "tau" and goal_of(before.request) is not None and goal_of(now.request) is not None:
            continue
        if name == "catch_up" and not before.catch_up and not now.catch_up:
            continue
        if old != new:
            more = name == "images_per_prompt" and new > old
            found.append(f"{name}: {shown(old)} before, {shown(new)} now{_MORE_IMAGES if more else ''}")
    return found


_MORE_IMAGES = " (for more images of the same prompts, add rows with other seeds: --extend, in Python Plan.extend)"

_ARGUMENTS: dict[str, Any] = {
    "tau": None,
    "budget": None,
    "images_per_hour": None,
    "gpu_hours": None,
    "steps": None,
    "linkage": "ward",
    "metric": "cosine",
    "calibration": None,
    "schedule": "linear",
    "images_per_prompt": 1,
    "noise": "independent",
    "catch_up": 0.0,
    "encoder": None,
}
"""Entries of a plan's request that decide its tree, and what they were before they were recorded."""


def _texts(before: Plan, now: Plan) -> list[str]:
    old, new = before.prompts, now.prompts
    found = [f"prompts: {len(old)} before, {len(new)} now"] if len(old) != len(new) else []
    differing = [i for i in range(min(len(old), len(new))) if old[i] != new[i]]
    if differing:
        i = differing[0]
        pair = f"prompt {i}: {shown(old[i])} before, {shown(new[i])} now"
        found.append(f"{pair} ({len(differing)} of {min(len(old), len(new))} differ)")
    return found


def _seeds(before: Plan, now: Plan) -> list[str]:
    n = min(before.n_prompts, now.n_prompts)
    differing = np.flatnonzero(before.seeds[:n] != now.seeds[:n])
    if not len(differing):
        return []
    i = int(differing[0])
    return [f"seed of prompt {i}: {before.seeds[i]} before, {now.seeds[i]} now ({len(differing)} of {n} differ)"]


def _prompt_settings(before: Plan, now: Plan) -> list[str]:
    old, new = ([plan.settings[i] for i in plan.setting.tolist()] for plan in (before, now))
    n = min(len(old), len(new))
    differing = [i for i in range(n) if old[i] != new[i]]
    if not differing:
        return []
    i = differing[0]
    what = "; ".join(entry_differences("", old[i], new[i])[:2])
    return [f"settings of prompt {i}: {what} ({len(differing)} of {n} prompts differ)"]


def entry_differences(prefix: str, before: dict[str, Any], now: dict[str, Any], *, missing: bool = True) -> list[str]:
    """Entries that differ, by name. With ``missing`` also those that only one side has."""
    found = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name, _MISSING), now.get(name, _MISSING)
        if old == new or (not missing and _MISSING in (old, new)):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += entry_differences(f"{prefix}{name}.", old, new, missing=missing)
        else:
            found.append(f"{prefix}{name}: {shown(old)} before, {shown(new)} now")
    return found


def shown(value: Any) -> str:
    """A value in such a text."""
    if value is _MISSING or value is None:
        return "none"
    return shortened(repr(value))
