"""What runs in the process of a worker: loads the model, makes a plan if it is the first, and runs units."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import Error
from ..generation.clustering import clustered_by_model, replaced
from ..generation.folders import Writer, open_part
from ..generation.options import Options
from ..generation.run_record import facts_of
from ..generation.unit import Told, UnitRunner
from ..models import Adapter, load
from ..names import ImageFormat
from ..planning.plan import Plan
from ..work.faults import described, device_errors
from ..work.progress import StageReport
from .messages import Fault, Said, fault_of, listening

Recipe = Callable[[Adapter, StageReport], Plan]
"""Makes a plan, once a model is loaded."""

_LOG = logging.getLogger(__name__)

_PAUSE = 0.25
"""Seconds between two reports on one stage of making a plan."""


@dataclass(frozen=True)
class Place:
    """Where a worker is."""

    node: str
    pid: int
    host: str
    version: str
    """Of HSD."""


@dataclass(frozen=True)
class Stage:
    """How far a worker is with making the plan."""

    name: str
    fraction: float


@dataclass(frozen=True)
class Loaded:
    """A model that is there, and what a record of the run says of it."""

    identity: dict[str, Any]
    facts: dict[str, Any]


class Worker:
    """The class of the actors. Nothing in its constructor can fail: an error there would not say on which machine."""

    def __init__(self) -> None:
        self._adapter: Adapter | None = None
        self._plan: Plan | None = None
        self._runner: UnitRunner | None = None
        self._writer: Writer | None = None
        self._said: list[Said] = []

    def where(self) -> Place:
        """Where it is."""
        import ray

        return Place(ray.get_runtime_context().get_node_id(), os.getpid(), socket.gethostname(), _core.__version__)

    def load(self, loader: Callable[[], Any]) -> Fault | None:
        """Load the model."""
        try:
            with listening(self._said.append), device_errors(lambda: "loading the model"):
                self._adapter = load(loader())
        except Exception as error:
            return fault_of(error)
        return None

    def plan(self, recipe: Plan | Recipe, out: str) -> Iterator[Stage | Said | Plan | Fault]:
        """How far it is, and at last the plan, by the model if it is not yet. What was encoded for it stays here."""
        news: SimpleQueue[Stage | Plan | Fault] = SimpleQueue()
        threading.Thread(target=self._make_plan, args=(recipe, out, news.put), daemon=True).start()
        while True:
            one = news.get()
            yield from self._messages()
            yield one
            if not isinstance(one, Stage):
                return

    def _make_plan(self, recipe: Plan | Recipe, out: str, tell: Callable[[Stage | Plan | Fault], None]) -> None:
        """In a thread, since the one who makes it calls a function to report."""
        assert self._adapter is not None
        told: dict[str, float] = {}

        def report(stage: str, fraction: float = 0.0) -> None:
            now = time.monotonic()
            if now - told.get(stage, -_PAUSE) >= _PAUSE:
                told[stage] = now
                tell(Stage(stage, fraction))

        try:
            with listening(self._said.append):
                if isinstance(recipe, Plan):
                    self._plan = _clustered(recipe, self._adapter, out, report)
                else:
                    self._plan = recipe(self._adapter, report)
            tell(self._plan)
        except Exception as error:
            tell(fault_of(error))
        except BaseException as error:  # sys.exit in a thread would be heard by nobody
            tell(Fault(Error(described(error)), breaks=True))

    def begin(self, plan: Plan, options: Options) -> tuple[Loaded | Fault, list[Said]]:
        """Be ready for units of ``plan``."""
        assert self._adapter is not None
        try:
            with listening(self._said.append):
                if self._plan is None or self._plan.fingerprint != plan.fingerprint or len(self._plan) != len(plan):
                    self._plan = plan  # else what was encoded for the own one would be lost
                self._runner = UnitRunner(self._plan, self._adapter, options)
                facts = facts_of(self._adapter, self._runner.session.catch_up)
        except Exception as error:
            return fault_of(error), self._take()
        return Loaded(self._runner.identity, facts), self._take()

    def open(self, out: str, image_format: ImageFormat) -> Fault | None:
        """Write to the folder ``out``, which the driver has opened."""
        assert self._runner is not None
        assert self._plan is not None
        try:
            self._writer = open_part(out, self._plan, self._runner.identity, image_format)
        except Exception as error:
            return fault_of(error)
        self._runner.open(self._writer)
        return None

    def close(self) -> None:
        """Let the driver join what was written here. Nothing is written after that."""
        if self._writer is not None:
            self._writer.close()

    def run(self, indices: NDArray[np.int64], proven: bool) -> Iterator[Told | Said | Fault]:
        """Run a unit: what happens, until it ends. An error is the last that comes."""
        assert self._runner is not None
        try:
            with listening(self._said.append):
                for told in self._runner.run(indices, proven=proven):
                    yield from self._messages()
                    yield told
        except Exception as error:
            yield from self._messages()
            yield fault_of(error, running=True)

    def _take(self) -> list[Said]:
        said, self._said[:] = list(self._said), []
        return said

    def _messages(self) -> Iterator[Said]:
        """The same as a generator: Ray calls methods of what it iterates over, which a list's iterator lacks."""
        while self._said:
            yield self._said.pop(0)


def _clustered(plan: Plan, adapter: Adapter, out: str, report: StageReport) -> Plan:
    """The plan by the model's own embeddings, if it was clustered by the built-in encoder."""
    found = clustered_by_model(plan, adapter, folder=out, report=report)
    if found is not plan:
        _LOG.info(replaced(plan, found))
    return found
