"""Settings of a run as a file: what ``hsd tune`` chooses, and what ``hsd generate --settings FILE`` takes."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

from ..errors import Error
from ..names import Metric, ScheduleName, check_count
from ..work.files import write_json
from ..work.paths import user_path
from ..work.reading import read_object
from .catch_up import check_catch_up
from .schedule import check_budget, check_tau

MEASURED = "measured"
"""The schedule whose shape the calibration of the model gives."""

SETTINGS_FILE = "hsd-settings.json"


_MOST_STEPS = 10_000
"""Far more than any scheduler needs. The tables of a run grow with them, and a file may say anything."""


class SettingsError(Error, ValueError):
    """A file of settings that cannot be used. Names the file and the key."""


@dataclass(frozen=True)
class Settings:
    """How images are generated. A field that is None is left to the default of whoever uses it.

    Raises
    ------
    TypeError, ValueError
        For a value that is not allowed; the message begins with the name of the field.
    """

    steps: int | None = None
    """``num_inference_steps``."""
    tau: float | None = None
    budget: float | None = None
    """Instead of ``tau``: the share of evaluations to save."""
    catch_up: float | None = None
    """How strongly a segment makes up for what its prompts were not given while they shared steps; at least 0."""
    metric: str | None = None
    """How the distance of two prompts is measured."""
    schedule: str | None = None
    guidance_interval: tuple[float, float] | None = None
    """The part of the run with guidance, as fractions 0 <= a < b <= 1 of its steps."""
    scheduler: str | None = None
    """``deterministic``, ``stochastic`` or the class name of a diffusers scheduler."""
    evidence: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What the choice was based on: for people, not used."""

    def __post_init__(self) -> None:
        if self.tau is not None and self.budget is not None:
            raise ValueError(f"tau is {self.tau} and budget is {self.budget}: give one of them, not both")
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check(name, value))

    def compile_arguments(self) -> dict[str, Any]:
        """Keywords for :func:`hsd.compile`: those that are set."""
        return self._given("steps", "tau", "budget", "catch_up", "metric", "schedule")

    def model_arguments(self) -> dict[str, Any]:
        """Keywords for :func:`hsd.load`: those that are set."""
        return self._given("guidance_interval", "scheduler")

    def _given(self, *names: str) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file with the fields that are set, by atomic rename."""
        document: dict[str, Any] = {**self.compile_arguments(), **self.model_arguments()}
        if self.evidence:
            document["evidence"] = self.evidence
        write_json(user_path(path), document)


def load_settings(path: str | os.PathLike[str]) -> Settings:
    """Read a file that :meth:`Settings.save` or :func:`hsd.tune` wrote, or that was written by hand.

    Raises
    ------
    SettingsError
        If the file cannot be read, is not a JSON object, has a key that is not known, or a value that is not allowed.
    """
    try:
        document = read_object(path)
    except OSError as error:
        raise SettingsError(f"cannot read settings from {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise SettingsError(f"{path} is not JSON with settings ({error}): hsd tune writes such files") from None
    known = [one.name for one in dataclasses.fields(Settings)]
    for name in document:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean {near[0]!r}?" if near else "."
            raise SettingsError(f"{path} has an unknown key {name!r}{hint} Known: {', '.join(known)}")
    try:
        return Settings(**document)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from None


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {value!r}: it has to be a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is an integer that is too large for a float") from None


def _steps(name: str, value: Any) -> int:
    steps = check_count(name, value)
    if steps > _MOST_STEPS:
        raise ValueError(f"{name} is {steps}: it has to be at most {_MOST_STEPS}")
    return steps


def _one_of(*names: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if value not in names:
            raise ValueError(f"{name} is {value!r}: it has to be one of {', '.join(names)}")
        return str(value)

    return check


def _interval(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise TypeError(f"{name} is {value!r}: it has to be two fractions of the run, [begin, end]")
    begin, end = _number(f"{name}[0]", value[0]), _number(f"{name}[1]", value[1])
    if not 0.0 <= begin < end <= 1.0:
        raise ValueError(f"{name} is [{begin}, {end}]: it has to be 0 <= begin < end <= 1")
    return begin, end


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{name} is {value!r}: it has to be a name")
    return value


def _evidence(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{name} is {value!r}: it has to be an object")
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "steps": _steps,
    "tau": lambda name, value: check_tau(_number(name, value)),
    "budget": lambda name, value: check_budget(_number(name, value)),
    "catch_up": lambda name, value: check_catch_up(_number(name, value)),
    "metric": _one_of(*get_args(Metric)),
    "schedule": _one_of(*get_args(ScheduleName)),
    "guidance_interval": _interval,
    "scheduler": _text,
    "evidence": _evidence,
}
