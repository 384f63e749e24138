"""The driver of a run: workers get ready, and units are handed out until none is left.

The folder alone says what is made. Workers tell as they go, for the progress; when a unit has ended or a worker has
died, the folder is asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import FailedImages, WorkersFailed
from ..generation.unit import Told
from ..planning.plan import Plan
from ..work.faults import described
from .crew import Answer, Crew, Slot
from .messages import Fault, Said, say
from .queue import TRIES, Queue, Unit
from .startup import Startup
from .whole import Whole
from .worker import Recipe

_LOG = logging.getLogger(__name__)

SEEN = 60.0
"""Seconds after which this host sees at last what another one has written: shared folders are cached for a while."""


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
    """

    def __init__(
        self,
        crew: Crew,
        put: Callable[[Any], Any],
        loader: Callable[[], Any],
        recipe: Plan | Recipe,
        whole: Whole,
        stall: float,
    ) -> None:
        self._crew, self._whole, self._stall = crew, whole, stall
        self._startup = Startup(crew, put, loader, recipe, whole, self._say)
        self._queue: Queue | None = None
        self._last: Exception | None = None
        self._why = ""  # what is said of it
        self._said: set[str] = set()

    def run(self) -> None:
        """Until everything is made, or has failed."""
        crew = self._crew
        try:
            while not self._is_over():
                for answer in crew.answers():
                    self._heard(answer)
                for slot in crew.silent(self._stall):
                    self._dead(slot, TimeoutError(f"no sign of life for {self._stall:.0f} seconds"))
                self._hand_out()
                self._check_hope()
                self._whole.watcher.workers(crew.alive, len(crew.slots))
            self._check_all_there()
        finally:
            self._startup.close()
            crew.close()

    def _is_over(self) -> bool:
        if self._queue is None:
            return False
        return not self._queue and all(slot.unit is None for slot in self._crew.slots)

    def _heard(self, answer: Answer) -> None:
        if answer.died is not None:
            self._dead(answer.slot, answer.died)
        elif answer.doing == "run":
            self._told(answer.slot, answer)
        else:
            error = self._startup.heard(answer)
            if error is not None:
                self._dead(answer.slot, error)
            if self._queue is None and self._startup.units is not None:
                self._queue = Queue(self._startup.units, len(self._crew.slots))

    # ------------------------------------------------------------------------------- what workers say

    def _told(self, slot: Slot, answer: Answer) -> None:
        whole, told = self._whole, answer.value
        queue, unit = self._running(slot)
        if answer.ended:
            slot.unit = None
            whole.trust(slot.told)  # all of it is written now, even if this host does not see it yet
            whole.refresh()
            self._gave_up(lambda: queue.raised(unit, whole.settled(), "it was not made, and nothing says why"))
        elif isinstance(told, Told):
            if told.made or told.failed:
                queue.made()
            if told.made:
                self._clear(slot, unit)
            slot.told.update(told.made)
            whole.told(told)
        elif isinstance(told, Said):
            self._say([told])
        elif isinstance(told, Fault):
            self._faulted(slot, told)

    def _faulted(self, slot: Slot, fault: Fault) -> None:
        """A unit ended by an error; the stream ends too, which is not heard any more."""
        whole = self._whole
        queue, unit = self._running(slot)
        if fault.ends:
            raise fault.error
        self._last, self._why = fault.error, described(fault.error)
        if fault.breaks:
            self._dead(slot, fault.error)
            return
        slot.unit = None
        self._crew.finished(slot)
        whole.refresh()
        if isinstance(fault.error, FailedImages):
            if not whole.any:
                raise fault.error
            whole.fail(fault.error.failures)
        _LOG.info("a unit of %s images ended with %s", f"{len(unit.indices):,}", described(fault.error))
        self._gave_up(lambda: queue.raised(unit, whole.settled(), described(fault.error)))

    def _dead(self, slot: Slot, error: Exception) -> None:
        """A worker has ended, or is of no use."""
        from ray.exceptions import ActorDiedError

        unit, ready, whole = slot.unit, slot.ready, self._whole
        where = "" if slot.place is None else f" on {slot.place.host} (process {slot.place.pid})"
        worker = "a worker" if slot.place is None else f"worker {slot.place.pid} on {slot.place.host}"
        if isinstance(error, ActorDiedError):  # Ray's own text is mostly of identifiers
            why = lost = f"{worker} ended unexpectedly (killed, out of memory, or its machine was lost)"
        else:
            why = described(error, 200)
            lost = f"{worker} was lost: {why}"
        self._last, self._why = error, why
        _LOG.info("%s%s", lost, "" if unit is None else "; its images go to another")
        broken = slot.losses >= TRIES and bool(self._others(slot))
        if broken:
            self._say(
                [
                    Said(
                        f"workers{where} ended {TRIES} times in a row and made nothing: no more are started in their "
                        f"place ({why})",
                        notice=True,
                    )
                ]
            )
        self._crew.replace(slot, retire=broken)
        if unit is not None and self._queue is not None:
            queue = self._queue
            whole.refresh()
            reason = f"its worker ended {TRIES} times: {why}"
            self._gave_up(lambda: queue.died(unit, whole.settled(), reason, None if slot.told else slot.number))
        self._startup.lost(slot, ready=ready)

    def _running(self, slot: Slot) -> tuple[Queue, Unit]:
        """The queue, and the unit that a worker runs."""
        assert self._queue is not None
        assert slot.unit is not None
        return self._queue, slot.unit

    def _clear(self, slot: Slot, unit: Unit) -> None:
        """A unit has made an image: where it ended a worker before, the place may be broken, not the unit."""
        slot.losses = 0
        for number in unit.died_on - {slot.number}:
            self._crew.slots[number].losses += 1
        slot.unit = replace(unit, died_on=frozenset())

    def _others(self, slot: Slot) -> set[int]:
        """The places of other workers that are ready."""
        return {other.number for other in self._crew.slots if other.ready and other is not slot}

    def _gave_up(self, change: Callable[[], None]) -> None:
        """Change the queue, and take over the images that it gives up."""
        queue = self._queue
        assert queue is not None
        before = set(queue.given_up)
        change()
        self._whole.give_up({i: reason for i, reason in queue.given_up.items() if i not in before})

    def _say(self, said: list[Said]) -> None:
        """Pass on what workers say, each text once."""
        for one in said:
            if one.text not in self._said:
                self._said.add(one.text)
                say(one)

    # ------------------------------------------------------------------------------- what workers get

    def _hand_out(self) -> None:
        queue, whole = self._queue, self._whole
        if queue is None:
            return
        for slot in self._crew.idle:
            unit = queue.take(whole.settled(), slot.number, self._others(slot))
            if unit is None:
                continue
            slot.unit, slot.told = unit, set()
            self._crew.ask(slot, "run", np.asarray(unit.indices), whole.any)

    # ------------------------------------------------------------------------------- whether it can go on

    def _check_hope(self) -> None:
        queue = self._queue
        if queue is not None and queue.is_hopeless:
            raise self._failed(f"{queue.losses} units ended badly in a row, and no image was made meanwhile")
        if why := self._startup.hopeless:
            raise self._failed(why)

    def _check_all_there(self) -> None:
        """Raise if an image is neither in the folder nor has failed."""
        whole = self._whole
        end = time.monotonic() + SEEN
        while len(whole.unseen()) and time.monotonic() < end:
            time.sleep(0.5)
            whole.refresh()
        lost = len(whole.missing()) + len(whole.unseen())
        if lost:
            raise self._failed(f"{lost:,} images are lost: their units ended, and they are not in the folder")

    def _failed(self, what: str) -> WorkersFailed:
        whole = self._whole
        rest = f"; {whole.rest()}" if whole.wanted else ""
        why = f" ({self._why})" if self._why else ""
        error = WorkersFailed(f"{what}{why}{rest}: the same call makes what is missing")
        error.__cause__ = self._last
        return error
