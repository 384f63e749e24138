"""Folders and files in object stores, which users name by a URL: ``s3://bucket/folder``, read and written with fsspec.

Each kind of store needs the package that fsspec names for it, and takes its credentials and its endpoint as that says:
from the variables of the cloud's own tools, from ``~/.config/fsspec``, or from variables such as
``FSSPEC_S3_ENDPOINT_URL``, which hold one option of a kind of store each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import Error, OutputError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_URL = re.compile(r"(?:[a-z][a-z0-9]*::)*([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
"""A scheme has two letters at least: ``C://`` is a folder of Windows."""

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs"}
"""Where the text of fsspec does not name a package as pip knows it."""


def is_url(value: Any) -> bool:
    """Whether a user has named an object store, and not a file or folder of this machine."""
    return isinstance(value, str) and _URL.match(value) is not None


def below(url: str, name: str) -> str:
    """The URL of a file in the folder ``url``."""
    return f"{url.rstrip('/')}/{name}"


def is_local(system: AbstractFileSystem) -> bool:
    """Whether a file system is that of this machine, which ``file://`` names."""
    return "file" in _protocols(system)


def _protocols(system: AbstractFileSystem) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def check_shared(url: str) -> None:
    """Raise ``Error`` if other processes do not find in ``url`` what this one writes."""
    if "memory" in _protocols(filesystem_of(url)[0]):
        raise Error(f"{url} is in the memory of one process, and each worker is another: name a folder, or a store")


def filesystem_of(url: str) -> tuple[AbstractFileSystem, str]:
    """What reads and writes a URL, and its path there. Connects to nothing yet.

    Raises
    ------
    Error
        If a package is missing, fsspec does not know such a URL, or it names no folder.
    """
    found = _URL.match(url)
    if found is None:
        raise Error(f"{url!r} is not a URL: write it as s3://bucket/folder")
    kind = found[1].lower()
    if "::" in found[0]:
        raise Error(f"{url} names several file systems: name the one alone that keeps the files, {kind}://...")
    try:
        import fsspec
    except ImportError:
        raise Error(f"{url} needs the package fsspec: pip install fsspec") from None
    options: dict[str, Any] = {"use_listings_cache": False}  # other processes write there too
    try:
        system, path = fsspec.core.url_to_fs(kind + url[len(kind) :], **options)
    except ImportError as error:
        package = _PACKAGES.get(kind)
        how = f"pip install {package}" if package else str(error)
        raise Error(f"{url} needs a package that is not installed: {how}") from error
    except ValueError as error:
        raise Error(f"{url} cannot be used: {error}") from error
    if not path.strip("/"):
        raise Error(f"{url} names no folder: write {kind}://bucket/folder")
    return system, path.rstrip("/")


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Raise what a store answers as ``OutputError``: each package has errors of its own, not all of them ``OSError``.

    ``FileNotFoundError`` and ``FileExistsError`` stay as they are: they are answers.
    """
    try:
        yield
    except (Error, FileNotFoundError, FileExistsError):
        raise
    except Exception as error:
        raise unreachable(url, error) from error


def unreachable(url: str, error: Exception) -> OutputError:
    """The error of a store that does not do what it was asked."""
    what = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError) and not error.strerror:  # it says the name of something alone
        what = f"not found: {what}"
    return OutputError(
        f"cannot use {url}: {what}; see to the address, the credentials and the network, and run the same call again"
    )


@contextmanager
def open_url(url: str) -> Iterator[tuple[BinaryIO, int]]:
    """A file in a store, for reading, and its size in bytes.

    Raises
    ------
    Error
        As :func:`filesystem_of`.
    OSError
        If there is none, or the store cannot be reached.
    """
    system, path = filesystem_of(url)
    with reaching(url):
        size = int(system.size(path) or 0)
        file = system.open(path, "rb")
    with file:
        yield file, size
