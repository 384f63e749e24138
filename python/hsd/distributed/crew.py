"""The actors of a run: started, asked, watched and replaced. What they answer is for the driver to judge.

An actor is never restarted by Ray (``max_restarts=0``): Ray does not do so after a constructor that failed, never ends
for a model that ends its process, and hides what happened.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .queue import TRIES, Unit
from .worker import Place, Worker

_ASK = 1.0
"""Seconds that are waited for an answer, at most."""

_CLOSE = 5.0
"""Seconds that workers have to close their files at the end."""

_STREAMS = ("plan", "run")
"""Methods that answer more than once."""


@dataclass(eq=False)
class Slot:
    """The place of one worker; when the worker ends, another one takes it."""

    number: int
    actor: Any = None
    pending: Any = None
    """What it was asked: an ``ObjectRef``, or an ``ObjectRefGenerator`` for a stream."""
    doing: str = ""
    """The method that was called; empty: it waits for work."""
    place: Place | None = None
    unit: Unit | None = None
    told: set[int] = field(default_factory=set)
    """Images of the unit that it has told of."""
    ready: bool = False
    """Whether it can run units."""
    losses: int = 0
    """Units that ended the worker here before their first image, and that others could make; since an image was made
    here.
    """
    since: float = field(default_factory=time.monotonic)
    """When it gave the last sign of life."""


@dataclass(frozen=True)
class Answer:
    """What came from a worker."""

    slot: Slot
    doing: str
    value: Any = None
    ended: bool = False
    """Of a stream: nothing more comes."""
    died: Exception | None = None
    """The worker has ended."""


class Crew:
    """The workers of a run.

    Parameters
    ----------
    ray
        The package, connected.
    workers
        How many to start.
    needs
        Options of an actor: ``num_cpus``, ``num_gpus``.

    Attributes
    ----------
    started, lost
        How many workers began to load a model, and how many of all ended before the run did.
    failed_on
        Workers that ended before they were ready, since the last that became so, by node.
    """

    def __init__(self, ray: Any, workers: int, needs: dict[str, float]) -> None:
        self._ray, self._needs = ray, needs
        self._class = ray.remote(Worker)
        self.slots = [Slot(number) for number in range(workers)]
        self.started = self.lost = 0
        self.failed_on: dict[str, int] = {}
        for slot in self.slots:
            self._start(slot)

    def _start(self, slot: Slot) -> None:
        options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, **self._needs}
        avoided = [node for node, failures in self.failed_on.items() if failures >= TRIES]
        if avoided:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(avoided)})"}
        slot.actor = self._class.options(**options).remote()
        self.ask(slot, "where")

    def ask(self, slot: Slot, method: str, *args: Any) -> None:
        """Call a method of a worker; its answer comes from :meth:`answers`."""
        call = getattr(slot.actor, method)
        slot.pending = (call.options(num_returns="streaming") if method in _STREAMS else call).remote(*args)
        slot.doing, slot.since = method, time.monotonic()

    def answers(self) -> Iterator[Answer]:
        """What has come, after a second at most."""
        pending = {slot.pending: slot for slot in self.slots if slot.pending is not None}
        if not pending:
            time.sleep(_ASK / 10)
            return
        some, _ = self._ray.wait(list(pending), num_returns=1, timeout=_ASK, fetch_local=False)
        if not some:
            return
        every, _ = self._ray.wait(list(pending), num_returns=len(pending), timeout=0, fetch_local=False)
        for one in every:
            yield self._answer(pending[one])

    def _answer(self, slot: Slot) -> Answer:
        from ray.exceptions import RayError

        doing, slot.since = slot.doing, time.monotonic()
        try:
            value = self._ray.get(next(slot.pending) if doing in _STREAMS else slot.pending)
        except StopIteration:
            self.finished(slot)
            return Answer(slot, doing, ended=True)
        except RayError as error:  # it died, or cannot be reached: then its call may still run
            # Its traceback would keep references. Ray gives the same numbers again in its next session, in which the
            # end of an old reference ends what a new one names.
            return Answer(slot, doing, died=error.with_traceback(None))
        if doing not in _STREAMS:
            self.finished(slot)
        if doing == "where":
            slot.place = value
            self.started += 1
        return Answer(slot, doing, value)

    def finished(self, slot: Slot) -> None:
        """Listen no more to what a worker was asked: it waits for work."""
        slot.pending, slot.doing = None, ""

    def silent(self, seconds: float) -> list[Slot]:
        """Workers that do something and have given no sign of life for so long. One that has no place yet may wait."""
        now = time.monotonic()
        return [slot for slot in self.slots if slot.doing not in ("", "where") and now - slot.since > seconds]

    def replace(self, slot: Slot, *, retire: bool = False) -> None:
        """End a worker, and start another unless its place is given up (``retire``). That it was never ready is charged
        to its machine.
        """
        self._kill(slot)
        self.lost += 1
        if not slot.ready and slot.place is not None:
            self.failed_on[slot.place.node] = self.failed_on.get(slot.place.node, 0) + 1
        slot.place, slot.unit, slot.ready = None, None, False
        if not retire:
            self._start(slot)

    def worked(self, slot: Slot) -> None:
        """It is ready, so nothing is wrong with its machine."""
        if slot.place is not None:
            self.failed_on.pop(slot.place.node, None)

    @property
    def idle(self) -> list[Slot]:
        """Workers that wait for a unit."""
        return [slot for slot in self.slots if slot.ready and slot.pending is None]

    @property
    def alive(self) -> int:
        """Workers that can run units, or do."""
        return sum(slot.ready for slot in self.slots)

    @property
    def nodes_left(self) -> bool:
        """Whether there is a machine on which loading has not failed too often."""
        alive = [node for node in self._ray.nodes() if node["Alive"]]
        kind = "GPU" if "num_gpus" in self._needs else "CPU"
        able = [node for node in alive if node["Resources"].get(kind, 0) >= self._needs[f"num_{kind.lower()}s"]]
        return any(self.failed_on.get(node["NodeID"], 0) < TRIES for node in able)

    @property
    def resources(self) -> dict[str, float]:
        """What workers need, as far as the cluster has it."""
        return {name: value for name, value in self._ray.cluster_resources().items() if name in ("CPU", "GPU")}

    def close(self) -> None:
        """End all workers, and keep no reference to anything of Ray.

        Those that wait for work close their files first: a process that is killed holds its locks for a moment longer,
        and what it holds cannot be joined.
        """
        with contextlib.suppress(Exception):  # Ray may be gone
            closing = [slot.actor.close.remote() for slot in self.idle]
            if closing:
                self._ray.wait(closing, num_returns=len(closing), timeout=_CLOSE, fetch_local=False)
        for slot in self.slots:
            self._kill(slot)

    def _kill(self, slot: Slot) -> None:
        if slot.actor is not None:
            self._ray.kill(slot.actor, no_restart=True)
        slot.actor = None
        self.finished(slot)
