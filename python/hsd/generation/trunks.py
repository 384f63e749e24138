"""Trunks of a folder of images: the states in which its clusters split, for a later run that has more prompts.

They are in a folder of their own beside the images, some in each file. Nothing depends on them: what is missing or
damaged is computed again, and the images are the same.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import Notice
from ..replay.trunks import Trunk
from ..work import files
from ..work.faults import described
from .living import living
from .trunk_blocks import HEADER_BYTES, KEY, check_shapes, encoded, most_bytes, read_keys, read_trunk, shapes

TRUNKS = "__trunks__"
"""The folder's name. ``datasets`` passes over names that begin with two underscores."""

_MOST_ROWS = 64
_MOST_BYTES = 32 << 20
"""A block is written when it has so many trunks or bytes: a killed run loses few, and no folder has too many files."""

_MOST_WAITING = 256 << 20
"""Bytes of trunks that wait for a thread. Above, blocks are written by who keeps them: a slow disk fills no memory."""

_NAME = re.compile(r"block-[0-9a-f]{16}\.safetensors")


@dataclass
class _Block:
    """Trunks that are written together, and the bytes that are reserved for them."""

    rows: list[tuple[str, Trunk]] = field(default_factory=list)
    reserved: int = 0


class TrunkFolder:
    """Reads and writes the trunks of a folder of images. Several threads may use it.

    Parameters
    ----------
    out
        The folder of images.
    submit
        Called with a task and its arguments for each block to be written: :meth:`Writers.submit`. None: it is written
        at once.
    budget
        The most bytes that the blocks may have together; with 0 nothing is written, and no folder is made.

    Attributes
    ----------
    used
        Bytes of the blocks, whoever wrote them; not of what is not yet written.
    written
        Trunks that were written by this object.
    """

    def __init__(self, out: Path, submit: Callable[..., object] | None = None, budget: int = 0) -> None:
        self.used = self.written = 0
        self._path, self._submit, self._budget = out / TRUNKS, submit, budget
        self._mutex = threading.Lock()
        self._sizes: dict[str, int] = {}
        """By name, bytes of each block, also of those that cannot be read."""
        self._places: dict[str, list[str]] = {}
        """By key, names of the blocks that hold the trunk."""
        self._block = _Block()  # which is filled
        self._pending: set[str] = set()
        """Keys of trunks that are kept and not yet written."""
        self._reserved = 0
        """Bytes of those."""
        self._unreadable: list[str] = []
        self._damaged: list[str] = []
        self._lost: list[str] = []
        """One reason for each block that cannot be read, for each trunk that is damaged, and for each that is lost."""
        if not self._path.is_symlink():
            self._scan()
            if budget > 0 and self._path.is_dir():
                self._remove_leftovers()

    def _scan(self) -> None:
        try:
            names = sorted(name for name in os.listdir(self._path) if _NAME.fullmatch(name))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._unreadable.append(described(error))
            return
        for name in names:
            status = files.regular(self._path / name)
            if status is None:
                continue
            self._count(name, status.st_size)
            try:
                keys = read_keys(self._path / name)
            except Exception as error:  # a file from anywhere, on a disk that may be broken: no reason to end a run
                self._unreadable.append(f"{name}: {described(error)}")
                continue
            self._add(name, keys)

    def _count(self, name: str, size: int) -> None:
        self.used += size - self._sizes.get(name, 0)
        self._sizes[name] = size

    def _add(self, name: str, keys: list[str]) -> None:
        for key in keys:
            places = self._places.setdefault(key, [])
            if name not in places:
                places.append(name)

    def _remove_leftovers(self) -> None:
        """A run that lives may still write files that are newer than its begin."""
        with contextlib.suppress(OSError):  # they take some space, and are passed over
            begun = [claim.begun for claim in living(self._path.parent)]
            files.remove_leftovers(self._path, min([time.time(), *begun]))

    def __contains__(self, key: str) -> bool:
        """Whether a block holds the trunk, as far as is known: :meth:`read` may find that it is damaged."""
        with self._mutex:
            return key in self._places

    def read(self, key: str) -> Trunk | None:
        """The trunk as it was written; None if there is none, or if it is damaged or gone."""
        while True:
            with self._mutex:
                places = self._places.get(key)
                if not places:
                    return None
                name = places[0]
            try:
                return read_trunk(self._path / name, key)
            except Exception as error:  # as in _scan
                with self._mutex:
                    self._damaged.append(f"{name}: {described(error)}")
                    self._forget(key, name)

    def _forget(self, key: str, name: str) -> None:
        places = [place for place in self._places.get(key, ()) if place != name]
        if places:
            self._places[key] = places
        else:
            self._places.pop(key, None)

    def keep(self, key: str, trunk: Trunk) -> None:
        """Write a trunk, with others: when a block is full. One that is there, or that has no room, is left out.

        It is copied, so its tensors may change afterwards.

        Raises
        ------
        ValueError
            If the key is not 64 hex characters, or a tensor has another dtype or shape than trunks have.
        """
        _check(key, trunk)
        with self._mutex:
            full = self._put(key, trunk)
        for block in full:  # not under the lock: it may wait for a thread that needs it
            self._hand_over(block)

    def _put(self, key: str, trunk: Trunk) -> list[_Block]:
        """Buffer a trunk; returns the blocks that are to be written now."""
        if key in self._places or key in self._pending:
            return []
        full, cost = [], most_bytes(trunk)
        fits = not self._block.rows or shapes(self._block.rows[0][1]) == shapes(trunk)
        new = HEADER_BYTES if not fits or not self._block.rows else 0
        if self.used + self._reserved + cost + new > self._budget:
            return []
        if not fits:
            full.append(self._seal())
        self._block.rows.append((key, _copy(trunk)))
        self._block.reserved += cost + new
        self._reserved += cost + new
        self._pending.add(key)
        if len(self._block.rows) >= _MOST_ROWS or self._block.reserved >= _MOST_BYTES:
            full.append(self._seal())
        return full

    def _seal(self) -> _Block:
        block, self._block = self._block, _Block()
        return block

    def flush(self) -> None:
        """Write what is not yet written."""
        with self._mutex:
            block = self._seal()
        if block.rows:
            self._hand_over(block)

    def _hand_over(self, block: _Block) -> None:
        if self._submit is None or self._reserved > _MOST_WAITING:
            self._write(block)
        else:
            self._submit(self._write, block)

    def _write(self, block: _Block) -> None:
        """Write a block. It is given up if the disk does not take it: the images need the space, and not the trunks."""
        try:
            data = encoded(block.rows)
            # No two blocks have one name and other bytes, unless one is damaged.
            path = self._path / f"block-{files.digest_of(data)[:16]}.safetensors"
            self._make_folder()
            if not _holds(path, data):
                if path.is_dir() and not path.is_symlink():
                    files.set_aside(path)
                files.write_atomically(path, data)
        except Exception as error:
            with self._mutex:
                self._lost += [described(error)] * len(block.rows)
                self._release(block)
            return
        with self._mutex:
            self._release(block)
            self._count(path.name, len(data))
            self._add(path.name, [key for key, _ in block.rows])
            self.written += len(block.rows)

    def _release(self, block: _Block) -> None:
        self._reserved -= block.reserved
        self._pending -= {key for key, _ in block.rows}

    def _make_folder(self) -> None:
        with self._mutex:  # once, and not by two threads
            if self._path.is_symlink() or (self._path.exists() and not self._path.is_dir()):
                files.set_aside(self._path)
            if not self._path.is_dir():
                files.make_folder(self._path)

    def room(self) -> int:
        """Bytes of the budget that are left."""
        return max(0, self._budget - self.used)

    def close(self) -> None:
        """Say what was damaged, and what could not be written. :meth:`flush` comes before, and the end of writers."""
        with self._mutex:
            found = [
                (self._unreadable, "files that cannot be read"),
                (self._damaged, "that are damaged or gone"),
                (self._lost, "that could not be written"),
            ]
        said = [f"{len(reasons):,} {what} ({reasons[0]})" for reasons, what in found if reasons]
        if said:
            warnings.warn(
                f"of the trunks in {self._path} there are {', and '.join(said)}. No image is another for it: what is "
                "missing is computed again",
                Notice,
                stacklevel=2,
            )


def _check(key: str, trunk: Trunk) -> None:
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not the key of a trunk: 64 hex characters")
    floats = [trunk.state, *trunk.given.values()] + ([] if trunk.predicted is None else [trunk.predicted])
    if trunk.generator.dtype != torch.uint8 or any(tensor.dtype != torch.float32 for tensor in floats):
        raise ValueError("a trunk has float32 tensors, and a generator in uint8")
    check_shapes(trunk)


def _copy(trunk: Trunk) -> Trunk:
    given = {name: _copied(tensor) for name, tensor in trunk.given.items()}
    predicted = None if trunk.predicted is None else _copied(trunk.predicted)
    return Trunk(_copied(trunk.state), _copied(trunk.generator), given, predicted)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _holds(path: Path, data: bytes) -> bool:
    status = files.regular(path)
    if status is None or status.st_size != len(data):
        return False
    try:
        return files.read_own(path) == data
    except OSError:
        return False
