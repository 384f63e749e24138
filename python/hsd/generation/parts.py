"""Parts: files of metadata lines that one writer has for itself, so that no lock is needed.

A part is ``__parts__/HOST-RANDOM.jsonl``. Its writer alone appends to it, for as long as it lives, and no one after it.
Beside it, ``HOST-RANDOM.json`` has the record of the writer's run and its failures, once that has ended. The folder's
lines are those of ``metadata.jsonl`` and of all parts together: see :mod:`.union`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import PIL.Image

from ..errors import OutputError
from ..names import ImageFormat, check_name
from ..planning.plan import Plan
from ..work import files
from ..work.files import PARTS
from ..work.hosts import host_in_names
from ..work.locks import Lock, Unsupported
from ..work.paths import user_path
from .batches import Batches
from .belonging import Belonging
from .image_files import ImageFiles, put
from .image_text import Texts
from .lines import Entry, Lines, encode, ending
from .present import folder_id

_TRIES = 20
"""Attempts to create a file in a folder that others remove when it is empty."""

_ASKED = 5.0
"""Seconds in which everyone has finished asking whether a new part has a writer."""


class Part:
    """The part of one writer. Its file appears with the first line.

    Parameters
    ----------
    folder
        The folder of images.
    """

    def __init__(self, folder: Path) -> None:
        self.name = f"{host_in_names()}-{secrets.token_hex(8)}"
        self._folder = folder / PARTS
        self._lock: Lock | None = None

    def append(self, entries: Iterable[Entry]) -> None:
        """Write lines; when this returns they are on the disk.

        Raises
        ------
        FileNotFoundError
            If the folder of images was removed.
        """
        data = b"".join(map(encode, entries))
        self._created(lambda: self._append(data))

    def record(self, document: dict[str, Any]) -> None:
        """Write what became of the run: ``run``, its record, and ``failures``, as lines of ``failed.jsonl``."""
        self._created(lambda: files.write_json(self._folder / f"{self.name}.json", document))

    def close(self) -> None:
        """Let others join the part, and remove it then. May be called again."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def _append(self, data: bytes) -> None:
        path = self._folder / f"{self.name}.jsonl"
        if self._lock is None:
            # Nothing depends on it but that a part is not removed under a writer that no claim tells of.
            lock = Lock(path)
            with contextlib.suppress(Unsupported):
                lock.acquire(_ASKED)
            self._lock = lock
        files.append(path, data)

    def _created(self, write: Any) -> None:
        """Write into the folder of parts, which is created, and created again if others remove it at this moment."""
        for _ in range(_TRIES):
            if self._folder.is_symlink() or (os.path.lexists(self._folder) and not self._folder.is_dir()):
                files.set_aside(self._folder)
            with contextlib.suppress(FileNotFoundError):
                return write()
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._folder)
                files.sync_folder(self._folder.parent)
        return write()


class LocalPart:
    """Writes images into a folder that another process has opened, and their lines into a part: a ``Writer``.

    Raises
    ------
    OutputError
        If the folder cannot be written to.
    PlanMismatch
        If no one has opened it yet, or for another plan or model.
    """

    def __init__(
        self, path: str | os.PathLike[str], plan: Plan, model: dict[str, Any], image_format: ImageFormat = "png"
    ) -> None:
        check_name("image format", image_format, ImageFormat)
        self.path = user_path(path).absolute()
        own = Belonging(self.path, plan, model, ending(image_format))
        own.check()
        lines = Lines(self.path, plan, ending(image_format), own.model)
        self._images = ImageFiles(lines, Texts(plan, own.model), ending(image_format))
        self._folder_id = folder_id(self.path)
        self._part = Part(self.path)
        self._batches = Batches(self._write, threading.RLock())

    def add(self, index: int, image: PIL.Image.Image, extra: dict[str, Any]) -> str:
        """Write one image and its line. When this returns, both are on the disk. Safe to call from several threads."""
        data, entry = self._images.encoded(index, image, extra)
        path = self.path / entry["file_name"]
        self._check_present()
        try:
            put(path, data)
            self._batches.add(entry)
        except FileNotFoundError:
            raise gone(self.path) from None
        return str(path)

    def flush(self) -> None:
        """Nothing waits: see :meth:`add`."""

    def close(self) -> None:
        """Let others join the lines. May be called again."""
        self._part.close()

    def __enter__(self) -> LocalPart:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_present(self) -> None:
        if folder_id(self.path) != self._folder_id:
            raise gone(self.path)

    def _write(self, entries: list[Entry]) -> None:
        self._check_present()
        files.sync_folder(self.path)  # the images first
        self._part.append(entries)


def gone(folder: Path) -> OutputError:
    """The error of a folder that is removed under a run."""
    return OutputError(
        f"{folder}, or a file of it, was removed while the run was writing to it: run the same call again, "
        "which makes what is missing"
    )
