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
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from ..errors import OutputError
from ..work.files import read_own, regular
from ..work.hosts import boot, host
from ..work.locks import Lock, Unsupported, is_locked
from ..work.reading import parse_json

PREFIX = ".hsd.claim-"

LEASE = 60.0
"""Seconds for which a claim of another host lives after its holder has touched it. That happens four times as often."""

_ASKED = 5.0
"""Seconds in which everyone has finished asking whether a new claim is held."""

_SETTLED = 5.0
"""Seconds in which of two runs that claim the same images at the same moment, one has given way."""

_SURE = b"\n"
"""What ends the file of a claim that has prevailed over those that were made at the same moment."""


@dataclass(frozen=True)
class Claim:
    """A claim of another run, as its file says. What cannot be read claims everything."""

    name: str
    """Of its file."""
    pid: int | None
    host: str
    since: str
    ranges: tuple[tuple[int, int], ...] | None
    """Half-open ranges of the indices of its prompts."""
    begun: float
    """When it began, by the clock of the file system."""
    near: bool = True
    """Whether it is of this machine, so that its lock says whether its process lives."""
    sure: bool = True
    """Whether it has prevailed over those that were made at the same moment."""

    def overlap(self, prompts: NDArray[np.int64]) -> int:
        """How many of ``prompts`` it claims."""
        if self.ranges is None:
            return len(prompts)
        return sum(int(((prompts >= begin) & (prompts < end)).sum()) for begin, end in self.ranges)

    def __str__(self) -> str:
        if self.pid is None:
            return "another process"
        mine = self.pid == os.getpid() and self.near
        who = "another run of this process" if mine else "process"
        return f"{who} {self.pid} on {self.host}, since {self.since}"


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
                    file.write(_SURE)
                return others
            if time.monotonic() > end or any(one.sure or one.name < self._path.name for one in rivals):
                _refuse(self._path.parent, prompts, rivals)
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
    _refuse(folder, prompts, living(folder))
    _remove_stale(folder)
    held = _written(folder, prompts)
    try:
        return held, held.settle(prompts)
    except BaseException:
        held.release()
        raise


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
            file.write(json.dumps(_content(prompts, os.fstat(file.fileno()).st_mtime)).encode())
        if hidden != path:
            os.rename(hidden, path)
    except BaseException:
        lock.release()
        with contextlib.suppress(OSError):
            os.unlink(hidden)
        raise
    return Held(lock, path)


def _content(prompts: NDArray[np.int64], begun: float) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": host(),
        "boot": boot(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "started": _started(os.getpid()),
        "begun": begun,
        "prompts": _ranges(prompts),
    }


def refuse(folder: Path, prompts: NDArray[np.int64]) -> None:
    """As :func:`take`, but only raise: without the folder's lock, which a stopped run may hold."""
    if os.name != "nt":  # where asking for a lock takes it
        _refuse(folder, prompts, [claim for claim in living(folder) if claim.ranges is not None])


def _refuse(folder: Path, prompts: NDArray[np.int64], others: list[Claim]) -> None:
    for other in others:
        common = other.overlap(prompts)
        if common:
            kill = f" (kill {other.pid})" if other.near and other.pid not in (None, os.getpid()) else ""
            far = "" if other.near else f" (if it was killed: {LEASE:.0f} seconds after that)"
            raise OutputError(
                f"{folder} is in use by {other}: it makes {common:,} of the {len(prompts):,} images of this run. Wait "
                f"until it ends{far} or end it{kill}, then run the same call again; runs at the same time need disjoint "
                "parts of the plan (Plan.shard) or separate folders"
            )


def living(folder: Path) -> list[Claim]:
    """Claims of processes that still live, stopped ones included."""
    now = _Now(folder)
    return [_parsed(path) for path in _files(folder) if _is_held(path, now)]


def _remove_stale(folder: Path) -> None:
    now = _Now(folder)
    for path in _files(folder):
        if not _is_held(path, now):
            with contextlib.suppress(OSError):
                os.unlink(path)


class _Now:
    """The time by the clock of the file server, asked once and only if it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._time = folder, 0.0

    def __call__(self) -> float:
        if not self._time:
            self._time = _server_time(self._folder)
        return self._time


def _server_time(folder: Path) -> float:
    """The time that a new file gets; that of this host where no file can be written."""
    path = folder / f".hsd.clock.{secrets.token_hex(8)}.tmp"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError:
        return time.time()
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            os.unlink(path)


def _files(folder: Path) -> list[Path]:
    # Not glob, which would read special characters in the folder's name.
    names = sorted(name for name in os.listdir(folder) if name.startswith(PREFIX))
    return [folder / name for name in names if regular(folder / name) is not None]


def _is_held(path: Path, now: Callable[[], float]) -> bool:
    try:
        if is_locked(path):
            return True
        locks = True
    except Unsupported:
        locks = False
    except FileNotFoundError:  # released meanwhile
        return False
    content, status = _read(path), regular(path)
    if _is_near(content):
        return not locks and _lives(content)
    return isinstance(content.get("host"), str) and status is not None and now() - status.st_mtime < LEASE


def _is_near(content: dict[str, Any]) -> bool:
    """Whether a claim is of this machine since its start: there, numbers of processes and locks can be believed."""
    return content.get("host") == host() and content.get("boot", boot()) == boot()


def _read(path: Path) -> dict[str, Any]:
    try:
        data = read_own(path) or b""
        content = parse_json(data)
    except (OSError, ValueError):
        return {}
    # Claims of earlier versions do not say when they began, and end without a line feed.
    return {"sure": "begun" not in content or data.endswith(_SURE), **content} if isinstance(content, dict) else {}


def _parsed(path: Path) -> Claim:
    content, status = _read(path), regular(path)
    begun = 0.0 if status is None else status.st_mtime
    try:
        ranges = tuple((int(first), int(end)) for first, end in content["prompts"])
        pid, name, since = int(content["pid"]), str(content["host"]), str(content["since"])
        begun = float(content.get("begun", begun))
        return Claim(path.name, pid, name, since, ranges, begun, _is_near(content), bool(content["sure"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return Claim(path.name, None, "", "", None, begun)


def _ranges(prompts: NDArray[np.int64]) -> list[list[int]]:
    """Half-open ranges that hold ascending indices and no others."""
    if not len(prompts):
        return []
    breaks = np.flatnonzero(np.diff(prompts) != 1) + 1
    return [[int(part[0]), int(part[-1]) + 1] for part in np.split(prompts, breaks)]


def _started(pid: int) -> float | None:
    """When a process began: with it, a number that the system gave to another process is not taken for the first."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _lives(content: dict[str, Any]) -> bool:
    """Whether the process of a claim of this machine lives, where the file system has no locks."""
    pid, started = content.get("pid"), content.get("started")
    if not isinstance(pid, int):
        return True
    now = _started(pid)
    return now is not None and (not isinstance(started, float) or abs(now - started) < 2.0)
