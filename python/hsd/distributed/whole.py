"""The whole of a run on several workers: its folder, what is made and what has failed, its progress and its record."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..generation.events import Event, Sums, Watcher, telling
from ..generation.failures import FailureReport
from ..generation.folders import Folder, open_folder
from ..generation.options import Options
from ..generation.results import Failure, Run
from ..generation.run_record import record
from ..generation.unit import Told
from ..names import ImageFormat
from ..planning.plan import Plan
from .units import units
from .worker import Loaded


class Whole:
    """What a run is to make, what it has, and who is told.

    Parameters
    ----------
    out, options, image_format
        As for :func:`hsd.generate`.
    watcher, failed
        Who is told.
    alone
        Whether there is one machine only, so that what fails on it fails everywhere.
    wanted
        Images of the plan, if that is known.
    """

    def __init__(
        self,
        out: str,
        options: Options,
        image_format: ImageFormat,
        watcher: Watcher,
        failed: FailureReport | None,
        alone: bool,
        wanted: int = 0,
    ) -> None:
        self.out, self.options, self.image_format = out, options, image_format
        self.watcher, self.alone = watcher, alone
        self.wanted = wanted
        self._tell = telling(watcher, failed)
        self._started = time.perf_counter()
        self._folder: Folder | None = None
        self._plan: Plan | None = None
        self._part: Plan | None = None
        self._facts: dict[str, Any] = {}
        self._todo: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._done: set[int] = set()  # seen in the folder
        self._trusted: set[int] = set()  # a worker has written them
        self._existing = 0
        self._failed: dict[int, Failure] = {}
        self._shown: set[int] = set()
        self._expected = 1  # node-steps of all units
        self._began = 0.0
        self._sums = {"node_steps": 0, "standard": 0, "nsfw": 0, "upcast": 0, "batch_size": 1}
        self._seconds: dict[str, float] = {}

    def open(self, plan: Plan, loaded: Loaded, workers: int) -> list[NDArray[np.int64]]:
        """Open the folder for a plan; returns the units that are to be run, costliest first."""
        folder = open_folder(self.out, plan, loaded.identity, self.image_format)
        self._folder, self._plan, self._facts = folder, plan, loaded.facts
        self._done = set(folder.done())
        self._existing = len(self._done.intersection(plan.kept.tolist()))
        self._todo = np.setdiff1d(plan.kept, np.fromiter(self._done, np.int64, len(self._done)))
        self.wanted = len(plan)
        if not len(self._todo):
            return []
        self._part = plan.prune(self._todo)
        cut = units(self._part, workers)
        self._expected = sum(unit.node_steps for unit in cut)
        self._began = time.perf_counter()
        self.watcher.began(self._part, self._existing, self.out, None)
        return [unit.kept for unit in cut]

    @property
    def notes(self) -> list[str]:
        """What was found in the folder."""
        return [] if self._folder is None else self._folder.report()

    # ------------------------------------------------------------------------------- what is made

    @property
    def any(self) -> bool:
        """Whether any image exists."""
        return bool(self._done or self._trusted)

    def refresh(self) -> None:
        """Ask the folder what is made."""
        assert self._folder is not None
        self._done |= self._folder.refresh()

    def trust(self, indices: Iterable[int]) -> None:
        """Images that a worker has written to the end. A shared folder may show them here a while later."""
        self._trusted.update(indices)

    def unseen(self) -> set[int]:
        """Images of those that the folder does not show yet."""
        return self._trusted - self._done

    def settled(self) -> set[int]:
        """Images that are made or have failed."""
        return self._done | self._trusted | self._failed.keys()

    def missing(self) -> list[int]:
        """Images that are neither made nor have failed; none before the folder is open."""
        settled = self.settled()
        return [i for i in self._todo.tolist() if i not in settled]

    def rest(self) -> str:
        """What is missing, for an error."""
        if self._plan is None:
            return f"none of its {self.wanted:,} images was made"
        return f"{len(self.missing()):,} of {self.wanted:,} images are missing"

    def told(self, told: Told) -> None:
        """Take over what a worker told, and show it."""
        self._sums["node_steps"] += told.node_steps
        self._sums["standard"] += told.standard
        self._sums["nsfw"] += told.nsfw
        self._sums["upcast"] += told.upcast
        self._sums["batch_size"] = told.batch_size
        for name, seconds in told.seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self.fail(told.failed)
        assert self._plan is not None
        for index in told.made:
            if index not in self._shown:
                self._shown.add(index)
                self.watcher.made(self._plan.prompts[index])
        if self.watcher.watches:
            self._show(told)

    def _show(self, told: Told) -> None:
        assert self._part is not None
        sums = Sums(
            self._sums["node_steps"],
            self._sums["standard"],
            told.batch_size,
            {"denoise": time.perf_counter() - self._began, "decode": 0.0},
        )
        fraction = min(1.0, self._sums["node_steps"] / self._expected)
        event = Event("denoise", fraction, self._part, sums, told.node_steps, len(told.made))
        self.watcher.event(event)

    def fail(self, failures: Iterable[Failure]) -> None:
        """Images that cannot be made."""
        for failure in failures:
            if failure.index not in self._failed and failure.index not in self._done:
                self._failed[failure.index] = failure
                self._tell(failure)

    def give_up(self, reasons: Mapping[int, str]) -> None:
        """Images whose unit ended badly each time."""
        plan = self._plan
        assert plan is not None
        self.fail(Failure(i, plan.prompts[i], int(plan.seeds[i]), "denoise", why) for i, why in reasons.items())

    # ------------------------------------------------------------------------------- the end

    def end(self, error: BaseException | None, workers: dict[str, Any]) -> Run | None:
        """Record the run and close the folder; None if it was not opened. ``error`` is what ended the run, if any."""
        folder, plan = self._folder, self._plan
        if folder is None or plan is None:
            return None
        with contextlib.suppress(Exception) if error is not None else contextlib.nullcontext():
            self.refresh()
        made = len((self._done | self._trusted).intersection(self._todo.tolist()))
        self._failed = {index: failure for index, failure in self._failed.items() if index not in self._done}
        run = Run(
            out=folder.path,
            images=made,
            existing=self._existing,
            node_steps=self._sums["node_steps"],
            standard_node_steps=made * plan.n_steps,
            batch_size=self._sums["batch_size"],
            seconds={**self._seconds, "total": time.perf_counter() - self._started},
            plan=self._part or plan,
            failed=tuple(self._failed[index] for index in sorted(self._failed)),
            nsfw=self._sums["nsfw"],
            upcast=self._sums["upcast"],
            repaired=tuple(folder.repaired),
            workers=int(workers["wanted"]),
        )
        document = record(run, plan, self.options, self._facts, error, workers)
        try:
            folder.record_run(document, run.failed)
        finally:
            folder.close()
        run.record.update(document)
        return run
