"""The driver of a run: workers load the model, the first makes the plan, and units are handed out until none is left.

Nothing but the folder says what is made. Workers tell as they go, for the progress; when a unit ends or a worker dies,
the folder is asked.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import Error, FailedImages, Notice, PlanMismatch, WorkersFailed
from ..generation.differences import compared
from ..generation.unit import Told
from ..planning.plan import Plan
from ..work.faults import described
from ..work.text import listed
from .crew import Answer, Crew, Slot
from .queue import TRIES, Queue
from .whole import Whole
from .worker import Fault, Loaded, Recipe, Said

_LOG = logging.getLogger(__name__)

START = 300.0
"""Seconds that a run waits for a place for its first worker."""


class Driver:
    """Runs a plan on a crew.

    Parameters
    ----------
    crew
        The workers.
    put
        Stores a value for all workers: ``ray.put``.
    loader
        Loads the model, in a worker.
    recipe
        The plan, or what makes it in a worker.
    whole
        What is to be made and what is, with its folder.
    stall
        Seconds without any sign of life after which a worker is ended.
    resources
        Says what the cluster has, for an error.
    """

    def __init__(
        self,
        crew: Crew,
        put: Callable[[Any], Any],
        loader: Callable[[], Any],
        recipe: Plan | Recipe,
        whole: Whole,
        stall: float,
        resources: Callable[[], dict[str, float]],
    ) -> None:
        self._crew, self._put, self._whole = crew, put, whole
        self._stall, self._resources = stall, resources
        self._loader, self._recipe = put(loader), recipe
        self._plan: Plan | None = None
        self._plan_ref: Any = None
        self._planner: Slot | None = None
        self._identity: dict[str, Any] | None = None
        self._queue: Queue | None = None
        self._fails = 0  # of loading, in a row
        self._last: Exception | None = None
        self._seen = time.monotonic()  # when a worker had a place
        self._said: set[str] = set()

    def run(self) -> None:
        """Until everything is made, or has failed."""
        crew, whole = self._crew, self._whole
        while not self._is_over():
            for answer in crew.answers():
                self._heard(answer)
            for slot in crew.silent(self._stall):
                self._dead(slot, TimeoutError(f"no sign of life for {self._stall:.0f} seconds"))
            self._hand_out()
            self._check_hope()
            whole.watcher.workers(crew.alive, len(crew.slots))
        missing = whole.missing()
        if missing is not None and len(missing):
            raise self._failed(f"{len(missing):,} images are lost: their units ended, and they are not in the folder")

    def _is_over(self) -> bool:
        if self._queue is None:
            return False
        return not self._queue and all(slot.unit is None for slot in self._crew.slots)

    # ------------------------------------------------------------------------------- what workers say

    def _heard(self, answer: Answer) -> None:
        slot, value = answer.slot, answer.value
        if answer.died is not None:
            self._dead(slot, answer.died, loading=answer.doing == "load")
        elif answer.doing == "run":
            self._told(slot, answer)
        elif answer.doing == "where":
            slot.ready = False
            self._seen = time.monotonic()
            self._check_version(slot)
            self._crew.ask(slot, "load", self._loader)
        elif answer.doing == "load":
            self._loaded(slot, value)
        elif answer.doing == "plan":
            self._planner = None
            plan, said = value
            self._say(said)
            self._planned(slot, plan)
        elif answer.doing == "begin":
            loaded, said = value
            self._say(said)
            self._begun(slot, loaded)
        elif isinstance(value, Fault):  # of open
            raise value.error
        else:
            slot.ready = True

    def _loaded(self, slot: Slot, fault: Fault | None) -> None:
        if fault is None:
            self._fails = 0
            self._crew.loaded(slot)
            self._next(slot)
        elif fault.ends and self._whole.alone:
            raise fault.error
        else:
            self._dead(slot, fault.error, loading=True)

    def _next(self, slot: Slot) -> None:
        """What a worker with a model does first."""
        if self._plan is not None:
            self._crew.ask(slot, "begin", self._plan_ref, self._whole.options)
        elif self._planner is None:
            self._planner = slot
            self._whole.watcher.stage("encode")
            recipe = self._recipe
            if isinstance(recipe, Plan) and not recipe.is_estimate:
                self._planner = None
                self._planned(slot, recipe)
            else:
                self._crew.ask(slot, "plan", recipe, self._whole.out)

    def _planned(self, slot: Slot, plan: Plan | Fault) -> None:
        if isinstance(plan, Fault):
            if plan.breaks:
                self._dead(slot, plan.error)
                return
            raise plan.error
        self._plan, self._plan_ref = plan, self._put(plan)
        waiting = [one for one in self._crew.slots if one.doing == "" and one.place is not None]
        for one in waiting:
            self._next(one)

    def _begun(self, slot: Slot, loaded: Loaded | Fault) -> None:
        assert self._plan is not None
        whole = self._whole
        if isinstance(loaded, Fault):
            if loaded.ends:
                raise loaded.error
            self._dead(slot, loaded.error, loading=True)
            return
        if self._identity is None:
            self._identity = loaded.identity
            units = whole.open(self._plan, loaded, len(self._crew.slots))
            self._queue = Queue(units, len(self._crew.slots))
        else:
            differing = compared(self._identity, loaded.identity)
            if differing:
                host = "" if slot.place is None else f" on {slot.place.host}"
                raise PlanMismatch(
                    f"the model of a worker{host} is another one than that of the first worker ({listed(differing)}): "
                    "all machines need the same model, settings and versions"
                )
        self._crew.ask(slot, "open", whole.out, whole.image_format)

    def _told(self, slot: Slot, answer: Answer) -> None:
        unit, queue, whole = slot.unit, self._queue, self._whole
        assert queue is not None
        assert unit is not None
        told = answer.value
        if answer.ended:
            slot.unit = None
            whole.refresh()
            self._gave_up(lambda: queue.raised(unit, whole.settled(), "it was not made, and nothing says why"))
        elif isinstance(told, Told):
            if told.made or told.failed:
                queue.made()
            whole.told(told)
        elif isinstance(told, Said):
            self._say([told])
        elif isinstance(told, Fault):
            self._faulted(slot, told)

    def _faulted(self, slot: Slot, fault: Fault) -> None:
        """A unit ended by an error; the stream ends too, which is not heard any more."""
        unit, queue, whole = slot.unit, self._queue, self._whole
        assert queue is not None
        assert unit is not None
        if fault.ends:
            raise fault.error
        self._last = fault.error
        if fault.breaks:
            self._dead(slot, fault.error)
            return
        slot.unit, slot.pending, slot.doing = None, None, ""
        whole.refresh()
        if isinstance(fault.error, FailedImages):
            if not whole.any:
                raise fault.error
            whole.fail(fault.error.failures)
        _LOG.info("a unit of %s images ended with %s", f"{len(unit.indices):,}", described(fault.error))
        self._gave_up(lambda: queue.raised(unit, whole.settled(), described(fault.error)))

    def _dead(self, slot: Slot, error: Exception, *, loading: bool = False) -> None:
        """A worker has ended, or is of no use."""
        queue, unit, whole = self._queue, slot.unit, self._whole
        self._last = error
        where = "" if slot.place is None else f" on {slot.place.host} (process {slot.place.pid})"
        _LOG.info("a worker%s was lost: %s", where, described(error, 200))
        if slot is self._planner:
            self._planner = None
        ran = slot.ready
        self._crew.replace(slot, loading=loading)
        if unit is not None and queue is not None:
            whole.refresh()
            reason = f"its worker ended {TRIES} times: {described(error, 200)}"
            self._gave_up(lambda: queue.died(unit, whole.settled(), reason))
        elif not ran:
            self._fails += 1
        self._resume()

    def _resume(self) -> None:
        """If the worker that made the plan has ended, another one makes it."""
        if self._plan is None and self._planner is None:
            for slot in self._crew.slots:
                if slot.doing == "" and slot.place is not None:
                    self._next(slot)
                    return

    def _gave_up(self, change: Callable[[], None]) -> None:
        """Change the queue, and take over the images that it gives up."""
        queue = self._queue
        assert queue is not None
        before = set(queue.given_up)
        change()
        self._whole.give_up({i: reason for i, reason in queue.given_up.items() if i not in before})

    # ------------------------------------------------------------------------------- what workers get

    def _hand_out(self) -> None:
        queue, whole = self._queue, self._whole
        if queue is None:
            return
        for slot in self._crew.idle:
            unit = queue.take(whole.settled())
            if unit is None:
                return
            slot.unit = unit
            self._crew.ask(slot, "run", np.asarray(unit.indices), whole.any)

    # ------------------------------------------------------------------------------- whether it can go on

    def _check_hope(self) -> None:
        crew = self._crew
        if self._queue is not None and self._queue.is_hopeless:
            raise self._failed(f"{self._queue.losses} units ended badly in a row, and no image was made meanwhile")
        if any(slot.ready for slot in crew.slots):
            return
        if self._fails >= TRIES * len(crew.slots) or (self._fails and not crew.nodes_left):
            raise self._failed("no worker can load the model")
        if all(slot.place is None for slot in crew.slots):
            if time.monotonic() - self._seen > START:
                have = {name: value for name, value in self._resources().items() if name in ("CPU", "GPU")}
                raise self._failed(f"no worker found a place for {START:.0f} seconds; the cluster has {have}")
        else:
            self._seen = time.monotonic()

    def _failed(self, what: str) -> WorkersFailed:
        whole = self._whole
        missing = whole.missing()
        rest = "" if missing is None else f"; {len(missing):,} of {whole.wanted:,} images are missing"
        why = "" if self._last is None else f" ({described(self._last)})"
        error = WorkersFailed(f"{what}{why}{rest}: the same call makes what is missing")
        error.__cause__ = self._last
        return error

    def _check_version(self, slot: Slot) -> None:
        from .. import _core

        assert slot.place is not None
        if slot.place.version != _core.__version__:
            raise Error(
                f"{slot.place.host} has HSD {slot.place.version}, and here is {_core.__version__}: install the same "
                "version on all machines"
            )

    def _say(self, said: list[Said]) -> None:
        """Pass on what workers say, each text once."""
        for one in said:
            if one.text not in self._said:
                self._said.add(one.text)
                if one.notice:
                    warnings.warn(one.text, Notice, stacklevel=2)
                else:
                    _LOG.log(one.level, "%s", one.text)
