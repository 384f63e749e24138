"""What a plan has to reach, where tau is not given but solved for: a share of evaluations saved, or a time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .._core import Tree
from ..errors import Notice
from ..names import number
from .schedule import check_budget

GoalName = Literal["budget", "images_per_hour", "gpu_hours"]


@dataclass(frozen=True)
class Goal:
    """One goal, checked. Its name is an argument of :func:`hsd.compile`."""

    name: GoalName
    value: float

    @property
    def is_time(self) -> bool:
        """Whether the speed of the model decides."""
        return self.name != "budget"

    def seconds(self, images: int) -> float:
        """What a run of ``images`` images may take."""
        return self.value * 3600.0 if self.name == "gpu_hours" else images / self.value * 3600.0

    def __str__(self) -> str:
        unit = {"budget": "of the evaluations saved", "images_per_hour": "images per hour", "gpu_hours": "GPU hours"}
        return f"{self.value:,g} {unit[self.name]}"


def check_goal(tau: float | None, values: Mapping[str, float | None], model: object | None) -> Goal | None:
    """The goal among the arguments of :func:`hsd.compile`; None if there is none.

    Raises
    ------
    ValueError
        If there are several, or ``tau`` too; for a value that cannot be reached in any way; for a time without a model.
    """
    given = {name: value for name, value in {"tau": tau, **values}.items() if value is not None}
    if len(given) > 1:
        shown = " and ".join(f"{name} ({value})" for name, value in given.items())
        raise ValueError(f"give only one of {shown}, not both: each decides the threshold")
    name = next(iter(given), None)
    if name is None or name == "tau":
        return None
    if name == "budget":
        return Goal("budget", check_budget(given[name]))
    value = number(name, given[name], "such as 2.5")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {given[name]}: it has to be a finite number above 0")
    if model is None:
        raise ValueError(f"{name} ({value:g}) needs a model (model=, --model): how long a step takes depends on it")
    return Goal("images_per_hour" if name == "images_per_hour" else "gpu_hours", value)


def goal_of(request: Mapping[str, Any]) -> Goal | None:
    """The goal that a plan was compiled for: then its tau is a result, and no argument."""
    for name in get_args(GoalName):
        if request.get(name) is not None:
            return Goal(name, float(request[name]))
    return None


def most_shared(tree: Tree, shape: NDArray[np.float64]) -> float | None:
    """A tau with which all steps are shared that can be; None if no two images may share a step."""
    finite, positive = tree.heights[np.isfinite(tree.heights)], shape[shape > 0]
    if not len(finite) or not len(positive):
        return None
    return float(np.nextafter(finite.max(), np.inf) / positive.min() * (1 + 1e-9))


def tau_for_budget(tree: Tree, shape: NDArray[np.float64], budget: float) -> float:
    """The smallest tau that saves at least ``budget``; an error that names the largest possible saving otherwise.

    Where no two images may share a step, whatever tau and the number of steps, the budget is no mistake of its author,
    who may work through sets of any size: it is warned about, and tau is 0.
    """
    standard = tree.n_leaves * len(shape)
    if not np.isfinite(tree.heights).any():
        n = tree.n_leaves
        none = f"no two of the {n:,} images may share a step (repeats, other settings)"
        what = "there is one image" if n == 1 else none
        warnings.warn(f"a budget of {budget} has no effect: {what}", Notice, stacklevel=5)
        return 0.0
    # Checked here and not only in Rust, to name the budget that was asked for.
    least = tree.node_steps(np.where(shape > 0, np.finfo(np.float64).max, 0.0))
    target = int(np.floor(standard * (1.0 - budget) + 1e-9 * standard))
    if least > target:
        raise ValueError(
            f"a budget of {budget} cannot be met: sharing all steps but the last saves {1 - least / standard:.4f} at "
            "most"
        )
    return tree.tau_for_node_steps(shape, target)
