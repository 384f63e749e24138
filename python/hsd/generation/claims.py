"""Claims: while a run writes to a folder, no other run makes the same images.

A claim is a file in the folder that its process keeps locked, so it ends with the process, however that ends; what a
killed one leaves is removed by the next run. A stopped process still holds its claim. Runs whose prompts are disjoint,
as those of :meth:`Plan.shard` are, work side by side.

A lock may not reach other hosts, though it seems to work. So a claim of another host also lives while its file is
younger than a lease: its holder touches it. Ages are differences between times of the file server, since the clocks of
hosts differ. A claim saves double work and nothing depends on it: an image that two runs make has one line.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
import weakref
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from ..work.files import regular
from ..work.hosts import boot, host
from ..work.locks import Lock, Unsupported
from .living import LEASE, PREFIX, SURE, Claim, living, remove_stale, started

__all__ = ["LEASE", "PREFIX", "Claim", "Held", "living", "refuse", "take"]

_ASKED = 5.0
"""Seconds in which everyone has finished asking whether a new claim is held."""

_TRIES = 20
"""Attempts to write a claim."""

_SETTLED = 5.0
"""Seconds in which of two runs that claim the same images at the same moment, one has given way."""


class Held:
    """The claim of this run, until :meth:`release`.

    Parameters
    ----------
    lock
        The lock on its file, which is held where there are locks.
    path
        Its file.
    """

    def __init__(self, lock: Lock, path: Path) -> None:
        self._lock: Lock | None = lock
        self._path = path
        self.begun = os.stat(path).st_mtime
        """When it began, by the clock of the file system."""
        self._touched = [time.time()]
        stop = threading.Event()
        self._stopped = weakref.finalize(self, stop.set)
        threading.Thread(target=_touch, args=(path, stop, self._touched), name="hsd-claim", daemon=True).start()

    def is_there(self) -> bool:
        """Whether its file is still in the folder."""
        return regular(self._path) is not None

    def lapsed(self) -> bool:
        """Whether other hosts may have taken it for dead: this process, or its machine, was stopped for a while."""
        return time.time() - self._touched[0] > LEASE

    def others(self) -> list[Claim]:
        """Claims of other runs that live."""
        return [claim for claim in living(self._path.parent) if claim.name != self._path.name]

    def settle(self, prompts: NDArray[np.int64]) -> list[Claim]:
        """Look whether another run has claimed the same at the same moment; returns all other claims.

        Both have written their claims before they look, so at least one of them sees the other, and gives way to the
        one with the lower name, or to one that has looked already.
        """
        end = time.monotonic() + _SETTLED
        while True:
            others = self.others()
            rivals = [claim for claim in others if claim.overlap(prompts)]
            if not rivals:
                with open(self._path, "ab") as file:
                    file.write(SURE)
                return others
            if time.monotonic() > end or any(one.sure or one.name < self._path.name for one in rivals):
                refuse_others(self._path.parent, prompts, rivals)
            time.sleep(0.01)

    def release(self) -> None:
        """Give the prompts up. May be called again; does nothing then."""
        self._stopped()
        lock, self._lock = self._lock, None
        if lock is not None:
            # First the name, then the lock: no one takes over a claim that is about to be removed.
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            lock.release()
            with contextlib.suppress(OSError):
                os.unlink(self._path)  # on Windows it can be removed only when it is closed


def _touch(path: Path, stop: threading.Event, touched: list[float]) -> None:
    """Keep a claim alive for other hosts."""
    while not stop.wait(LEASE / 4):
        with contextlib.suppress(OSError):  # a server that is away for a moment
            os.utime(path)
            touched[0] = time.time()


def take(folder: Path, prompts: NDArray[np.int64]) -> tuple[Held, list[Claim]]:
    """Claim prompts of a folder whose lock is held; returns the claim and those of other runs.

    Raises
    ------
    OutputError
        If a run that still lives claims some of them. Names it.
    """
    refuse_others(folder, prompts, living(folder))
    remove_stale(folder)
    held = _renewed(folder, prompts)
    try:
        return held, held.settle(prompts)
    except BaseException:
        held.release()
        raise


def _renewed(folder: Path, prompts: NDArray[np.int64]) -> Held:
    """A new claim, written again if a run on another host takes it for a leftover before it has its name."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):
            return _written(folder, prompts)
    return _written(folder, prompts)


def _written(folder: Path, prompts: NDArray[np.int64]) -> Held:
    """A new claim. Its file is complete when it has its name; not on Windows, where an open file keeps its name."""
    path = folder / f"{PREFIX}{secrets.token_hex(8)}"
    hidden = path if os.name == "nt" else folder / f".hsd.new.{secrets.token_hex(8)}.tmp"
    lock = Lock(hidden)
    try:
        with contextlib.suppress(Unsupported):  # then whether its process lives is asked by its number
            if not lock.acquire(_ASKED):
                raise OutputError(f"{hidden} is new, and locked by another process: run the same call again")
        with open(hidden, "r+b" if lock.handle is not None else "wb") as file:
            file.write(json.dumps(content_of(prompts, os.fstat(file.fileno()).st_mtime)).encode())
        if hidden != path:
            os.rename(hidden, path)
    except BaseException:
        lock.release()
        with contextlib.suppress(OSError):
            os.unlink(hidden)
        raise
    return Held(lock, path)


def content_of(prompts: NDArray[np.int64], begun: float) -> dict[str, Any]:
    """What a claim of this process says; ``begun`` is the time by the clock of the place where it is."""
    return {
        "pid": os.getpid(),
        "host": host(),
        "boot": boot(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "started": started(os.getpid()),
        "begun": begun,
        "prompts": _ranges(prompts),
    }


def refuse(folder: Path, prompts: NDArray[np.int64]) -> None:
    """As :func:`take`, but only raise: without the folder's lock, which a stopped run may hold."""
    if os.name != "nt":  # where asking for a lock takes it
        refuse_others(folder, prompts, [claim for claim in living(folder) if claim.ranges is not None])


def refuse_others(folder: Path | str, prompts: NDArray[np.int64], others: list[Claim]) -> None:
    """Raise ``OutputError`` if one of ``others`` claims some of ``prompts`` of a folder, or of a URL."""
    for other in others:
        common = other.overlap(prompts)
        if common:
            kill = f" (kill {other.pid})" if other.near and other.pid not in (None, os.getpid()) else ""
            far = "" if other.near else f" (if it was killed: {LEASE:.0f} seconds after that)"
            raise OutputError(
                f"{folder} is in use by {other}: it makes {common:,} of the {len(prompts):,} images of this run. Wait "
                f"until it ends{far} or end it{kill}, then run the same call again; runs at the same time need "
                "disjoint parts of the plan (Plan.shard) or separate folders"
            )


def _ranges(prompts: NDArray[np.int64]) -> list[list[int]]:
    """Half-open ranges that hold ascending indices and no others."""
    if not len(prompts):
        return []
    breaks = np.flatnonzero(np.diff(prompts) != 1) + 1
    return [[int(part[0]), int(part[-1]) + 1] for part in np.split(prompts, breaks)]
