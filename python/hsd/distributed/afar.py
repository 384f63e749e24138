"""Runs on a cluster of which this machine is no part (``ray://``).

Ray sends no streams to such a machine. So what hands out units runs in the cluster, as a task, and tells an actor what
happens; this process asks the actor, and passes it on to who watches here.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ..errors import WorkersFailed
from ..generation.events import Event, Watcher, telling
from ..generation.failures import FailureReport
from ..generation.results import Failure, Run
from ..planning.plan import Plan
from ..planning.span import Span
from ..work.faults import described
from .job import Job
from .messages import Fault, fault_of, listening, say

_ASK = 0.5
"""Seconds between two questions."""

_END = 60.0
"""Seconds that an interrupted run has to end its workers and to write its record."""

_PAUSE = 0.25
"""Seconds between two reports of calls."""


def run_from_afar(ray: Any, job: Job, watcher: Watcher, failed: FailureReport | None) -> Run:
    """Run a job in the cluster that ``ray`` is a client of; what happens there is told here.

    Raises
    ------
    WorkersFailed
        If the machine is lost that hands out the units.
    """
    from ray.exceptions import RayError

    relay = ray.remote(num_cpus=0)(Relay).remote()
    task = ray.remote(num_cpus=0, max_retries=0)(_inside).remote(job, relay)
    replay = _Replay(watcher, failed)
    try:
        ready = False
        while not ready:
            ready = bool(ray.wait([task], timeout=_ASK)[0])
            replay(ray.get(relay.take.remote()))
        outcome = ray.get(task)
    except RayError as error:
        raise WorkersFailed(
            f"the process in the cluster that hands out units was lost ({described(error)}): the same call makes what "
            "is missing"
        ) from error
    except BaseException:
        with contextlib.suppress(Exception):  # it records the run, and says what was made
            ray.cancel(task)
            ray.wait([task], timeout=_END)
            replay(ray.get(relay.take.remote(), timeout=_ASK))
        raise
    if isinstance(outcome, Fault):
        raise outcome.error
    return cast(Run, outcome)


class Relay:
    """An actor that keeps what was told until it is asked."""

    def __init__(self) -> None:
        self._told: list[tuple[str, tuple[Any, ...]]] = []

    def tell(self, name: str, *values: Any) -> None:
        """Keep one message."""
        self._told.append((name, values))

    def take(self) -> list[tuple[str, tuple[Any, ...]]]:
        """What was told since it was asked last."""
        told, self._told = self._told, []
        return told


def _inside(job: Job, relay: Any) -> Run | Fault:
    """The task: runs the job where it is, in the cluster."""
    import ray

    try:
        with listening(lambda one: relay.tell.remote("said", one)):
            job.check_folder()
            return job.run(ray, _Told(relay), None, own=False)
    except Exception as error:
        return fault_of(error)


class _Told(Watcher):
    """Passes on what happens, without what is large."""

    watches = True

    def __init__(self, relay: Any) -> None:
        self._relay = relay
        self._crew = (-1, -1)
        self._next = 0.0
        self._steps = self._finished = 0  # of calls that are not reported yet

    def stage(self, name: str, fraction: float = 0.0) -> None:
        self._relay.tell.remote("stage", name, fraction)

    def began(self, plan: Plan, existing: int, out: Path | str | None, expected: Span | None) -> None:
        self._relay.tell.remote("began", plan, existing, out, expected)

    def event(self, event: Event) -> None:
        self._steps += event.node_steps
        self._finished += event.finished
        if time.monotonic() < self._next and event.fraction < 1.0:
            return
        self._next = time.monotonic() + _PAUSE
        sums = replace(event, plan=cast(Plan, None), node_steps=self._steps, finished=self._finished)
        self._steps = self._finished = 0
        self._relay.tell.remote("event", sums)

    def made(self, prompt: str) -> None:
        self._relay.tell.remote("made", prompt)

    def workers(self, alive: int, wanted: int) -> None:
        if (alive, wanted) != self._crew:
            self._crew = (alive, wanted)
            self._relay.tell.remote("workers", alive, wanted)

    def failed(self, failure: Failure) -> None:
        self._relay.tell.remote("failed", failure)

    def stopped(self, run: Run) -> None:
        self._relay.tell.remote("stopped", run)


class _Replay:
    """Tells here what was told there."""

    def __init__(self, watcher: Watcher, failed: FailureReport | None) -> None:
        self._watcher, self._failed = watcher, telling(watcher, failed)
        self._plan: Plan | None = None

    def __call__(self, told: list[tuple[str, tuple[Any, ...]]]) -> None:
        for name, values in told:
            if name == "said":
                say(*values)
            elif name == "failed":
                self._failed(*values)
            elif name == "event":
                assert self._plan is not None
                self._watcher.event(replace(values[0], plan=self._plan))
            else:
                if name == "began":
                    self._plan = values[0]
                getattr(self._watcher, name)(*values)
