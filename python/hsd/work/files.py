"""Files and folders: a file is complete or absent, also after a power cut."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import Error, OutputError
from .paths import user_path
from .reading import BINARY, NOFOLLOW, NONBLOCK, open_file, read_object

STUDY = "study.json"
"""In a folder of several sets of images: what all of them depend on, see :func:`claim`."""

METADATA = "metadata.jsonl"
"""In a folder of images: one JSON object per image, with its file and its text. Evaluation reads it without torch."""

FAILED = "failed.jsonl"
"""In a folder of images: one JSON object for each image that could not be made, and has not been made since."""

RUN = "run.json"
IDENTITY = "identity.json"
"""In a folder of images: the record of its runs, and what decides its images."""

PARTS = "__parts__"
"""In a folder of images: a folder with the lines of writers that have a file of their own, until they are joined.
``datasets`` passes over such a name."""

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EROFS)
"""What fsync answers where a file system has none: the run goes on without it."""

_NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)

_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.[0-9a-f]{16}\.tmp"
    # The names of earlier versions, for the files of a folder of images only: nothing else in them says whose they are.
    r"|\.(\d{5,}\.(png|jpg|webp)|metadata\.jsonl|run\.json|plan\.safetensors|\.hsd-write-test)\.[a-z0-9_]{8}",
    re.DOTALL,
)

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | BINARY
"""How a temporary file is opened, with the mode that open() gives: the system applies the umask."""

_ABANDONED = 3600.0
"""Seconds after which a temporary file belongs to no process that still writes it."""


# ---------------------------------------------------------------------------------------------------------- writing


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either absent or complete, and stays so after a power cut.

    The bytes are on the disk before the file has its name, and the name is on the disk when this returns.
    """
    rename(write_temporary(path, data), path)
    sync_folder(path.parent)


def write_json(path: Path, document: Any) -> None:
    """:func:`write_atomically`, as JSON for people and programs."""
    write_atomically(path, as_json(document))


