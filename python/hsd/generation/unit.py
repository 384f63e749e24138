"""Units: parts of one plan that a process with a loaded model runs one after the other."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..models import Adapter
from ..models.identity import image_identity
from ..planning.plan import Plan
from ..planning.rows import alone_from
from .events import Part
from .failures import Failures
from .folders import Writer
from .made import Made
from .options import Options
from .results import Failure
from .session import Session
from .writers import Writers

_PAUSE = 0.25
"""Seconds between two reports, as long as nothing ends."""


@dataclass(frozen=True)
class Told:
    """What a worker tells while it runs a unit: what is new since it told the last one."""

    part: Part
    """What it did last."""
    fraction: float
    """Of the unit's evaluations, 0 to 1."""
    node_steps: int = 0
    """Evaluations of the denoiser."""
    standard: int = 0
    """Evaluations that the images decoded meanwhile need without sharing."""
    made: tuple[int, ...] = ()
    """Images that were written, by index."""
    failed: tuple[Failure, ...] = ()
    nsfw: int = 0
    """How many of the images the model's safety checker made black."""
    upcast: int = 0
    """How many were decoded in float32, because the decoder overflowed in half precision."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time that each part of the run took."""
    batch_size: int = 1


class UnitRunner:
    """Runs units of a plan. The model, its tables and what was encoded stay from one to the next.

    Parameters
    ----------
    plan
        The whole plan, or all that is to be made of it.
    adapter
        The loaded model.
    options
        How it is run. ``keep_forks`` is for runs of one process.

    Attributes
    ----------
    identity
        What the images depend on besides the plan: what a folder is opened with.

    Raises
    ------
    PlanMismatch
        If the plan does not fit the model; before anything is encoded.
    """

    def __init__(self, plan: Plan, adapter: Adapter, options: Options) -> None:
        if options.keep_forks:
            raise ValueError("keep_forks needs a run of one process: leave it out, or run without workers")
        self._plan, self._session = plan, Session(plan, adapter, options)
        self.identity = image_identity(adapter, self._session.samplers.values(), self._session.catch_up)
        self._writer: Writer | None = None

    @property
    def session(self) -> Session:
        """What runs; for the record of a run."""
        return self._session

    def open(self, writer: Writer) -> None:
        """Write images there from now on."""
        self._writer = writer

    def run(self, indices: NDArray[np.int64], *, proven: bool) -> Iterator[Told]:
        """Make the images ``indices``; tells what happens four times a second at most, and at the end.

        It tells while prompts are encoded and after calls of the denoiser.

        Parameters
        ----------
        indices
            Images of the plan, in any order.
        proven
            Whether any image of the whole run exists. If not, the unit ends when its first images all fail.

        Raises
        ------
        FailedImages, OutOfMemory, DeviceFailed, OutputError
            As :func:`hsd.generate` does, after what was made until then was told.
        """
        if self._writer is None:
            raise ValueError("the unit has nowhere to go: call open() first")
        session, part = self._session, self._plan.prune(indices)
        news = _News(session)
        failures = Failures(part, news.fail)
        if proven:
            failures.passed("write")
        made = Made(self._writer, failures)
        before, told = session.node_steps, time.monotonic()
        alone: NDArray[np.int64] | None = None

        def take() -> Told:
            done = session.node_steps - before
            return news.take("denoise" if done else "encode", min(1.0, done / part.node_steps), made)

        try:
            with Writers() as writers:
                for image in session.part(part, failures):
                    if image is not None:
                        if alone is None:
                            alone = alone_from(session.plan)
                        writers.submit(made.write, image, {"alone_from": int(alone[image.index])})
                    elif time.monotonic() - told >= _PAUSE:
                        told = time.monotonic()
                        yield take()
            self._writer.flush()
        except Exception:  # what is made stays, and counts
            with contextlib.suppress(Exception):  # a full disk, where that is what ended the unit
                self._writer.flush()
            yield take()
            raise
        yield news.take("write", 1.0, made)


class _News:
    """What has happened in a session since it was last asked."""

    def __init__(self, session: Session) -> None:
        self._session, self._lock = session, threading.Lock()
        self._failed: list[Failure] = []  # from any thread
        self._made = self._nsfw = self._upcast = 0
        self._node_steps, self._standard = session.node_steps, session.standard_node_steps
        self._seconds = dict(session.seconds)

    def fail(self, failure: Failure) -> None:
        with self._lock:
            self._failed.append(failure)

    def take(self, part: Part, fraction: float, made: Made) -> Told:
        """All that is new."""
        session = self._session
        with self._lock:
            failed, self._failed = tuple(self._failed), []
        indices = tuple(made.indices[self._made :])
        told = Told(
            part,
            fraction,
            session.node_steps - self._node_steps,
            session.standard_node_steps - self._standard,
            indices,
            failed,
            made.nsfw - self._nsfw,
            made.upcast - self._upcast,
            {name: seconds - self._seconds[name] for name, seconds in session.seconds.items()},
            session.batch_size,
        )
        self._made += len(indices)
        self._nsfw, self._upcast = self._nsfw + told.nsfw, self._upcast + told.upcast
        self._node_steps, self._standard = session.node_steps, session.standard_node_steps
        self._seconds = dict(session.seconds)
        return told
