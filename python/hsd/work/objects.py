"""A folder in an object store: files that are written whole, under names that may have slashes.

Stores have no locks, no renaming and no appending. What they do have is enough: a file is complete or absent, a listing
tells what was written before, and of several that create one file, one succeeds.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import OutputError
from . import files
from .urls import below, filesystem_of, is_local, reaching, unreachable

_AT_ONCE = 16
"""Files that are read or removed at once: a store answers many requests as fast as one."""


class Objects:
    """The files of a folder that a URL names.

    Parameters
    ----------
    url
        The folder.

    Raises
    ------
    Error
        As :func:`.urls.filesystem_of`.
    """

    def __init__(self, url: str) -> None:
        self._system, self._root = filesystem_of(url)
        self.url = url.rstrip("/")
        self._local = is_local(self._system)

    def check(self) -> None:
        """Raise ``OutputError`` if nothing can be written there."""
        name = f".hsd-write-test.{secrets.token_hex(8)}.tmp"
        self.put(name, b"")
        self.remove([name])
        with reaching(self.url):
            is_file = self._system.isfile(self._root)
        if is_file:  # a store may have both
            raise OutputError(f"{self.url} is a file, not a folder: choose another name")

    def put(self, name: str, data: bytes) -> None:
        """Write a file, in the place of one with this name."""
        with _taken(below(self.url, name)):
            if self._local:
                files.write_atomically(self._made(name), data)
            else:
                self._system.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless one has this name; returns whether it was written.

        Of several processes at one moment one succeeds; in stores that do not offer this, perhaps several.
        """
        with _taken(below(self.url, name)):
            try:
                if self._local:
                    _link(self._made(name), data)
                else:
                    self._system.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            except (NotImplementedError, TypeError):  # the package does not know the option
                if self._system.exists(self._path(name)):
                    return False
                self._system.pipe_file(self._path(name), data)
            except OSError:  # how a store says that the file is there differs
                if not self._system.exists(self._path(name)):
                    raise
                return False
        return True

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        with reaching(below(self.url, name)):
            return bool(self._system.exists(self._path(name)))

    def get(self, name: str) -> bytes | None:
        """The bytes of a file; None if there is none."""
        with reaching(below(self.url, name)):
            try:
                return bytes(self._system.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def get_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of files, without those that are not there."""
        wanted = list(names)
        found = dict(zip(wanted, self._each(self.get, wanted), strict=True))
        return {name: data for name, data in found.items() if data is not None}

    def sizes(self) -> dict[str, int]:
        """Names and sizes, in bytes, of the files in the folder itself: one listing."""
        return self._listed(lambda: self._system.ls(self._root, detail=True))

    def sizes_below(self, folder: str) -> dict[str, int]:
        """Names and sizes, in bytes, of all files in ``folder`` and the folders in it: one listing."""
        return self._listed(lambda: self._system.find(self._path(folder), detail=True).values())

    def _listed(self, listing: Callable[[], Iterable[dict[str, Any]]]) -> dict[str, int]:
        with reaching(self.url):
            try:
                found = [one for one in listing() if one["type"] == "file"]
            except FileNotFoundError:
                return {}
        begin = len(self._root) + 1
        sizes = {one["name"][begin:]: int(one["size"] or 0) for one in found}
        return {name: size for name, size in sizes.items() if name and not name.endswith("/")}  # those mark folders

    def changed(self, name: str) -> float | None:
        """When a file was written last, in seconds by the clock of the store; None if it is not there."""
        with reaching(below(self.url, name)):
            try:
                return float(self._system.modified(self._path(name)).timestamp())
            except FileNotFoundError:
                return None

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, those that are there."""
        names = list(names)
        self._each(self._remove, names)
        if self._local:  # a store has no empty folders
            for folder in {Path(self._path(name)).parent for name in names} - {Path(self._root)}:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
                    os.rmdir(folder.parent)

    def _remove(self, name: str) -> None:
        with reaching(below(self.url, name)), contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _made(self, name: str) -> Path:
        """The path on this machine, whose folder exists."""
        path = Path(self._path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @staticmethod
    def _each(do: Any, names: list[str]) -> list[Any]:
        if len(names) < 2:
            return [do(name) for name in names]
        with ThreadPoolExecutor(min(_AT_ONCE, len(names)), thread_name_prefix="hsd-store") as pool:
            return list(pool.map(do, names))


@contextlib.contextmanager
def _taken(url: str) -> Iterator[None]:
    """As :func:`.urls.reaching`; where the bucket is missing, or a file is in the place of a folder, too."""
    with reaching(url):
        try:
            yield
        except (FileNotFoundError, FileExistsError) as error:
            raise unreachable(url, error) from error


def _link(path: Path, data: bytes) -> None:
    """Write a file of this machine, complete when it has its name; ``FileExistsError`` if another has it."""
    temporary = files.write_temporary(path, data)
    try:
        os.link(temporary, path)
        files.sync_folder(path.parent)
    finally:
        os.unlink(temporary)


def write_url(url: str, data: bytes) -> None:
    """Write a file in a store, complete or not at all.

    Raises
    ------
    Error, OutputError
        As :func:`.urls.filesystem_of`, or if the store does not take it.
    """
    system, path = filesystem_of(url)
    with _taken(url):
        if is_local(system):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(Path(path), data)
        else:
            system.pipe_file(path, data)
