"""Claims in object stores: while a run writes to a URL, no other run makes the same images.

A claim is a file in ``__claims__`` that its holder writes again four times in a lease. It lives while it is younger
than that, by the clock of the store. The claim of a process of this machine ends with the process. As on a disk, a
claim saves double work, and no image depends on it: see :mod:`.claims`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from ..work.hosts import host_in_names
from ..work.objects import Objects
from ..work.reading import parse_json
from .claims import content_of, refuse_others
from .living import LEASE, Claim, claim_of, is_near, lives

CLAIMS = "__claims__"
"""The folder of the claims. ``datasets`` passes over such a name."""

_SETTLED = 5.0
"""Seconds in which of two runs that claim the same images at the same moment, one has given way."""

_HELD: set[str] = set()
"""Claims of this process."""


class StoreClaim:
    """The claim of this run, until :meth:`release`.

    Parameters
    ----------
    objects
        The folder.
    prompts
        Indices of the prompts.
    """

    def __init__(self, objects: Objects, prompts: NDArray[np.int64]) -> None:
        self.name = f"{CLAIMS}/{host_in_names()}-{secrets.token_hex(8)}.json"
        self._objects, self._prompts = objects, prompts
        self._content = {**content_of(prompts, time.time()), "sure": False}
        _HELD.add(self.name)
        stop = threading.Event()
        self._stopped = weakref.finalize(self, _forget, self.name, stop)
        self._writing = threading.Lock()
        self._write()
        arguments = objects, self.name, self._content, stop, self._writing
        threading.Thread(target=_touch, args=arguments, name="hsd-claim", daemon=True).start()

    def others(self) -> list[Claim]:
        """Claims of other runs that live. What others have left is removed."""
        names = [name for name in self._objects.sizes_below(CLAIMS) if name != self.name]
        now = self._objects.changed(self.name) if names else 0.0
        if now is None:  # someone took this process for dead
            self._write()
            return self.others()
        found, stale = [], []
        for name, data in self._objects.get_all(names).items():
            content = _parsed(data)
            changed = self._objects.changed(name)
            if changed is None:
                continue  # given up at this moment
            if _is_held(name, content, now - changed):
                found.append(claim_of(name, content, changed))
            else:
                stale.append(name)
        self._objects.remove(stale)
        return found

    def settle(self) -> list[Claim]:
        """Raise ``OutputError`` if another run claims some of these images; returns all other claims.

        Of two that claim at the same moment, both have written their claims before they look, so at least one sees the
        other. It gives way to a lower name, and to one that has looked already.
        """
        end = time.monotonic() + _SETTLED
        while True:
            others = self.others()
            rivals = [claim for claim in others if claim.overlap(self._prompts)]
            if not rivals:
                self._content["sure"] = True
                self._write()
                return others
            if time.monotonic() > end or any(one.sure or one.name < self.name for one in rivals):
                refuse_others(self._objects.url, self._prompts, rivals)
            time.sleep(0.05)

    def release(self) -> None:
        """Give the prompts up. May be called again; does nothing then."""
        if self._stopped() is not None:
            with contextlib.suppress(OutputError), self._writing:  # else it ends with its lease
                self._objects.remove([self.name])

    def _write(self) -> None:
        self._objects.put(self.name, json.dumps(self._content).encode())


def take(objects: Objects, prompts: NDArray[np.int64]) -> tuple[StoreClaim, list[Claim]]:
    """Claim prompts; returns the claim and those of other runs.

    Raises
    ------
    OutputError
        If a run that still lives claims some of them, which it names; or if the store cannot be written to.
    """
    held = StoreClaim(objects, prompts)
    try:
        return held, held.settle()
    except BaseException:
        held.release()
        raise


def _touch(
    objects: Objects, name: str, content: dict[str, Any], stop: threading.Event, writing: threading.Lock
) -> None:
    """Keep a claim alive."""
    while not stop.wait(LEASE / 4):
        with contextlib.suppress(OutputError), writing:  # a store that is away for a moment
            if not stop.is_set():  # else it may be removed already
                objects.put(name, json.dumps(content).encode())


def _forget(name: str, stop: threading.Event) -> bool:
    stop.set()
    _HELD.discard(name)
    return True


def _is_held(name: str, content: dict[str, Any], age: float) -> bool:
    if is_near(content):
        return name in _HELD if content.get("pid") == os.getpid() else lives(content)
    return age < LEASE


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        content = parse_json(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
