"""What a worker goes through until it can run units: it says where it is, loads the model, makes the plan if it is the
first, and opens the folder. All workers have to have the same model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from ..errors import Error, PlanMismatch
from ..generation.differences import compared
from ..planning.plan import Plan
from ..work.text import listed
from .crew import Answer, Crew, Slot
from .messages import Fault, Said
from .queue import TRIES
from .whole import Whole
from .worker import Loaded, Place, Recipe, Stage

START = 300.0
"""Seconds that a run waits for a place for its first worker."""


class Startup:
    """Makes workers ready.

    Parameters
    ----------
    crew, put, loader, recipe, whole
        As for :class:`.driver.Driver`.
    say
        Is given the messages of workers.

    Attributes
    ----------
    units
        The indices of each unit, costliest first, once there is a plan and the folder is open.
    """

    def __init__(
        self,
        crew: Crew,
        put: Callable[[Any], Any],
        loader: Callable[[], Any],
        recipe: Plan | Recipe,
        whole: Whole,
        say: Callable[[list[Said]], None],
    ) -> None:
        self._crew, self._put, self._whole, self._say = crew, put, whole, say
        self._recipe = recipe
        self._plan: Plan | None = None
        self._loader: Any = put(loader)
        self._plan_ref: Any = None
        self._planner: Slot | None = None
        self._identity: dict[str, Any] | None = None
        self._failures = 0  # in a row: workers that ended before they were ready
        self._has_loaded = False  # any worker
        self._seen = time.monotonic()  # when a worker had a place
        self.units: list[NDArray[Any]] | None = None

    def heard(self, answer: Answer) -> Exception | None:
        """Go on with a worker that has answered; returns what is wrong with it, if it is of no use."""
        slot, value = answer.slot, answer.value
        if answer.ended:  # the stream of a plan
            return None
        if answer.doing == "where":
            self._placed(slot, value)
            return None
        if answer.doing == "load":
            return self._loaded(slot, value)
        if answer.doing == "plan":
            return self._planning(slot, value)
        if answer.doing == "begin":
            return self._begun(slot, value)
        if isinstance(value, Fault):  # of open
            raise value.error
        slot.ready, self._failures = True, 0
        self._crew.worked(slot)
        return None

    def lost(self, slot: Slot, *, ready: bool) -> None:
        """A worker has ended and is replaced. If it made the plan, another one does."""
        if not ready:
            self._failures += 1
        if slot is self._planner:
            self._planner = None
        if self._plan is None and self._planner is None:
            for other in self._waiting():
                self._next(other)
                return

    def close(self) -> None:
        """Keep no reference to anything of Ray."""
        self._loader = self._plan_ref = None

    @property
    def hopeless(self) -> str:
        """Why no worker will ever be ready; empty if one may be, or is."""
        crew = self._crew
        if crew.alive:
            return ""
        if self._failures >= TRIES * len(crew.slots) or (self._failures and not crew.nodes_left):
            return "workers end before they can run a unit" if self._has_loaded else "no worker can load the model"
        now = time.monotonic()
        if any(slot.place is not None for slot in crew.slots):
            self._seen = now
        elif now - self._seen > START:
            return f"no worker found a place for {START:.0f} seconds; the cluster has {crew.resources}"
        return ""

    def _placed(self, slot: Slot, place: Place) -> None:
        from .. import _core

        if place.version != _core.__version__:
            raise Error(
                f"{place.host} has HSD {place.version}, and here is {_core.__version__}: install the same version on "
                "all machines"
            )
        self._crew.ask(slot, "load", self._loader)

    def _loaded(self, slot: Slot, fault: Fault | None) -> Exception | None:
        if fault is None:
            self._has_loaded = True
            self._next(slot)
            return None
        if fault.ends and self._whole.alone:
            raise fault.error
        return fault.error

    def _next(self, slot: Slot) -> None:
        """What a worker with a model does first."""
        if self._plan is not None:
            self._crew.ask(slot, "begin", self._plan_ref, self._whole.options)
        elif self._planner is None:
            self._planner = slot
            self._whole.watcher.stage("encode")
            recipe = self._recipe
            if isinstance(recipe, Plan) and not recipe.is_estimate:
                self._planned(recipe)
            else:
                self._crew.ask(slot, "plan", recipe, self._whole.out)

    def _planning(self, slot: Slot, value: Stage | Said | Plan | Fault) -> Exception | None:
        """One of what comes while a worker makes the plan, which is the last."""
        if isinstance(value, Stage):
            self._whole.watcher.stage(value.name, value.fraction)
        elif isinstance(value, Said):
            self._say([value])
        elif isinstance(value, Plan):
            self._crew.finished(slot)
            self._planned(value)
        elif value.breaks:
            return value.error
        else:
            raise value.error
        return None

    def _planned(self, plan: Plan) -> None:
        self._plan, self._plan_ref, self._planner = plan, self._put(plan), None
        for slot in self._waiting():
            self._next(slot)

    def _waiting(self) -> list[Slot]:
        """Workers that have a model and wait for a plan."""
        return [slot for slot in self._crew.slots if slot.doing == "" and slot.place is not None and not slot.ready]

    def _begun(self, slot: Slot, answer: tuple[Loaded | Fault, list[Said]]) -> Exception | None:
        assert self._plan is not None
        loaded, said = answer
        self._say(said)
        if isinstance(loaded, Fault):
            if loaded.ends:
                raise loaded.error
            return loaded.error
        if self._identity is None:
            self._identity = loaded.identity
            self.units = self._whole.open(self._plan, loaded, len(self._crew.slots))
        elif differing := compared(self._identity, loaded.identity):
            host = "" if slot.place is None else f" on {slot.place.host}"
            raise PlanMismatch(
                f"the model of a worker{host} is another one than that of the first worker ({listed(differing)}): all "
                "machines need the same model, settings and versions"
            )
        self._crew.ask(slot, "open", self._whole.out, self._whole.image_format)
        return None
