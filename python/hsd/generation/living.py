"""Claims of runs as their files tell of them, and which of them live: see :mod:`.claims`."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from ..work.files import read_own, regular
from ..work.hosts import boot, host
from ..work.locks import Unsupported, is_locked
from ..work.reading import is_number, parse_json

PREFIX = ".hsd.claim-"

LEASE = 60.0
"""Seconds for which a claim of another host lives after its holder has touched it. That happens four times as often."""

SURE = b"\n"
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


def living(folder: Path) -> list[Claim]:
    """Claims of processes that still live, stopped ones included."""
    now = _Now(folder)
    claims = [_parsed(path) for path in _files(folder) if _is_held(path, now)]
    return [claim for claim in claims if claim is not None]


def remove_stale(folder: Path) -> None:
    """Remove the claims of runs that have ended."""
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
    if is_near(content):
        return not locks and lives(content)
    return isinstance(content.get("host"), str) and status is not None and now() - status.st_mtime < LEASE


def is_near(content: dict[str, Any]) -> bool:
    """Whether a claim is of this machine since its start: there, numbers of processes and locks can be believed."""
    return content.get("host") == host() and content.get("boot", boot()) == boot()


def _read(path: Path) -> dict[str, Any]:
    try:
        data = read_own(path) or b""
        content = parse_json(data)
    except (OSError, ValueError):
        return {}
    # Claims of earlier versions do not say when they began, and end without a line feed.
    return {"sure": "begun" not in content or data.endswith(SURE), **content} if isinstance(content, dict) else {}


def _parsed(path: Path) -> Claim | None:
    """What a claim says; None if it is given up at this moment."""
    content, status = _read(path), regular(path)
    if status is None:
        return None
    return claim_of(path.name, content, status.st_mtime)


def claim_of(name: str, content: dict[str, Any], changed: float) -> Claim:
    """The claim that a file with this name has, which was last written at ``changed``."""
    begun = changed
    if is_number(content.get("begun")):
        begun = min(begun, float(content["begun"]))
    try:
        ranges = tuple((int(first), int(end)) for first, end in content["prompts"])
        pid, of_host, since = int(content["pid"]), str(content["host"]), str(content["since"])
        return Claim(name, pid, of_host, since, ranges, begun, is_near(content), bool(content["sure"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return Claim(name, None, "", "", None, begun)


def started(pid: int) -> float | None:
    """When a process began: with it, a number that the system gave to another process is not taken for the first."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def lives(content: dict[str, Any]) -> bool:
    """Whether the process of a claim of this machine lives, where the file system has no locks."""
    pid, then = content.get("pid"), content.get("started")
    if not isinstance(pid, int):
        return True
    now = started(pid)
    return now is not None and (not isinstance(then, float) or abs(now - then) < 2.0)
