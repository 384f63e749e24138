"""A longer, shorter or changed list of prompts for a plan whose images exist: what it has of it, and what is new."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .plan import Plan
from .reuse import same_request


@dataclass(frozen=True)
class List:
    """A list of prompts, each as often as it is wanted."""

    prompts: list[str]
    seeds: NDArray[np.int64]
    settings: list[dict[str, Any]]
    columns: dict[str, list[Any]]
    chosen: NDArray[np.bool_]
    """(N,) whose seeds were given for them. The others have the first seed and their index, which changes where the
    list changes."""


@dataclass(frozen=True)
class Found:
    """What a plan has of a list."""

    old: dict[int, int]
    """The prompt of the plan, by the place in the list."""
    new: list[int]
    """Places in the list of what it has not."""


def what_grew(before: Plan, now: Plan) -> list[str]:
    """What a list changes in a folder that has images, one line each; nothing for a plan that is not the folder's."""
    if before.fingerprint not in (now.fingerprint, *now.grown_from):
        return []
    lines = []
    added, missing = now.n_prompts - before.n_prompts, now.n_prompts - len(now) - len(now.variations)
    if added:
        joins = "new prompt joins" if added == 1 else "new prompts join"
        lines.append(f"{added:,} {joins} the {before.n_prompts:,} of the folder, whose images stay as they are")
    if missing > 0:
        are = "prompt of the folder is" if missing == 1 else "prompts of the folder are"
        lines.append(f"{missing:,} {are} not in this list: nothing is made for what is missing, and images stay")
    return lines


def can_grow(plan: Plan, request: dict[str, Any], n_steps: int) -> bool:
    """Whether a plan was compiled with the arguments of ``request``, whatever its prompts are."""
    ignored = ("settings", "extensions", "grown_from", "variations")
    return plan.n_steps == n_steps and same_request(plan, request, ignored)


def matched(plan: Plan, wanted: List) -> Found:
    """Which prompts of a plan are meant by those of a list.

    Those with the same text and settings, and with the same seed where it was given. Where it was not, the first seed
    has to be the same. The r-th in the list is the r-th in the plan.
    """
    own, which = [_frozen(one) for one in plan.settings], plan.setting
    by_seed: dict[tuple[Any, ...], list[int]] = {}
    by_first: dict[tuple[Any, ...], list[int]] = {}
    variations = plan.variations  # a list says nothing of them
    for j in range(plan.n_prompts - 1, -1, -1):
        if j in variations:
            continue
        what, seed = (plan.prompts[j], own[which[j]]), int(plan.seeds[j])
        by_seed.setdefault((*what, seed), []).append(j)
        by_first.setdefault((*what, seed - j), []).append(j)
    used = np.zeros(plan.n_prompts, dtype=bool)
    old: dict[int, int] = {}
    new: list[int] = []
    for i, (prompt, settings) in enumerate(zip(wanted.prompts, wanted.settings, strict=True)):
        seed = int(wanted.seeds[i])
        table, key = (by_seed, seed) if wanted.chosen[i] else (by_first, seed - i)
        found = table.get((prompt, _frozen(settings), key), [])
        while found and used[found[-1]]:
            found.pop()
        if found:
            old[i] = found.pop()
            used[old[i]] = True
        else:
            new.append(i)
    return Found(old, new)


def seeds_of(wanted: List, places: list[int], first: int) -> NDArray[np.int64]:
    """Seeds of the new prompts at these places of the list, where the first of them is prompt ``first`` of the plan."""
    own = wanted.seeds[places]
    following = own - places + first + np.arange(len(places))  # the first seed, and their index in the plan
    return np.where(wanted.chosen[places], own, following).astype(np.int64)


def merged_columns(plan: Plan, wanted: List, found: Found) -> dict[str, list[Any]]:
    """The columns of the plan's prompts, as the list gives them for those that it has."""
    out = {name: list(values) for name, values in plan.columns.items()}
    for name, values in wanted.columns.items():
        own = out.setdefault(name, [None] * plan.n_prompts)
        for i, j in found.old.items():
            own[j] = values[i]
    return out


def _frozen(settings: dict[str, Any]) -> str:
    return repr(sorted(settings.items()))
