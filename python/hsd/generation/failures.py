"""Images that could not be made: collected while a run goes on, and kept in ``failed.jsonl``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import FailedImages
from ..planning.plan import Plan
from ..work.arguments import check_function
from ..work.faults import HOPELESS
from .lines import Entry, encode, parse
from .results import Failure, Run, Stage

_SEPARATE = 4
"""Latents that are not finite count for that only if they come from this many clusters: one cluster says nothing of the
others, however many images it has."""

FailureReport = Callable[[Failure], object]
"""Called with each image that fails, as soon as that is known; from any thread."""


def check_report(failed: Any) -> None:
    """``TypeError`` unless it is a :data:`FailureReport` or None, before any work."""
    if failed is not None:
        takes = "each hsd.Failure (a generated folder lists them in Run.failed anyway)"
        check_function("failed", failed, None, takes=takes, otherwise="None")


class Failures:
    """The failures of a run, by image. Safe to use from several threads.

    Parameters
    ----------
    plan
        What runs.
    report
        Called with each failure.
    """

    def __init__(self, plan: Plan, report: FailureReport | None = None) -> None:
        self._plan, self._report = plan, report
        self._found: dict[int, Failure] = {}
        self._lock = threading.Lock()
        self._streaks: dict[Stage, _Streak | None] = {stage: _Streak() for stage in get_args(Stage)}

    def add(self, index: int, stage: Stage, reason: str) -> None:
        """Record that an image failed.

        Raises
        ------
        FailedImages
            If no image has passed this stage, and enough have failed in the same way to give up.
        """
        failure = Failure(index, self._plan.prompts[index], int(self._plan.seeds[index]), stage, reason)
        with self._lock:
            self._found[index] = failure
            hopeless = self._continues(failure)
        if self._report is not None:
            self._report(failure)
        if hopeless:
            n, first = len(self._found), next(iter(self._found.values()))
            raise FailedImages(f"the run ends: the first {n} images all failed in the same way: {first}", self.all)

    def passed(self, stage: Stage) -> None:
        """Record that an image passed ``stage``, and those before it."""
        for name in get_args(Stage):
            self._streaks[name] = None
            if name == stage:
                return

    def has_passed(self, stage: Stage) -> bool:
        """Whether an image has passed ``stage``, or failures there differ."""
        return self._streaks[stage] is None

    @property
    def all(self) -> tuple[Failure, ...]:
        """All failures, by index."""
        with self._lock:
            return tuple(self._found[index] for index in sorted(self._found))

    def __len__(self) -> int:
        """Number of failures."""
        return len(self._found)

    def _continues(self, failure: Failure) -> bool:
        """Whether this failure and all images before it make the run hopeless."""
        streak = self._streaks[failure.stage]
        if streak is None:
            return False
        kind = failure.reason.partition(":")[0]
        if streak.kind not in ("", kind):
            self._streaks[failure.stage] = None
            return False
        streak.kind = kind
        streak.indices.append(failure.index)
        if len(streak.indices) < HOPELESS:
            return False
        if failure.stage != "denoise":
            return True
        clusters = _clusters(self._plan)
        kept = len(np.unique(clusters[self._plan.kept]))
        return len(np.unique(clusters[streak.indices])) >= min(_SEPARATE, kept)


@dataclass
class _Streak:
    """The images that failed at a stage before the first that passed it, all in one way."""

    kind: str = ""
    indices: list[int] = field(default_factory=list)


def _clusters(plan: Plan) -> NDArray[np.int64]:
    """(N,) the cluster of each prompt, at the first step that has enough of them to be compared."""
    enough = np.flatnonzero(plan.counts() >= _SEPARATE)
    return plan.active(int(enough[0]) if len(enough) else plan.n_steps - 1)


def listed(failures: Iterable[Failure], most: int = 3) -> str:
    """The first failures, a line each."""
    every = list(failures)
    lines = [f"  {failure}" for failure in every[:most]]
    return "\n".join([*lines, f"  and {len(every) - most:,} more"] if len(every) > most else lines)


def summary(failures: tuple[Failure, ...], tried: int) -> str:
    """What a caller who does not look at the failures has to know."""
    return f"{len(failures):,} of {tried:,} images failed; the same call tries them again:\n{listed(failures)}"


def require_all(run: Run) -> Run:
    """``run``; ``FailedImages`` if some of its images could not be made. For callers that need all of them."""
    if run.failed:
        raise FailedImages(summary(run.failed, run.images + len(run.failed)), run.failed)
    return run


def updated(data: bytes, n_prompts: int, made: Collection[int], failures: Iterable[Failure]) -> bytes:
    """``failed.jsonl``, brought up to date: images that exist leave it, failures of this run enter it, others stay.

    Nothing depends on the entries of earlier runs: what cannot be read is left out.

    Parameters
    ----------
    data
        What the file holds; empty if there is none.
    made
        Indices of images that exist.
    """
    entries: dict[int, Entry] = {}
    for line in data.splitlines():
        entry = parse(line) or {}
        index = entry.get("index")
        if type(index) is int and 0 <= index < n_prompts and index not in made:
            entries[index] = entry
    entries |= {failure.index: entry_of(failure) for failure in failures}
    return b"".join(encode(entries[index]) for index in sorted(entries))


def entry_of(failure: Failure) -> Entry:
    """A line of ``failed.jsonl``. As in ``metadata.jsonl``, the prompt is the ``text``."""
    entry = asdict(failure)
    return {"index": entry.pop("index"), "text": entry.pop("prompt"), **entry}


def failure_of(entry: Any) -> Failure | None:
    """What :func:`entry_of` made a line of; None if it is none."""
    try:
        index, seed = entry["index"], entry["seed"]
        text, stage, reason = (str(entry[name]) for name in ("text", "stage", "reason"))
    except (KeyError, TypeError):
        return None
    if type(index) is not int or type(seed) is not int or stage not in get_args(Stage):
        return None
    return Failure(index, text, seed, cast("Stage", stage), reason)