def as_json(document: Any) -> bytes:
    """The bytes that :func:`write_json` writes."""
    # Half a surrogate pair has no form in UTF-8, and its escape is refused when the file is read.
    return json.dumps(document, indent=1, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def write_temporary(path: Path, data: bytes) -> Path:
    """Write and sync the bytes that are to become the file ``path``; returns where they are until then."""
    temporary = _temporary_name(path)
    try:
        handle = os.open(temporary, _NEW, 0o666)
        try:
            _write_all(handle, data)
            _sync(handle)
        finally:
            os.close(handle)
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError):  # errors name the file that was to be written
            error.filename = os.fspath(path)
        raise
    return temporary


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, for what is too large for the memory: :func:`write_atomically` when the context ends well.

    After an error inside, ``path`` is what it was before.
    """
    temporary = _temporary_name(path)
    try:
        with open(os.open(temporary, _NEW, 0o666), "wb") as file:
            yield file
            file.flush()
            _sync(file.fileno())
    except BaseException:
        _remove(temporary)
        raise
    rename(temporary, path)
    sync_folder(path.parent)


def _temporary_name(path: Path) -> Path:
    # A part of the name is enough to know the file by, and a long name still fits.
    return path.parent / f".{path.name[:50]}.{secrets.token_hex(8)}.tmp"


def rename(temporary: Path, path: Path) -> None:
    """Give a file of :func:`write_temporary` its name. A link in its place is replaced, not followed."""
    try:
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise


def append(path: Path, data: bytes) -> None:
    """Append to a file and sync it; created if there is none. After an error the file is as it was before.

    Raises
    ------
    OSError
        If it cannot be written, or is a link or not a file.
    """
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | NOFOLLOW | NONBLOCK | BINARY, 0o666)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        try:
            _write_all(handle, data)
            _sync(handle)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, status.st_size)
            raise
    finally:
        os.close(handle)
    if not status.st_size:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring the names of a folder to the disk: new, renamed and removed files. Windows has no such call."""
    if os.name == "nt":
        return
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except PermissionError:  # one may write into a folder that one may not list
        return
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _write_all(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


# ---------------------------------------------------------------------------------------------------------- reading


def read_own(path: Path, offset: int = 0) -> bytes | None:
    """The bytes of a file that HSD wrote, from ``offset`` on; None if there is no such file, or it is something else.

    A link is not followed: nothing that HSD writes is one, and it may lead anywhere.
    """
    try:
        file = open_file(path, follow=False)
    except OSError:
        if regular(path) is None:
            return None
        raise
    with file:
        file.seek(offset)
        return file.read()


def regular(path: Path) -> os.stat_result | None:
    """The status of a file; None if there is none, or a link or a folder in its place."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def digest_of(data: bytes) -> str:
    """The digest by which an image is known, in its line of metadata and in stored scores."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


# ---------------------------------------------------------------------------------------------------------- folders


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, created if it does not exist; ``OutputError`` if it cannot be created or written to."""
    path = user_path(path)
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(missing):
            sync_folder(folder.parent)
        probe = path / f".hsd-write-test.{secrets.token_hex(8)}.tmp"
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW, 0o666))
        _remove(probe)  # a run that begins at the same moment may have removed it as a leftover
        remove_leftovers(path, time.time() - _ABANDONED)
    except OSError as error:
        raise unusable(path, error) from None
    return path


def unusable(path: Path, error: OSError) -> OutputError:
    """The error of a folder that cannot be used."""
    space = f"{advice(error)}, or " if error.errno in _NO_SPACE else ""
    return OutputError(f"cannot write to {path}: {error.strerror or error}; {space}choose another folder")


def advice(error: OSError) -> str:
    """What to do after a file could not be written."""
    what = "free some disk space" if error.errno in _NO_SPACE else "mend that"
    return f"{what} and run the same call again"


def remove_leftovers(folder: Path, before: float | None = None) -> int:
    """Remove temporary files that killed processes left; returns how many.

    Parameters
    ----------
    before
        Remove only those that were last changed before this time (seconds since the epoch); None: all.
    """
    removed = 0
    for path in leftovers(folder):
        status = regular(path)
        if status is not None and (before is None or status.st_mtime < before):
            _remove(path)
            removed += 1
    return removed


def leftovers(folder: Path) -> Iterator[Path]:
    """Temporary files of HSD in a folder."""
    with contextlib.suppress(PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and _TEMPORARY.fullmatch(entry.name):
                yield folder / entry.name


def set_aside(path: Path) -> Path:
    """Rename a file or folder that is in the way, so that nothing is lost; returns its new path.

    A folder gets a hidden name: what is in it does not become a part of a data set.
    """
    hidden = "." if path.is_dir() and not path.is_symlink() else ""
    for number in range(1, 10_000):
        aside = path.with_name(f"{hidden}{path.name}.damaged" + (f"-{number}" if number > 1 else ""))
        if not os.path.lexists(aside):
            os.replace(path, aside)
            sync_folder(path.parent)
            return aside
    raise OutputError(f"{path.parent} holds too many files {path.name}.damaged-*: remove them")


def cleared(folder: Path, name: str) -> Path:
    """The path of a file of a folder, after a folder that was in its place is set aside."""
    path = folder / name
    if path.is_dir() and not path.is_symlink():
        set_aside(path)
    return path


def claim(path: Path, study: dict[str, Any]) -> tuple[str, Any] | None:
    """Record in the JSON file ``path`` what a folder depends on, unless something else is recorded already.

    Returns the first name of ``study`` whose recorded value is another, and that value; None if it is recorded now.

    Raises
    ------
    Error
        If there is such a file, and it cannot be read.
    """
    if path.exists():
        try:
            stored = read_object(path)
        except (OSError, ValueError) as error:
            raise Error(f"{path} cannot be read ({error}): choose another folder") from None
        for name, value in study.items():
            if stored.get(name) != value:
                return name, stored.get(name)
    write_json(path, study)
    return None
