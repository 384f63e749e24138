"""The lines of a folder for a run: read with every line checked, appended to, joined and brought into order."""

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
from .union import PartFiles, better, entries_of, split

_THREADS = 8
"""Images that are read at once, to compare them with their digests: disks answer several requests faster than one."""

_CHUNK = 64

_TAIL = 4096
"""Bytes at the end of what is known, by which the file is known again."""


class Metadata:
    """The lines of a folder, those in parts included. Use while its lock is held.

    Parameters
    ----------
    folder
        Where they are.
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
        self.parts = PartFiles(folder)
        self._in_parts: dict[int, Entry] = {}
        """Lines of parts, which may be nowhere else."""
        self.n_prompts = n_prompts
        self._path, self._lines = folder / METADATA, lines
        self._checks: dict[bytes, Checked] = {}
        self._known: tuple[int, int, bytes] | None = None
        """Which file it was, its size, and the bytes at its end, when all of its lines were known.

        The number of the file is not enough: a system gives that of a replaced file to the next new one."""

    def check(self) -> None:
        """Check lines with their images in advance, without the lock: comparing digests may take minutes."""
        in_parts = [line.data for line in PartFiles(self._path.parent).unread()]
        lines = list(dict.fromkeys([*in_parts, *split(files.read_own(self._path) or b"")]))
        parsed = [(line, entry) for line in lines if (entry := parse(line)) is not None]
        found = _checked(self._lines, [entry for _, entry in parsed])
        self._checks = {line: checked for (line, _), checked in zip(parsed, found, strict=True)}

    def read(self) -> list[str]:
        """Read all lines, those that were not checked yet with their images; returns what did not hold.

        They are joined in ``metadata.jsonl``: lines that do not hold, and those of images that do not, leave it.
        """
        self.entries = {}
        # Parts first: who joins them writes metadata.jsonl before it removes them.
        in_parts = self._checked_parts()
        data = files.read_own(self._path)
        findings = self._cleared(data)
        lost: dict[str, Checked] = {}
        corrected: list[str] = []
        for number, line in enumerate(split(data or b""), start=1):
            checked = self._checks.get(line)
            if checked is None:
                entry = parse(line)
                if entry is None:
                    findings.append(f"line {number} of {METADATA} cannot be read")
                    continue
                checked = self._lines.check(entry)
            if checked.entry is None:
                lost[checked.finding or ""] = checked
                continue
            index = checked.entry["index"]
            if index in self.entries:
                corrected.append(f"{self._lines.name(index)} had more than one line")
                continue
            self.entries[index] = checked.entry
            if checked.finding is not None:
                corrected.append(checked.finding)
        for checked in in_parts:
            if checked.entry is not None:
                self._take_part(checked.entry)
        self._checks = {}
        # Of several lines of an image, one that holds is enough where others are in parts: two runs may have made it.
        lost = {finding: one for finding, one in lost.items() if one.index not in self._in_parts}
        lost |= {one.finding or "": one for one in in_parts if one.entry is None and one.index not in self.entries}
        self.lost = bool(lost)
        findings += [*lost, *corrected]
        status = files.regular(self._path)
        # A file with a second name is a copy of someone's: lines are not appended to that.
        if self._canonical() != (data or b"") or (status is not None and status.st_nlink > 1):
            self._replace()
        else:
            self._remember(data or b"")
        return findings

    def add(self, made: Iterable[Entry]) -> None:
        """Write the lines of new images; when this returns they are on the disk. Never a second line for an image."""
        self._learn()
        self._cut()
        batch: dict[int, Entry] = {entry["index"]: entry for entry in made}
        again = {index: entry for index, entry in batch.items() if index in self.entries}
        if again:
            # Someone else made it too, though it was claimed, and either file may have replaced the other.
            for index, entry in again.items():
                self.entries[index] = better(self._path.parent, self.entries[index], entry)
            self.entries.update((index, entry) for index, entry in batch.items() if index not in again)
            self._replace()
            return
        data = b"".join(map(encode, batch.values()))
        files.append(self._path, data)
        self.entries.update(batch)
        self._remember(data, after=self._known)

    def took(self, made: Iterable[Entry]) -> None:
        """Take in lines that this run has written to its part."""
        for entry in made:
            self._take_part(entry)

    def refresh(self) -> set[int]:
        """Take in the lines that others have written since; returns the indices that are new.

        New images are not compared with their digests: their writers have just computed them.
        """
        before = set(self.entries)
        for line in self.parts.unread():
            if line.entry is not None and self._lines.stands(line.entry):
                self._take_part(line.entry)
        self._learn()
        return set(self.entries) - before

    def join(self) -> None:
        """Bring all lines into ``metadata.jsonl``, in the order of the index, those of other runs too."""
        self.refresh()
        if self.entries and not self.is_joined():
            self._replace()

    def is_joined(self) -> bool:
        """Whether ``metadata.jsonl`` has the lines that are known, and no others."""
        return self._canonical() == (files.read_own(self._path) or b"")

    def format(self) -> str | None:
        """The ending of the images' names, from the first line that has one that HSD gives."""
        for line in split(files.read_own(self._path) or b""):
            ending = Path(str((parse(line) or {}).get("file_name"))).suffix[1:]
            if ending in FORMATS:
                return ending
        return None

    def says(self, *, anything: bool) -> bool:
        """Whether a line names a file that exists; with ``anything``, whether the file is anyone's at all."""
        data = files.read_own(self._path)
        if data is None:
            return anything and os.path.lexists(self._path)
        lines = split(data.replace(b"\0", b""))  # as power cuts leave them
        names = [(parse(line) or {}).get("file_name") for line in lines]
        here = [name for name in names if isinstance(name, str) and "\0" not in name]
        return (anything and bool(lines)) or any(os.path.lexists(self._path.parent / name) for name in here if name)

    def _checked_parts(self) -> list[Checked]:
        """What became of the lines of all parts."""
        self.parts, self._in_parts = PartFiles(self._path.parent), {}
        found = []
        for line in self.parts.unread():
            if line.entry is not None:
                found.append(self._checks.get(line.data) or self._lines.check(line.entry))
        return found

    def _cleared(self, data: bytes | None) -> list[str]:
        """What was in the place of the file, which is ``data``; it is not there any more."""
        if data is not None or not os.path.lexists(self._path):
            return []
        link = self._path.is_symlink()
        if not link and self._path.is_dir():
            files.set_aside(self._path)
        self._path.unlink(missing_ok=True)
        return [f"{METADATA} was {'a link' if link else 'not a file'}, which is not read"]

    def _take_part(self, entry: Entry) -> None:
        index, folder = entry["index"], self._path.parent
        self._in_parts[index] = better(folder, self._in_parts.get(index, entry), entry)
        self.entries[index] = better(folder, self.entries.get(index, entry), entry)

    def _learn(self) -> None:
        """Take in the lines that other runs have written to ``metadata.jsonl`` since."""
        status, known, data = files.regular(self._path), self._known, None
        if status is None:
            if known is not None or os.path.lexists(self._path):
                raise OutputError(
                    f"{self._path} was removed or replaced while the run was writing to it: run the same call again, "
                    "which makes what is missing"
                )
            return
        if known is not None and known[0] == status.st_ino and known[1] <= status.st_size:
            found = files.read_own(self._path, known[1] - len(known[2])) or b""
            if found.startswith(known[2]):
                data = found[len(known[2]) :]
        if data is None:
            known, self.entries = None, dict(self._in_parts)
            data = files.read_own(self._path) or b""
        whole = data[: data.rfind(b"\n") + 1]
        for line in split(whole):
            entry = parse(line)
            index = None if entry is None else entry.get("index")
            if entry is not None and type(index) is int and 0 <= index < self.n_prompts:
                self.entries[index] = better(self._path.parent, self._in_parts.get(index, entry), entry)
        self._remember(whole, after=known)

    def _cut(self) -> None:
        """Remove half a line at the end, which a killed run has left: the next line would begin in it."""
        status = files.regular(self._path)
        if status is not None and self._known is not None and status.st_size > self._known[1]:
            os.truncate(self._path, self._known[1])

    def _canonical(self) -> bytes:
        return b"".join(encode(self.entries[index]) for index in sorted(self.entries))

    def _replace(self) -> None:
        data = self._canonical()
        files.write_atomically(self._path, data)
        self._remember(data)

    def _remember(self, data: bytes, after: tuple[int, int, bytes] | None = None) -> None:
        """``data`` is all that the file has, or what it has after what was known; others may have written meanwhile."""
        status = files.regular(self._path)
        size, tail = (0, b"") if after is None else after[1:]
        self._known = None if status is None else (status.st_ino, size + len(data), (tail + data)[-_TAIL:])


def complete(folder: Path, plan: Plan, image_format: ImageFormat = "png") -> set[int]:
    """Indices of the images of a plan that are complete in a folder. Reads only, and claims nothing."""
    checked = _checked(Lines(folder, plan, ending(image_format)), entries_of(folder))
    return {one.entry["index"] for one in checked if one.entry is not None}


def _checked(lines: Lines, parsed: list[Entry]) -> Iterator[Checked]:
    """Check lines with their images, several at once, in order."""
    chunks = [parsed[i : i + _CHUNK] for i in range(0, len(parsed), _CHUNK)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="hsd-verify") as pool:
        for checked in pool.map(lambda chunk: [lines.check(entry) for entry in chunk], chunks):
            yield from checked
