"""Claims: while a run writes to a folder, no other run makes the same images.

A claim is a file in the folder that its process keeps locked, so it ends with the process, however that ends; what a
killed one leaves is removed by the next run. A stopped process still holds its claim. Runs whose prompts are disjoint,
as those of :meth:`Plan.shard` are, work side by side.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from ..errors import OutputError
from ..work.files import regular
from ..work.locks import Lock, Unsupported, is_locked

PREFIX = ".hsd.claim-"

_ASKED = 5.0
"""Seconds in which everyone has finished asking whether a new claim is held."""


@dataclass(frozen=True)
class Claim:
    """A claim of another run, as its file says. What cannot be read claims everything."""

    pid: int | None
    host: str
    since: str
    ranges: tuple[tuple[int, int], ...] | None
    """Half-open ranges of the indices of its prompts."""
    begun: float
    """When its file was last changed, by the clock of the file system."""

    def overlap(self, prompts: NDArray[np.int64]) -> int:
        """How many of ``prompts`` it claims."""
        if self.ranges is None:
            return len(prompts)
        return sum(int(((prompts >= begin) & (prompts < end)).sum()) for begin, end in self.ranges)

    def __str__(self) -> str:
        if self.pid is None:
            return "another process"
        mine = self.pid == os.getpid() and self.host == socket.gethostname()
        who = "another run of this process" if mine else "process"
        return f"{who} {self.pid} on {self.host}, since {self.since}"


class Held:
    """The claim of this run, until :meth:`release`."""

    def __init__(self, lock: Lock | None, path: Path) -> None:
        self._lock, self._path = lock, path

    def release(self) -> None:
        """Give the prompts up. May be called again; does nothing then."""
        lock, self._lock = self._lock, None
        if lock is not None:
            # First the name, then the lock: no one takes over a claim that is about to be removed.
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            lock.release()
            with contextlib.suppress(OSError):
                os.unlink(self._path)  # on Windows it can be removed only when it is closed


def take(folder: Path, prompts: NDArray[np.int64]) -> tuple[Held, list[Claim]]:
    """Claim prompts of a folder whose lock is held; returns the claim and those of other runs.

    Raises
    ------
    OutputError
        If a run that still lives claims some of them. Names it.
    """
    others = living(folder)
    _refuse(folder, prompts, others)
    _remove_stale(folder)
    path = folder / f"{PREFIX}{secrets.token_hex(8)}"
    content = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "started": _started(os.getpid()),
        "prompts": _ranges(prompts),
    }
    lock = Lock(path)
    held = Held(lock, path)
    try:
        with contextlib.suppress(Unsupported):  # then whether its process lives is asked by its number
            if not lock.acquire(_ASKED):
                raise OutputError(f"{path} is new, and locked by another process: run the same call again")
        with open(path, "r+b" if lock.handle is not None else "wb") as file:
            file.write(json.dumps(content).encode())
    except BaseException:
        held.release()
        raise
    return held, others


def refuse(folder: Path, prompts: NDArray[np.int64]) -> None:
    """As :func:`take`, but only raise: without the folder's lock, which a stopped run may hold."""
    if os.name != "nt":  # where asking for a lock takes it
        _refuse(folder, prompts, [claim for claim in living(folder) if claim.ranges is not None])


def _refuse(folder: Path, prompts: NDArray[np.int64], others: list[Claim]) -> None:
    for other in others:
        common = other.overlap(prompts)
        if common:
            kill = f" (kill {other.pid})" if other.pid not in (None, os.getpid()) else ""
            raise OutputError(
                f"{folder} is in use by {other}: it makes {common:,} of the {len(prompts):,} images of this run. Wait "
                f"until it ends or end it{kill}, then run the same call again; runs at the same time need disjoint "
                "parts of the plan (Plan.shard) or separate folders"
            )


def living(folder: Path) -> list[Claim]:
    """Claims of processes that still live, stopped ones included."""
    return [_parsed(path) for path in _files(folder) if _is_held(path)]


def _remove_stale(folder: Path) -> None:
    for path in _files(folder):
        if not _is_held(path):
            with contextlib.suppress(OSError):
                os.unlink(path)


def _files(folder: Path) -> list[Path]:
    # Not glob, which would read special characters in the folder's name.
    names = sorted(name for name in os.listdir(folder) if name.startswith(PREFIX))
    return [folder / name for name in names if regular(folder / name) is not None]


def _is_held(path: Path) -> bool:
    try:
        return is_locked(path)
    except Unsupported:
        return _lives(_read(path))
    except FileNotFoundError:  # released meanwhile
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _parsed(path: Path) -> Claim:
    content = _read(path)
    status = regular(path)
    begun = 0.0 if status is None else status.st_mtime
    try:
        ranges = tuple((int(begin), int(end)) for begin, end in content["prompts"])
        return Claim(int(content["pid"]), str(content["host"]), str(content["since"]), ranges, begun)
    except (KeyError, TypeError, ValueError, OverflowError):
        return Claim(None, "", "", None, begun)


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
    """Whether the process of a claim lives, where the file system has no locks; of another host it is not known."""
    pid, host, started = (content.get(name) for name in ("pid", "host", "started"))
    if not isinstance(pid, int) or host != socket.gethostname():
        return isinstance(host, str)
    now = _started(pid)
    return now is not None and (not isinstance(started, float) or abs(now - started) < 2.0)
