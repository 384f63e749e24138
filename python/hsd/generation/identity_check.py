"""What decides the images of a folder or a store, compared with what decides those of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..errors import PlanMismatch
from ..planning.plan import Plan
from ..work.files import IDENTITY, RUN
from ..work.text import listed
from .differences import OTHER_STEPS, compared

Identity = dict[str, Any]
"""The fingerprint of the ``plan``, the ``model`` and the ``image_format``."""


def identity_of(plan: Plan, model: dict[str, Any], image_format: str) -> Identity:
    """The identity of a run, as JSON gives it back."""
    model = json.loads(json.dumps(model, default=str))
    return {"plan": plan.fingerprint, "model": model, "image_format": image_format}


def identity_differences(
    before: Identity, now: Identity, plan_differences: Callable[[], list[str]]
) -> dict[str, list[str]]:
    """What plan, model and image format differ in, by these words; ``plan_differences`` is asked if the plans do."""
    formats = before["image_format"], now["image_format"]
    found = {
        "plan": [] if before["plan"] == now["plan"] else plan_differences(),
        "model": compared(before["model"], now["model"]),
        "format": [] if formats[0] == formats[1] else [f"{formats[0]} before, {formats[1]} now"],
    }
    if any(text.startswith("steps:") for text in found["plan"]):  # then the scheduler has others too
        found["model"] = [text for text in found["model"] if not text.startswith(OTHER_STEPS)]
    return {name: differences for name, differences in found.items() if differences}


def mismatch(where: object, differing: dict[str, list[str]]) -> PlanMismatch:
    """The error of images that are of something else."""
    what = listed([text for differences in differing.values() for text in differences])
    return PlanMismatch(
        f"{where} holds images of another {' and another '.join(differing)} ({what}): continue with the same prompts, "
        "seeds and settings and the same model, or choose another folder"
    )


def not_begun(where: object) -> PlanMismatch:
    """The error of a folder that nobody has opened for the whole plan."""
    return PlanMismatch(
        f"{where} is not yet a folder of this plan: it has no {RUN}. Open it once for the whole plan before others "
        "write to it"
    )


def foreign(where: object, what: str) -> PlanMismatch:
    """The error of a folder with ``what`` in it, of which nothing says who made it."""
    return PlanMismatch(
        f"{where} holds another data set ({what}, but {RUN} and {IDENTITY} are missing or empty): choose another folder"
    )
