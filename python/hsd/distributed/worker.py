"""What runs in the process of a worker: loads the model, makes a plan if it is the first, and runs units.

Errors are returned as values: an exception that Ray sends may not be readable by the driver, and hides where it
happened.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import DeviceFailed, Error, Notice, OutOfMemory, OutputError, PlanMismatch
from ..generation.clustering import clustered_by_model, replaced
from ..generation.folders import open_part
from ..generation.options import Options
from ..generation.run_record import facts_of
from ..generation.unit import Told, UnitRunner
from ..models import Adapter, load
from ..names import ImageFormat
from ..planning.plan import Plan
from ..work.faults import described, device_errors
from ..work.progress import StageReport

Recipe = Callable[[Adapter, StageReport], Plan]
"""Makes a plan, once a model is loaded."""

_LOG = logging.getLogger("hsd")


@dataclass(frozen=True)
class Place:
    """Where a worker is."""

    node: str
    pid: int
    host: str
    version: str
    """Of HSD."""


@dataclass(frozen=True)
class Fault:
    """An error, as a value."""

    error: Exception
    breaks: bool = False
    """Whether its process is of no more use."""
    ends: bool = False
    """Whether it would be the same for every unit."""


@dataclass(frozen=True)
class Said:
    """A message of a worker: a warning for the user, or a log record."""

    text: str
    level: int = logging.WARNING
    notice: bool = False


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
        self._said: list[Said] = []

    def where(self) -> Place:
        """Where it is."""
        import ray

        return Place(ray.get_runtime_context().get_node_id(), os.getpid(), socket.gethostname(), _core.__version__)

    def load(self, loader: Callable[[], Any]) -> Fault | None:
        """Load the model."""
        try:
            with self._listening(), device_errors(lambda: "loading the model"):
                self._adapter = load(loader())
        except Exception as error:
            return _fault(error)
        return None

    def plan(self, recipe: Plan | Recipe, out: str) -> tuple[Plan | Fault, list[Said]]:
        """The plan, compiled by the model if it is not yet. What was encoded for it stays here."""
        assert self._adapter is not None
        try:
            with self._listening():
                if isinstance(recipe, Plan):
                    self._plan = _clustered(recipe, self._adapter, out)
                else:
                    self._plan = recipe(self._adapter, lambda stage, fraction: None)
        except Exception as error:
            return _fault(error), self._take()
        return self._plan, self._take()

    def begin(self, plan: Plan, options: Options) -> tuple[Loaded | Fault, list[Said]]:
        """Be ready for units of ``plan``."""
        assert self._adapter is not None
        try:
            with self._listening():
                if self._plan is None or self._plan.fingerprint != plan.fingerprint or len(self._plan) != len(plan):
                    self._plan = plan  # else what was encoded for the own one would be lost
                self._runner = UnitRunner(self._plan, self._adapter, options)
                facts = facts_of(self._adapter, self._runner.session.catch_up)
        except Exception as error:
            return _fault(error), self._take()
        return Loaded(self._runner.identity, facts), self._take()

    def open(self, out: str, image_format: ImageFormat) -> Fault | None:
        """Write to the folder ``out``, which the driver has opened."""
        assert self._runner is not None
        assert self._plan is not None
        try:
            self._runner.open(open_part(out, self._plan, self._runner.identity, image_format))
        except Exception as error:
            return _fault(error)
        return None

    def run(self, indices: NDArray[np.int64], proven: bool) -> Iterator[Told | Said | Fault]:
        """Run a unit: what happens, until it ends. An error is the last that comes."""
        assert self._runner is not None
        try:
            with self._listening():
                for told in self._runner.run(indices, proven=proven):
                    yield from self._take()
                    yield told
        except Exception as error:
            yield from self._take()
            yield _fault(error, running=True)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Inside, warnings and log records of HSD are kept for the driver."""
        handler, level = _Kept(self._said), _LOG.level
        with warnings.catch_warnings():
            elsewhere = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *args: Any, **options: Any) -> None:
                if issubclass(category, Notice):
                    self._said.append(Said(str(message), notice=True))
                else:
                    elsewhere(message, category, *args, **options)

            warnings.filterwarnings("always", category=Notice)
            warnings.showwarning = show
            _LOG.addHandler(handler)
            _LOG.setLevel(logging.INFO)
            try:
                yield
            finally:
                _LOG.removeHandler(handler)
                _LOG.setLevel(level)

    def _take(self) -> list[Said]:
        said, self._said[:] = list(self._said), []
        return said


class _Kept(logging.Handler):
    """Keeps log records."""

    def __init__(self, said: list[Said]) -> None:
        super().__init__()
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(Said(record.getMessage(), record.levelno))


def _clustered(plan: Plan, adapter: Adapter, out: str) -> Plan:
    """The plan by the model's own embeddings, if it was clustered by the built-in encoder."""
    found = clustered_by_model(plan, adapter, folder=out)
    if found is not plan:
        _LOG.info(replaced(plan, found))
    return found


def _fault(error: Exception, *, running: bool = False) -> Fault:
    """The error, if the driver can read it; else one that says the same."""
    breaks = isinstance(error, (DeviceFailed, OutOfMemory, MemoryError))
    # While a unit runs, an argument that is wrong may be wrong in one of its prompts alone.
    same = (OutputError, PlanMismatch) if running else (Error, TypeError, ValueError)
    ends = isinstance(error, same) and not breaks
    try:
        if type(error).__module__.partition(".")[0] in ("builtins", "hsd"):
            pickle.loads(pickle.dumps(error))
            return Fault(error, breaks, ends)
    except Exception:
        pass
    return Fault(Error(described(error)), breaks, ends)
