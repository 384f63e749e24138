"""A disk that loses what was not synced: records what a program does to a folder, and rebuilds what a power cut leaves.

Every change is recorded through the functions of ``os`` that make it. At each moment there are several folders that a
power cut could leave, and the tests look at the extreme ones:

- ``strict``: only what was synced. A file has the bytes of its last fsync, and a name is there (or gone) only if its
  folder was synced since.
- ``names first``: every name is there at once, as journals of names may have it, but only bytes that were synced. Here
  a file that is renamed before it is synced is empty.
- ``torn``: as ``names first``, and of bytes that were not synced, the first half is there.
"""

from __future__ import annotations

import os
from pathlib import Path

MODELS = ("strict", "names first", "torn")


class _File:
    def __init__(self, data: bytes = b""):
        self.now, self.synced = bytearray(data), bytes(data)


class Recorder:
    """Replaces functions of ``os`` while it is used as a context manager; ``moments`` has one state per change."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.names: dict[str, _File] = {}
        self.synced_names: dict[str, _File] = {}
        self.open: dict[int, tuple[str, _File | None]] = {}
        self.moments: list[dict[str, dict[str, bytes]]] = []
        self.marks: list[int] = []
        self._real = {}

    def state(self, model: str) -> dict[str, bytes]:
        names = self.synced_names if model == "strict" else self.names
        out = {}
        for name, file in names.items():
            data = bytearray(file.synced)
            if model == "torn":
                data = file.now[: (len(file.now) + len(file.synced)) // 2]
            out[name] = bytes(data)
        return out

    def mark(self):
        """Note that what the program had promised until now has to survive from here on."""
        self.marks.append(len(self.moments))

    def _changed(self):
        self.moments.append({model: self.state(model) for model in MODELS})

    def _name(self, path) -> str | None:
        path = Path(os.path.abspath(path))
        return path.name if path.parent == self.folder else None

    # ------------------------------------------------------------------------- the functions

    def _open(self, path, flags, mode=0o777, **options):
        handle = self._real["open"](path, flags, mode, **options)
        if Path(os.path.abspath(path)) == self.folder:
            self.open[handle] = ("", None)
        elif (name := self._name(path)) is not None:
            if name not in self.names:
                self.names[name] = _File()
            self.open[handle] = (name, self.names[name])
        return handle

    def _write(self, handle, data):
        done = self._real["write"](handle, data)
        _, file = self.open.get(handle, (None, None))
        if file is not None:
            file.now += bytes(data)[:done]
            self._changed()
        return done

    def _fsync(self, handle):
        name, file = self.open.get(handle, (None, None))
        if file is not None:
            file.synced = bytes(file.now)
        elif name == "":
            self.synced_names = dict(self.names)
        self._changed()

    def _close(self, handle):
        self.open.pop(handle, None)
        self._real["close"](handle)

    def _replace(self, source, target):
        self._real["replace"](source, target)
        self.names[self._name(target)] = self.names.pop(self._name(source))
        self._changed()

    def _unlink(self, path, **options):
        self._real["unlink"](path, **options)
        if self.names.pop(self._name(path), None) is not None:
            self._changed()

    def _truncate(self, target, size):
        self._real["truncate"](target, size)
        file = self.names.get(self._name(target))
        if file is not None:
            del file.now[size:]
            self._changed()

    def __enter__(self):
        for name in ("open", "write", "fsync", "close", "replace", "unlink", "truncate"):
            self._real[name] = getattr(os, name)
            setattr(os, name, getattr(self, f"_{name}"))
        return self

    def __exit__(self, *_):
        for name, function in self._real.items():
            setattr(os, name, function)


def restore(state: dict[str, bytes], folder: Path) -> Path:
    """Write what a power cut left into a folder."""
    folder.mkdir(parents=True)
    for name, data in state.items():
        (folder / name).write_bytes(data)
    return folder
