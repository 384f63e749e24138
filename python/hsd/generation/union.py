"""The lines of a folder of images, wherever they stand: in ``metadata.jsonl``, and in the parts of its writers.

Every reader takes them from here. Parts are read before ``metadata.jsonl``: who joins them writes that file first and
removes the parts then, so a line that has left its part is found there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..work.files import METADATA, PARTS, digest_of, read_own, regular, remove_leftovers
from ..work.reading import parse_json, read_file
from .lines import Entry, parse

_MOST = 1 << 32
"""Bytes of a file of lines that is read."""

_MARK = b"\xef\xbb\xbf"
"""What some editors put before the first line."""


@dataclass(frozen=True)
class Line:
    """A line as it stands in a file."""

    file: str
    """Below the folder: ``metadata.jsonl``, or a part."""
    number: int
    """From 1, with those that are empty."""
    data: bytes
    entry: Entry | None
    """None if it is not a JSON object."""


class PartFiles:
    """The parts of a folder: each is read from where it was read last.

    Parameters
    ----------
    folder
        The folder of images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / PARTS
        self._read: dict[str, tuple[int, int]] = {}  # bytes and lines that are known, by the name of the file

    def names(self) -> list[str]:
        """The names of all parts, without an ending: those that have lines, a record, or both."""
        return sorted({Path(name).stem for name in self._files(".jsonl", ".json")})

    def unread(self) -> list[Line]:
        """Lines that were not there before, without one at an end that is not complete."""
        found = []
        for name in self._files(".jsonl"):
            offset, count = self._read.get(name, (0, 0))
            status = regular(self.folder / name)
            if status is None or status.st_size == offset:
                continue
            data = read_own(self.folder / name, offset) or b""
            whole = data[: data.rfind(b"\n") + 1]
            lines = list(_lines(f"{PARTS}/{name}", whole, count))
            self._read[name] = offset + len(whole), count + whole.count(b"\n")
            found += lines
        return found

    def is_read(self, name: str) -> bool:
        """Whether all complete lines of a part are known."""
        offset, _ = self._read.get(f"{name}.jsonl", (0, 0))
        return b"\n" not in (read_own(self.folder / f"{name}.jsonl", offset) or b"")

    def records(self) -> dict[str, dict[str, Any]]:
        """What the writers of parts have said at their end, by the name of the part."""
        found = {}
        for name in self._files(".json"):
            try:
                document = parse_json(read_own(self.folder / name) or b"")
            except ValueError:
                continue
            if isinstance(document, dict) and isinstance(document.get("run"), dict):
                found[Path(name).stem] = document
        return found

    def remove_leftovers(self, before: float | None) -> None:
        """Remove temporary files that killed writers left: see :func:`hsd.work.files.remove_leftovers`."""
        if self._is_there():
            remove_leftovers(self.folder, before)

    def _is_there(self) -> bool:
        return self.folder.is_dir() and not self.folder.is_symlink()  # nothing that HSD writes is one

    def _files(self, *endings: str) -> list[str]:
        try:
            names = os.listdir(self.folder) if self._is_there() else []
        except FileNotFoundError:  # removed at this moment
            return []
        return sorted(name for name in names if name.endswith(endings) and not name.startswith("."))


def lines_of(folder: Path, *, follow: bool = False) -> list[Line]:
    """All lines of ``metadata.jsonl`` that are not empty, and those of parts that say more.

    A line of a part counts if its image is there. Where both have a line for one image, and they say different bytes,
    that one is returned, in the place of the first, whose bytes the image has.

    Parameters
    ----------
    follow
        Whether ``metadata.jsonl`` may be a link, as in data sets of others.

    Raises
    ------
    OSError
        If ``metadata.jsonl`` is there and cannot be read.
    """
    parts = PartFiles(folder).unread()
    found = list(_lines(METADATA, _metadata(folder, follow)))
    places: dict[str, int] = {}
    for at, line in enumerate(found):
        places.setdefault(_name_of(line.entry) or "", at)
    for line in parts:
        name = _name_of(line.entry)
        if name is None or line.entry is None or "/" in name or regular(folder / name) is None:
            continue
        known = places.setdefault(name, len(found))
        if known == len(found):
            found.append(line)
        elif better(folder, found[known].entry or {}, line.entry) is line.entry:
            found[known] = line
    return found


def entries_of(folder: Path) -> list[Entry]:
    """The lines of a folder's images, each parsed and once; those that are no JSON objects are left out."""
    once: dict[str, Entry] = {}
    for line in lines_of(folder):
        name = _name_of(line.entry)
        if line.entry is not None and name is not None:
            once[name] = line.entry if name not in once else better(folder, once[name], line.entry)
    return list(once.values())


def better(folder: Path, one: Entry, other: Entry) -> Entry:
    """Of two lines of one image: ``other`` if the image has the bytes that only this one says, else ``one``."""
    said = [(entry.get("size"), entry.get("digest")) for entry in (one, other)]
    if said[0] == said[1]:
        return one
    data = read_own(folder / str(other.get("file_name"))) or b""
    return other if said[1] == (len(data), digest_of(data)) else one


def split(data: bytes) -> list[bytes]:
    """Lines that are not empty. Split at line feeds only: a text may contain other separators."""
    return [line for line in data.removeprefix(_MARK).split(b"\n") if line.strip()]


def _lines(file: str, data: bytes, before: int = 0) -> Iterator[Line]:
    for number, line in enumerate(data.removeprefix(_MARK).split(b"\n"), start=before + 1):
        if line.strip():
            yield Line(file, number, line, parse(line))


def _metadata(folder: Path, follow: bool) -> bytes:
    if not follow:
        return read_own(folder / METADATA) or b""
    try:
        return read_file(folder / METADATA, _MOST)
    except FileNotFoundError:
        return b""


def _name_of(entry: Entry | None) -> str | None:
    name = None if entry is None else entry.get("file_name")
    return name if isinstance(name, str) and name and "\0" not in name else None
