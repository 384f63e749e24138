"""Images in an object store: the same files as in a folder on a disk, under a URL.

An image is written by one request, and its line of metadata after it: so a run that is killed leaves complete images
only, and the same call generates the missing ones. The store itself checks what it keeps, so images are compared with
their lines by one listing, by name and size. See :mod:`.store_lines`, :mod:`.store_metadata` and :mod:`.store_claims`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import PIL.Image

from ..names import ImageFormat, check_name
from ..planning.plan import Plan
from ..work.files import PARTS, as_json
from ..work.objects import Objects
from ..work.text import listed
from .failures import entry_of
from .image_files import ImageFiles
from .image_text import Texts
from .lines import Lines, ending
from .results import Failure
from .store_belonging import StoreBelonging
from .store_claims import take
from .store_joining import join, join_records
from .store_lines import LineWriter
from .store_metadata import StoreMetadata


class StorePart:
    """Writes images into a folder that another process has opened: a ``Writer``.

    Raises
    ------
    Error
        If the URL cannot be used, or a package is missing.
    OutputError
        If the store cannot be reached.
    PlanMismatch
        If no one has opened it yet, or for another plan or model.
    """

    def __init__(self, url: str, plan: Plan, model: dict[str, Any], image_format: ImageFormat = "png") -> None:
        check_name("image format", image_format, ImageFormat)
        self._objects = Objects(url)
        self.path = self._objects.url
        self.plan = plan
        self._own = StoreBelonging(self._objects, plan, model, ending(image_format))
        # What they say; no file of this machine is looked at.
        self._lines = Lines(Path(), plan, ending(image_format), self._own.model)
        self._images = ImageFiles(self._lines, Texts(plan, self._own.model), ending(image_format))
        self._open()
        self._writer = LineWriter(self._objects)

    def _open(self) -> None:
        self._own.check()

    def add(self, index: int, image: PIL.Image.Image, extra: dict[str, Any]) -> str:
        """Write one image; its line follows in a moment, see :meth:`flush`. Returns its URL.

        Several threads may call it.
        """
        data, entry = self._images.encoded(index, image, extra)
        self._objects.put(entry["file_name"], data)
        self._writer.add(entry)
        return f"{self.path}/{entry['file_name']}"

    def flush(self) -> None:
        """Write the lines of all images that were added; when this returns they are in the store."""
        self._writer.flush()

    def close(self) -> None:
        """Leave no line behind. May be called again."""
        self._writer.close()

    def __enter__(self) -> StorePart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class StoreFolder(StorePart):
    """A folder in an object store, opened for one plan: a ``Folder``. Raises before any expensive work.

    Use as a context manager, or call :meth:`close`: until then no other run makes the same images.

    Parameters
    ----------
    url
        Such as ``s3://bucket/folder``. It belongs to one plan (all of its shards) and one model with its settings.
    plan
        The plan of the images.
    model
        What an image depends on besides the plan (``models/identity.py``): compared with that of an earlier run, and
        recorded.

    Attributes
    ----------
    repaired
        What was not as an earlier run had left it, one text each: images that are missing now, lines that were
        corrected.
    lost
        Whether images are among that.
    notes
        What the user should know about the folder.

    Raises
    ------
    Error
        If the URL cannot be used, or a package is missing.
    OutputError
        If the store cannot be written to, or if another run makes images of this plan at this moment.
    PlanMismatch
        If it holds images of another plan, or of another model.
    """

    def _open(self) -> None:
        self.notes: list[str] = []
        self.repaired = self._own.repaired
        self._mutex = threading.RLock()
        self._closed = False
        self._objects.check()
        self._metadata = StoreMetadata(self._objects, self._lines, self.plan.n_prompts)
        self._held, others = take(self._objects, self.plan.kept)
        try:
            self._own.claim(self._metadata, others=bool(others))
            self.repaired += self._metadata.read()
            self.lost = self._metadata.lost
        except BaseException:
            self._held.release()
            raise

    def done(self) -> set[int]:
        """Indices of the images that are complete, with their line of metadata."""
        with self._mutex:
            self._metadata.took(self._writer.written())
            return set(self._metadata.entries)

    def refresh(self) -> set[int]:
        """Indices of the images whose lines have appeared since the last look, of any writer; ``done`` has them too."""
        with self._mutex:
            before = set(self._metadata.entries)
            self._metadata.took(self._writer.written())
            self._metadata.refresh()
            return set(self._metadata.entries) - before

    def report(self) -> list[str]:
        """What to tell the user before the run: the notes, and what was repaired, the first few with names."""
        if not self.repaired:
            return self.notes
        made = "These images are made again." if self.lost else "No image has to be made again."
        return [*self.notes, f"{self.path} was changed since the last run: {listed(self.repaired, 3)}. {made}"]

    def record_run(self, record: dict[str, Any], failures: Iterable[Failure] = ()) -> None:
        """Add one run (versions, parameters, savings, timings) to ``run.json``; failures go to ``failed.jsonl``."""
        if self.repaired:
            record = {"repaired": len(self.repaired), **record}
        with self._mutex:
            self._writer.flush()
            self._metadata.took(self._writer.written())
            document = {"run": record, "failures": [entry_of(failure) for failure in failures]}
            self._objects.put(f"{PARTS}/{self._writer.name}.json", as_json(document))
            join_records(self._objects, self._own, self._metadata)

    def __enter__(self) -> StoreFolder:
        return self

    def close(self) -> None:
        """Write the lines that wait, join all lines, and let other runs make these images. May be called again."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            try:
                super().close()
                self._metadata.took(self._writer.written())
                join(self._objects, self._own, self._metadata, self._held)
            finally:
                self._held.release()
