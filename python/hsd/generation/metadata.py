"""The file ``metadata.jsonl``: read with every line checked, appended to, and brought into order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import OutputError
from ..names import ImageFormat
from ..planning.plan import Plan
from ..work import files
from ..work.files import METADATA
from .lines import FORMATS, Checked, Entry, Lines, encode, ending, parse

_THREADS = 8
"""Images that are read at once, to compare them with their digests: disks answer several requests faster than one."""

_CHUNK = 64

_TAIL = 4096
"""Bytes at the end of what is known, by which the file is known again."""


class Metadata:
    """The lines of a folder. Use while its lock is held.

    Parameters
    ----------
    folder
        Where the file is.
    lines
        What lines have to say.
    n_prompts
        N of the plan.
    """

    def __init__(self, folder: Path, lines: Lines, n_prompts: int) -> None:
        self.entries: dict[int, Entry] = {}
        """The line of each complete image, by index."""
        self.lost = False
        """Whether the latest :meth:`read` found lines that do not hold."""
        self._path, self._lines, self._n_prompts = folder / METADATA, lines, n_prompts
        self._checks: dict[bytes, Checked] = {}
        self._known: tuple[int, int, bytes] | None = None
        """Which file it was, its size, and the bytes at its end, when all of its lines were known.

        The number of the file is not enough: a system gives that of a replaced file to the next new one."""

    def check(self) -> None:
        """Check lines with their images in advance, without the lock: comparing digests may take minutes."""
        lines = list(dict.fromkeys(_split(files.read_own(self._path) or b"")))
        parsed = [(line, entry) for line in lines if (entry := parse(line)) is not None]
        found = _checked(self._lines, [entry for _, entry in parsed])
        self._checks = {line: checked for (line, _), checked in zip(parsed, found, strict=True)}

    def read(self) -> list[str]:
        """Read all lines, those that were not checked yet with their images; returns what did not hold.

        Lines that do not hold, and those of images that do not, are removed from the file.
        """
        data = files.read_own(self._path)
        findings = []
        if data is None and os.path.lexists(self._path):
            link = self._path.is_symlink()
            if not link and self._path.is_dir():
                files.set_aside(self._path)
            findings.append(f"{METADATA} was {'a link' if link else 'not a file'}, which is not read")
            self._path.unlink(missing_ok=True)
        self.entries = {}
        lost: dict[str, None] = {}
        corrected: list[str] = []
        for number, line in enumerate(_split(data or b""), start=1):
            checked = self._checks.get(line)
            if checked is None:
                entry = parse(line)
                if entry is None:
                    findings.append(f"line {number} of {METADATA} cannot be read")
                    continue
                checked = self._lines.check(entry)
            if checked.entry is None:
                lost[checked.finding or ""] = None
                continue
            index = checked.entry["index"]
            if index in self.entries:
                corrected.append(f"{self._lines.name(index)} had more than one line")
                continue
            self.entries[index] = checked.entry
            if checked.finding is not None:
                corrected.append(checked.finding)
        self._checks = {}
        self.lost = bool(lost)
        findings += [*lost, *corrected]
        status = files.regular(self._path)
        # A file with a second name is a copy of someone's: lines are not appended to that.
        if data is not None and (self._canonical() != data or (status is not None and status.st_nlink > 1)):
            self._replace()
        self._remember()
        return findings

    def add(self, made: Iterable[Entry]) -> None:
        """Write the lines of new images; when this returns they are on the disk. Never a second line for an image."""
        self._learn()
        batch: dict[int, Entry] = {entry["index"]: entry for entry in made}
        again = {index: entry for index, entry in batch.items() if index in self.entries}
        if again:
            # Someone else made it too, though it was claimed, and either file may have replaced the other.
            for index, entry in again.items():
                digest = files.digest_of(files.read_own(self._path.parent / entry["file_name"]) or b"")
                if digest != self.entries[index].get("digest"):
                    self.entries[index] = entry
            self.entries.update((index, entry) for index, entry in batch.items() if index not in again)
            self._replace()
        else:
            files.append(self._path, b"".join(map(encode, batch.values())))
            self.entries.update(batch)
        self._remember()

    def sort(self) -> None:
        """Bring the lines into the order of the index, those of other runs too."""
        self._learn()
        if self.entries and self._canonical() != files.read_own(self._path):
            self._replace()
        self._remember()

    def format(self) -> str | None:
        """The ending of the images' names, from the first line that has one that HSD gives."""
        for line in _split(files.read_own(self._path) or b""):
            ending = Path(str((parse(line) or {}).get("file_name"))).suffix[1:]
            if ending in FORMATS:
                return ending
        return None

    def says(self, *, anything: bool) -> bool:
        """Whether a line names a file that exists; with ``anything``, whether the file is anyone's at all."""
        data = files.read_own(self._path)
        if data is None:
            return anything and os.path.lexists(self._path)
        lines = _split(data.replace(b"\0", b""))  # as power cuts leave them
        names = [(parse(line) or {}).get("file_name") for line in lines]
        here = [name for name in names if isinstance(name, str) and "\0" not in name]
        return (anything and bool(lines)) or any(os.path.lexists(self._path.parent / name) for name in here if name)

    def _learn(self) -> None:
        """Take in the lines that other runs have written since."""
        status = files.regular(self._path)
        if status is None:
            if self.entries or os.path.lexists(self._path):
                raise OutputError(
                    f"{self._path} was removed or replaced while the run was writing to it: run the same call again, "
                    "which makes what is missing"
                )
            return
        begin, data = 0, None
        if self._known is not None and self._known[0] == status.st_ino and self._known[1] <= status.st_size:
            _, size, tail = self._known
            found = files.read_own(self._path, size - len(tail)) or b""
            if found.startswith(tail):
                begin, data = size, found[len(tail) :]
        if data is None:
            self.entries = {}
            data = files.read_own(self._path) or b""
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # a run was killed while it wrote this line
            os.truncate(self._path, begin + whole)
        for line in _split(data[:whole]):
            entry = parse(line)
            index = None if entry is None else entry.get("index")
            if entry is not None and isinstance(index, int) and 0 <= index < self._n_prompts:
                self.entries[index] = entry

    def _canonical(self) -> bytes:
        return b"".join(encode(self.entries[index]) for index in sorted(self.entries))

    def _replace(self) -> None:
        files.write_atomically(self._path, self._canonical())

    def _remember(self) -> None:
        status = files.regular(self._path)
        if status is None:
            self._known = None
            return
        tail = files.read_own(self._path, max(0, status.st_size - _TAIL)) or b""
        self._known = status.st_ino, status.st_size, tail


def complete(folder: Path, plan: Plan, image_format: ImageFormat = "png") -> set[int]:
    """Indices of the images of a plan that are complete in a folder. Reads only, and claims nothing."""
    parsed = [parse(line) for line in _split(files.read_own(folder / METADATA) or b"")]
    lines = Lines(folder, plan, ending(image_format))
    checked = _checked(lines, [entry for entry in parsed if entry is not None])
    return {one.entry["index"] for one in checked if one.entry is not None}


def _split(data: bytes) -> list[bytes]:
    """Lines that are not empty. Split at line feeds only: a text may contain other separators."""
    return [line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]


def _checked(lines: Lines, parsed: list[Entry]) -> Iterator[Checked]:
    """Check lines with their images, several at once, in order."""
    chunks = [parsed[i : i + _CHUNK] for i in range(0, len(parsed), _CHUNK)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="hsd-verify") as pool:
        for checked in pool.map(lambda chunk: [lines.check(entry) for entry in chunk], chunks):
            yield from checked
