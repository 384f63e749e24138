"""The folder of images: an ``imagefolder`` data set, with the plan and a run record.

An image is on the disk, under its name, before its line of metadata is written. So a run that is interrupted, or that a
power cut ends, leaves complete images only, and the same call again generates the missing ones. A line that does not
hold is not believed: see :mod:`.lines`. While a run writes, it claims its prompts: see :mod:`.claims`.

A run of the whole plan appends its lines to ``metadata.jsonl``, under a lock. A run of a part of the plan, beside which
others may write on other hosts, and any run where there are no locks, has a part for them: see :mod:`.parts`. Parts are
joined when a folder is opened and closed: see :mod:`.joining`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

import PIL.Image

from ..errors import OutputError
from ..names import ImageFormat, check_name
from ..planning.plan import Plan
from ..work import files
from ..work.files import FAILED, METADATA, RUN
from ..work.locks import locked
from ..work.text import listed
from . import claims
from .batches import Batches
from .belonging import Belonging
from .failures import entry_of
from .image_files import ImageFiles, put
from .image_text import Texts
from .joining import join_records, record_failures, remove_joined
from .lines import Entry, Lines, ending
from .metadata import Metadata
from .parts import Part, gone
from .present import folder_id, notes_on_name
from .results import Failure

_WAIT = 60.0
"""Seconds that another process may take for one change of the folder."""


_REMOVING = 2.0
"""Seconds in which the claim goes too, if not the record alone is removed but the whole folder."""


class ImageFolder:
    """An output folder, opened for one plan. Raises before any expensive work if it cannot be used.

    Use as a context manager, or call :meth:`close`: until then no other run can make the same images.

    Parameters
    ----------
    path
        The folder; created if it does not exist.
    plan
        The plan of the images. A folder belongs to one plan (all of its shards) and one model with its settings.
    model
        What an image depends on besides the plan (``models/identity.py``): compared with that of an earlier run, and
        recorded.

    Attributes
    ----------
    repaired
        What was not as an earlier run had left it, one text each: damaged images, which are missing now, lines and
        files that were corrected.
    lost
        Whether images are among that.
    notes
        What the user should know about the folder.

    Raises
    ------
    OutputError
        If the folder cannot be created or written to, or if another run makes images of this plan at this moment.
    PlanMismatch
        If it holds images of another plan, or of another model.
    """

    def __init__(
        self, path: str | os.PathLike[str], plan: Plan, model: dict[str, Any], image_format: ImageFormat = "png"
    ):
        check_name("image format", image_format, ImageFormat)
        self.path = files.make_folder(path).absolute()  # a program may change its working folder meanwhile
        self.plan = plan
        self.format = ending(image_format)
        self.notes = notes_on_name(self.path)
        self._own = Belonging(self.path, plan, model, self.format)
        self.repaired = self._own.repaired
        self._mutex = threading.RLock()  # between our threads; the file's lock is for other processes
        self._folder_id = folder_id(self.path)
        self._lines = Lines(self.path, plan, self.format, self._own.model)
        self._images = ImageFiles(self._lines, Texts(plan, self._own.model), self.format)
        self._metadata = Metadata(self.path, self._lines, plan.n_prompts)
        self._batches = Batches(self._write, self._mutex)
        self._part: Part | None = None
        self._closed = False
        try:
            claims.refuse(self.path, plan.kept)
            self._open()
        except OutputError:
            raise
        except OSError as error:
            raise files.unusable(self.path, error) from None

    def _open(self) -> None:
        # One lock for both: a run that begins at the same moment finds the plan where it finds the claim. If the
        # lock does not reach it, it waits for the plan.
        with self._locked() as held:
            if not held or len(self.plan) < self.plan.n_prompts:
                self._part = Part(self.path)
            self._own.look()
            self._held, others = claims.take(self.path, self.plan.kept)
            try:
                # A run that lives may still write newer ones, also one that has begun since.
                oldest = min([self._held.begun, *(other.begun for other in others)])
                files.remove_leftovers(self.path, oldest)
                self._metadata.parts.remove_leftovers(oldest)
                taken = self._metadata.says(anything=not self._own.has_begun())
                self._own.claim(self._metadata.format(), taken=taken, others=bool(others))
            except BaseException:
                self._held.release()
                raise
        try:
            self._metadata.check()  # no other run changes these images now
            with self._locked() as held:
                self.repaired += self._metadata.read()
                self.lost = self._metadata.lost
                self.notes += self._without_lines()
                self._join(held)
        except BaseException:
            self._held.release()
            raise

    def _without_lines(self) -> list[str]:
        """A note on images of this plan that nothing is known of: a killed run left them, or their lines were lost."""
        with os.scandir(self.path) as entries:
            present = {entry.name for entry in entries}
        missing = (self._lines.name(i) for i in self.plan.kept.tolist() if i not in self._metadata.entries)
        found = [name for name in missing if name in present and not any(name in text for text in self.repaired)]
        if not found:
            return []
        what = f"{found[0]} has" if len(found) == 1 else f"{len(found):,} images ({found[0]}, ...) have"
        return [f"{what} no line in {METADATA}, which nothing can be compared with: made again"]

    def done(self) -> set[int]:
        """Indices of the images that are complete, with their line of metadata."""
        return set(self._metadata.entries)

    def report(self) -> list[str]:
        """What to tell the user before the run: the notes, and what was repaired, the first few with names."""
        if not self.repaired:
            return self.notes
        made = "Damaged images are made again." if self.lost else "No image has to be made again."
        return [
            *self.notes,
            f"{self.path} was changed or damaged since the last run: {listed(self.repaired, 3)}. {made}",
        ]

    def refresh(self) -> set[int]:
        """Indices of the images whose lines have appeared since the last look, of any writer; ``done`` has them too."""
        with self._mutex:
            self._check_present()
            return self._metadata.refresh()

    def add(self, index: int, image: PIL.Image.Image, extra: dict[str, Any]) -> str:
        """Write one image and its line of metadata; returns the path of the image. Several threads may call it.

        When it returns, both are on the disk.
        """
        data, entry = self._images.encoded(index, image, extra)
        path = self.path / entry["file_name"]
        self._check_present()
        try:
            put(path, data)
        except FileNotFoundError:
            raise gone(self.path) from None
        try:
            self._batches.add(entry)
        except OutputError:
            if folder_id(self.path) == self._folder_id and not self._own.record.files():
                path.unlink(missing_ok=True)  # what is left of a removed folder must not look like a data set
            raise
        return str(path)

    def flush(self) -> None:
        """Nothing waits: see :meth:`add`."""

    def record_run(self, record: dict[str, Any], failures: Iterable[Failure] = ()) -> None:
        """Add one run (versions, parameters, savings, timings) to ``run.json``; failures go to ``failed.jsonl``."""
        name = RUN
        if self.repaired:
            record = {"repaired": len(self.repaired), **record}
        try:
            with self._locked():
                self._keep_record()
                if self._part is not None:
                    self._part.record({"run": record, "failures": [entry_of(failure) for failure in failures]})
                    join_records(self._own, self._metadata)
                    return
                document = self._own.document()
                self._own.write({**document, "runs": [*document["runs"], record]})
                name = FAILED
                record_failures(self.path, self._metadata, failures)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path / name}: {error.strerror or error}. Written images are kept; "
                f"{files.advice(error)}"
            ) from error

    def close(self) -> None:
        """Join all lines, in the order of the index, and let other runs make these images. May be called again."""
        if self._closed:
            return
        self._closed = True
        if self._part is not None:
            self._part.close()
        try:
            # The next run joins them too: that is not worth an error here.
            with contextlib.suppress(OSError), self._locked() as held:
                self._metadata.join()
                self._join(held)
        finally:
            self._held.release()

    def _join(self, held: bool) -> None:
        """What is in parts besides lines; and the parts themselves, where nothing can be lost."""
        join_records(self._own, self._metadata)
        if held:
            remove_joined(self._own, self._metadata, self._held)

    def __enter__(self) -> ImageFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, entries: list[Entry]) -> None:
        """Write the lines of images that have their names. The images come first, with one synchronisation for all."""
        if self._part is None and self._held.lapsed():
            self._part = Part(self.path)  # others may have begun meanwhile, on hosts that a lock does not reach
        with self._locked() if self._part is None else contextlib.nullcontext():
            self._check_present()
            self._keep_record()
            files.sync_folder(self.path)
            if self._part is None:
                self._metadata.add(entries)
                return
        try:
            self._part.append(entries)
        except FileNotFoundError:
            raise gone(self.path) from None
        self._metadata.took(entries)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        with self._mutex:
            self._check_present()
            lock = self.path / ".hsd.lock"
            if os.path.lexists(lock) and files.regular(lock) is None:
                raise OutputError(f"{lock} has to be a file, and is a folder, a link or a pipe: remove it")
            with locked(lock, _WAIT, self._busy) as held:
                yield held

    def _keep_record(self) -> None:
        """Write the record again if it was removed alone. If the claim is gone too, the folder is not this run's."""
        if self._own.record.files():
            return
        end = time.monotonic() + _REMOVING
        while time.monotonic() < end and self._held.is_there():
            time.sleep(0.02)  # the whole folder may be being removed, file by file
        if not self._held.is_there():
            raise gone(self.path)
        self.repaired.append(f"{RUN} was removed under the run, and is written again")
        self._own.write(self._own.document())

    def _check_present(self) -> None:
        if folder_id(self.path) != self._folder_id:
            raise gone(self.path)

    def _busy(self) -> OutputError:
        others = "; ".join(map(str, claims.living(self.path))) or "another process"
        return OutputError(
            f"{self.path} has been locked for a minute: {others}. If it is stopped, continue or end it, then run the "
            "same call again"
        )
