"""Where the images of a plan go, on a disk or in an object store: both look the same to those who make images."""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Protocol

import PIL.Image

from ..names import ImageFormat
from ..planning.plan import Plan
from ..work.urls import is_url
from .folder import ImageFolder
from .parts import LocalPart
from .results import Failure


class Writer(Protocol):
    """Takes the images of one process. Its methods may be called from several threads."""

    @property
    def path(self) -> Any:
        """The folder as a ``Path``, or the URL as a ``str``."""

    def add(self, index: int, image: PIL.Image.Image, extra: dict[str, Any]) -> str:
        """Write one image and its line of metadata, with the columns ``extra``; returns the path of its file.

        On a disk both are there when this returns. In an object store the line may come a moment later, and is there
        when :meth:`flush` returns.
        """

    def flush(self) -> None:
        """Wait until all lines are there."""

    def close(self) -> None:
        """Leave nothing behind that is not written. May be called again."""


class Folder(Writer, Protocol):
    """A folder that is claimed for the images of a plan: no other run makes them until it is closed."""

    repaired: list[str]
    """What was not as an earlier run had left it, one text each."""
    notes: list[str]
    """What the user should know about the folder."""

    def done(self) -> set[int]:
        """Indices of the images that are complete, with their line of metadata."""

    def refresh(self) -> set[int]:
        """Indices of the images whose lines have appeared since the last look, from any writer; ``done`` has them."""

    def report(self) -> list[str]:
        """What to tell the user before the run."""

    def record_run(self, record: dict[str, Any], failures: Iterable[Failure] = ()) -> None:
        """Add one run to ``run.json``; its failures go to ``failed.jsonl``."""

    def __enter__(self) -> Folder: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_folder(
    out: str | os.PathLike[str], plan: Plan, made_by: dict[str, Any], image_format: ImageFormat = "png"
) -> Folder:
    """Open the folder, or the URL, for a run that makes the images of ``plan``: see :class:`.folder.ImageFolder`.

    Raises
    ------
    OutputError
        If it cannot be written to, or if another run makes some of these images at this moment.
    PlanMismatch
        If it holds images of another plan, or of another model.
    """
    if is_url(out):
        from .store import StoreFolder

        return StoreFolder(str(out), plan, made_by, image_format)
    return ImageFolder(out, plan, made_by, image_format)


def open_part(
    out: str | os.PathLike[str], plan: Plan, made_by: dict[str, Any], image_format: ImageFormat = "png"
) -> Writer:
    """Open a folder that another process has opened, to write images into it: no claim and no lock is needed.

    Raises
    ------
    OutputError
        If it cannot be written to.
    PlanMismatch
        If no one has opened it yet, or for another plan or model.
    """
    if is_url(out):
        from .store import StorePart

        return StorePart(str(out), plan, made_by, image_format)
    return LocalPart(out, plan, made_by, image_format)
