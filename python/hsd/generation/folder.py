"""The folder of images: an ``imagefolder`` data set, with the plan and a run record.

An image is on the disk, under its name, before its line in ``metadata.jsonl`` is written. So a run that is interrupted,
or that a power cut ends, leaves complete images only, and the same call again generates the missing ones. A line that
does not hold is not believed: see :mod:`.lines`. While a run writes, it claims its prompts: see :mod:`.claims`.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

import PIL.Image

from ..errors import Error, OutputError, PlanMismatch
from ..names import ImageFormat, check_name
from ..planning.differences import plan_differences
from ..planning.plan import PLAN_FILE, Plan
from ..work import files
from ..work.files import FAILED, IDENTITY, METADATA, RUN
from ..work.locks import locked
from ..work.text import listed
from . import claims
from .differences import OTHER_STEPS, compared, warn_of_rounding
from .failures import updated
from .image_text import Texts
from .lines import FORMATS, Entry, Lines, ending
from .metadata import Metadata
from .present import folder_id, holds_images, notes_on_name
from .record import Record
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
        self.repaired: list[str] = []
        self.notes = notes_on_name(self.path)
        self._pil_format, self._save_options = FORMATS[self.format]
        self._mutex = threading.RLock()  # between our threads; the file's lock is for other processes
        self._folder_id = folder_id(self.path)
        self._record = Record(self.path)
        model = json.loads(json.dumps(model, default=str))
        self._identity: dict[str, Any] = {"plan": plan.fingerprint, "model": model, "image_format": self.format}
        self._lines = Lines(self.path, plan, self.format)
        self._texts = Texts(plan, model)
        self._metadata = Metadata(self.path, self._lines, plan.n_prompts)
        self._waiting: list[_Waiting] = []
        self._queue = threading.Lock()
        try:
            claims.refuse(self.path, plan.kept)
            self._open()
        except OutputError:
            raise
        except OSError as error:
            raise files.unusable(self.path, error) from None

    def _open(self) -> None:
        # One lock for both: a run that begins at the same moment has to find the plan where it finds the claim.
        with self._locked():
            self._held, self._others = claims.take(self.path, self.plan.kept)
            try:
                oldest = min((other.begun for other in self._others), default=None)
                files.remove_leftovers(self.path, oldest)  # a run that lives may still write newer ones
                self._claim()
            except BaseException:
                self._held.release()
                raise
        try:
            self._metadata.check()  # no other run changes these images now
            with self._locked():
                self.repaired += self._metadata.read()
                self.lost = self._metadata.lost
                self.notes += self._without_lines()
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

    def add(self, index: int, image: PIL.Image.Image, extra: dict[str, Any]) -> Path:
        """Write one image and its line of metadata. Safe to call from several threads and processes.

        When it returns, both are on the disk.
        """
        entry = {**self._lines.expected(index), **extra}
        buffer = BytesIO()
        text = self._texts.of(index, self._lines.columns(index), image.size)
        image.save(buffer, self._pil_format, **self._save_options, **text.options(self._pil_format))
        data, path = buffer.getvalue(), self.path / entry["file_name"]
        self._check_present()
        try:
            temporary = files.write_temporary(path, data)
            if path.is_dir() and not path.is_symlink():
                files.set_aside(path)
            files.rename(temporary, path)
        except FileNotFoundError:
            raise self._gone() from None
        try:
            self._commit({**entry, "size": len(data), "digest": files.digest_of(data)})
        except OutputError:
            if folder_id(self.path) == self._folder_id and not self._record.files():
                path.unlink(missing_ok=True)  # what is left of a removed folder must not look like a data set
            raise
        return path

    def flush(self) -> None:
        """Nothing waits."""

    def record_run(self, record: dict[str, Any], failures: Iterable[Failure] = ()) -> None:
        """Add one run (versions, parameters, savings, timings) to ``run.json``; failures go to ``failed.jsonl``."""
        name = RUN
        try:
            with self._locked():
                self._keep_record()
                if self.repaired:
                    record = {"repaired": len(self.repaired), **record}
                document, _ = self._record.read()
                document = {"identity": self._identity, "request": self.plan.request, **document}
                self._write_record({**document, "runs": [*document.get("runs", []), record]})
                name = FAILED
                self._record_failures(failures)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path / name}: {error.strerror or error}. Written images are kept; "
                f"{files.advice(error)}"
            ) from error

    def _record_failures(self, failures: Iterable[Failure]) -> None:
        path = self.path / FAILED
        data = updated(files.read_own(path) or b"", self.plan.n_prompts, self.done(), failures)
        if data:
            files.write_atomically(self._cleared(FAILED), data)
        elif os.path.lexists(path):
            self._cleared(FAILED).unlink(missing_ok=True)

    def close(self) -> None:
        """Bring the lines into the order of the index, and let other runs make these images. May be called again."""
        try:
            # The next run sorts them too: an order is not worth an error here.
            with contextlib.suppress(OSError), self._locked():
                self._metadata.sort()
        finally:
            self._held.release()

    def __enter__(self) -> ImageFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _commit(self, entry: Entry) -> None:
        """Write the line of an image that has its name: those of several threads at once, as many as are waiting.

        The images come first, all with one synchronisation of the folder.
        """
        mine = _Waiting(entry)
        with self._queue:
            self._waiting.append(mine)
        with self._mutex:
            if not mine.settled:
                with self._queue:
                    batch, self._waiting = self._waiting, []
                try:
                    with self._locked():
                        self._keep_record()
                        files.sync_folder(self.path)
                        self._metadata.add([one.entry for one in batch])
                except BaseException as error:
                    for one in batch:
                        one.error = error
                finally:
                    for one in batch:
                        one.settled = True
        if mine.error is not None:
            raise mine.error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._mutex:
            self._check_present()
            lock = self.path / ".hsd.lock"
            if os.path.lexists(lock) and files.regular(lock) is None:
                raise OutputError(f"{lock} has to be a file, and is a folder, a link or a pipe: remove it")
            with locked(lock, _WAIT, self._busy):
                yield

    def _keep_record(self) -> None:
        """Write the record again if it was removed alone. If the claim is gone too, the folder is not this run's."""
        if self._record.files():
            return
        end = time.monotonic() + _REMOVING
        while time.monotonic() < end and self._held.is_there():
            time.sleep(0.02)  # the whole folder may be being removed, file by file
        if not self._held.is_there():
            raise self._gone()
        self.repaired.append(f"{RUN} was removed under the run, and is written again")
        self._write_record({"identity": self._identity, "request": self.plan.request, "runs": []})

    def _check_present(self) -> None:
        if folder_id(self.path) != self._folder_id:
            raise self._gone()

    def _busy(self) -> OutputError:
        others = "; ".join(map(str, claims.living(self.path))) or "another process"
        return OutputError(
            f"{self.path} has been locked for a minute: {others}. If it is stopped, continue or end it, then run the "
            "same call again"
        )

    def _gone(self) -> OutputError:
        return OutputError(
            f"{self.path}, or a file of it, was removed while the run was writing to it: run the same call again, "
            "which makes what is missing"
        )

    def _claim(self) -> None:
        """Record the plan as the folder's, or check that it is the one recorded."""
        document, damaged = self._record.read()
        before = document.get("identity")
        if before is not None and "image_format" not in before:  # of an earlier version
            found = self._metadata.format() or self.format
            before = {**before, "plan": self._known_plan(before["plan"]), "image_format": found}
        differing = {} if before is None else self._differences(before)
        copy = self._record.copy()
        if differing and copy is not None and copy != before and not self._differences(copy):
            self.repaired.append(f"{RUN} does not say what {IDENTITY} says, which is right")
            before, differing = copy, {}
        if before is not None and not differing:
            warn_of_rounding(self.path, before["model"], self._identity["model"])
            if "networks" in before["model"]:  # else it is of an earlier version, which did not record them
                # With the versions that the first images were made with.
                self._identity = {**before, "plan": self._identity["plan"]}
            if document.get("identity") != self._identity or damaged is not None or self._record.files() < 2:
                self._write_record({"request": self.plan.request, "runs": [], **document, "identity": self._identity})
            self._check_plan_file()
            return
        if holds_images(self.path) or self._metadata.says(anything=before is None) or self._others:
            raise self._foreign(damaged) if before is None else self._mismatch(differing)
        # Nothing was made yet: another plan, or another model, may have the folder.
        self.plan.whole().save(self._cleared(PLAN_FILE))
        self._write_record({"identity": self._identity, "request": self.plan.request, "runs": document.get("runs", [])})

    def _known_plan(self, fingerprint: str) -> str:
        """The fingerprint of this plan, if the folder's plan file has it: earlier versions computed another one."""
        if fingerprint == self._identity["plan"] or self._stored_fingerprint() != self._identity["plan"]:
            return fingerprint
        return str(self._identity["plan"])

    def _stored_fingerprint(self) -> str | None:
        if files.regular(self.path / PLAN_FILE) is None:
            return None
        try:
            return Plan.load(self.path / PLAN_FILE).fingerprint
        except (Error, OSError):
            return None

    def _check_plan_file(self) -> None:
        """The plan is known to be the folder's: a file that is damaged or missing is written again."""
        if self._stored_fingerprint() != self._identity["plan"]:
            self.repaired.append(f"{PLAN_FILE} was damaged or missing, and is written again")
            self.plan.whole().save(self._cleared(PLAN_FILE))

    def _cleared(self, name: str) -> Path:
        path = self.path / name
        if path.is_dir() and not path.is_symlink():
            files.set_aside(path)
        return path

    def _write_record(self, document: dict[str, Any]) -> None:
        finding = self._record.write(document)
        if finding is not None:
            self.repaired.append(finding)

    def _differences(self, before: dict[str, Any]) -> dict[str, list[str]]:
        """What the folder's plan, model and image format differ in from those of this run, by these words."""
        own = self._identity
        formats = before["image_format"], own["image_format"]
        found = {
            "plan": [] if before["plan"] == own["plan"] else self._plan_differences(),
            "model": compared(before["model"], own["model"]),
            "format": [] if formats[0] == formats[1] else [f"{formats[0]} before, {formats[1]} now"],
        }
        if any(text.startswith("steps:") for text in found["plan"]):  # then the scheduler has others too
            found["model"] = [text for text in found["model"] if not text.startswith(OTHER_STEPS)]
        return {name: differences for name, differences in found.items() if differences}

    def _plan_differences(self) -> list[str]:
        try:
            return plan_differences(Plan.load(self.path / PLAN_FILE), self.plan.whole())
        except (Error, OSError):
            return [f"its {PLAN_FILE} cannot be read"]

    def _mismatch(self, differing: dict[str, list[str]]) -> PlanMismatch:
        what = listed([text for differences in differing.values() for text in differences])
        return PlanMismatch(
            f"{self.path} holds images of another {' and another '.join(differing)} ({what}): continue with the same "
            "prompts, seeds and settings and the same model, or choose another folder"
        )

    def _foreign(self, damaged: str | None) -> PlanMismatch:
        """Images of which nothing says who made them."""
        if damaged is not None:
            return PlanMismatch(
                f"{self.path / RUN} cannot be used ({damaged}), and nothing else says which model made the images "
                "there: choose another folder"
            )
        what = METADATA if os.path.lexists(self.path / METADATA) else "images"
        return PlanMismatch(
            f"{self.path} holds another data set ({what}, but {RUN} and {IDENTITY} are missing or empty): choose "
            "another folder"
        )


class _Waiting:
    """The line of an image, until it is written."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.settled = False
        self.error: BaseException | None = None
