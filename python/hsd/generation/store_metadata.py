"""The lines of an object store for a run: read with every line compared with the listing, and joined at the end.

Why nothing is lost without a lock. Files of lines are written once and never changed. Who joins them reads all of them,
then ``metadata.jsonl``, and writes that with all lines. It removes the files that it has read only if no other claim
lives, and if ``metadata.jsonl`` still has all their lines after that look: so no other run can have replaced it by what
it read earlier. In every other case the files stay, and the next run joins them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..work.files import METADATA, PARTS, digest_of
from ..work.objects import Objects
from ..work.reading import parse_json
from .lines import FORMATS, Entry, Lines, encode, parse
from .union import split


class StoreMetadata:
    """The lines of a folder in a store, those in parts included.

    Parameters
    ----------
    objects
        The folder.
    lines
        What lines have to say.
    n_prompts
        N of the plan.
    """

    def __init__(self, objects: Objects, lines: Lines, n_prompts: int) -> None:
        self.entries: dict[int, Entry] = {}
        """The line of each complete image, by index."""
        self.lost = False
        """Whether :meth:`read` found lines of images that are not there."""
        self.n_prompts = n_prompts
        self._objects, self._lines = objects, lines
        self._known: set[str] = set()
        """Files of lines that were read."""
        self._refused: set[bytes] = set()
        """Lines whose images are not there."""

    def read(self) -> list[str]:
        """Read all lines and compare them with the images there; returns what did not hold."""
        found = self._parsed(self._unread()) + self._parsed([self._objects.get(METADATA) or b""])
        sizes = self._objects.sizes()  # after the lines: each has its image by now
        findings: list[str] = []
        lost: dict[int, str] = {}
        for entry in found:
            index, name = entry["index"], self._lines.name(entry["index"])
            if sizes.get(name) != entry["size"]:
                other = f"has {sizes.get(name, 0):,} bytes, and its line says {entry['size']:,}"
                lost.setdefault(index, f"{name} {other if name in sizes else 'is missing'}")
                self._refused.add(encode(entry))
            else:
                checked = self._lines.corrected(entry, index)
                if checked.finding is not None:
                    findings.append(checked.finding)
                self._take(checked.entry or entry)
        lost = {index: text for index, text in lost.items() if index not in self.entries}
        self.lost = bool(lost)
        return [*lost.values(), *findings]

    def took(self, made: Iterable[Entry]) -> None:
        """Take in lines that this run has written."""
        for entry in made:
            self._take(entry)

    def refresh(self) -> set[int]:
        """Take in the lines that others have put since; returns the indices that are new."""
        before = set(self.entries)
        self.took(self._parsed(self._unread()))
        return set(self.entries) - before

    def join(self) -> None:
        """Bring all lines into ``metadata.jsonl``, in the order of the index, those of other runs too."""
        self.refresh()
        data = self._objects.get(METADATA)
        for entry in self._parsed([data or b""]):  # another run may have joined others
            if entry["index"] not in self.entries and encode(entry) not in self._refused:
                self._take(entry)
        if self.entries and self._canonical() != data:
            self._objects.put(METADATA, self._canonical())

    def is_joined(self) -> bool:
        """Whether ``metadata.jsonl`` has the lines that are known, and no others."""
        return self._canonical() == (self._objects.get(METADATA) or b"")

    def joined_files(self) -> list[str]:
        """The files of lines that were read."""
        return sorted(self._known)

    def records(self, known: set[str]) -> dict[str, dict[str, Any]]:
        """What writers have said at their end, by the name of the writer, without those that are ``known``."""
        names = {name.split("/")[-1].removesuffix(".json"): name for name in self._parts(".json")}
        found = {}
        data = self._objects.get_all([name for writer, name in names.items() if writer not in known])
        for writer, name in names.items():
            try:
                document = parse_json(data.get(name, b""))
            except ValueError:
                continue
            if isinstance(document, dict) and isinstance(document.get("run"), dict):
                found[writer] = document
        return found

    def says(self) -> bool:
        """Whether there are images with names as HSD gives them, or lines."""
        sizes = self._objects.sizes()
        return METADATA in sizes or any(
            size and name.rpartition(".")[0].isdecimal() and name.rpartition(".")[2] in FORMATS
            for name, size in sizes.items()
        )

    def _unread(self) -> list[bytes]:
        """Files of lines that were not read before."""
        names = [name for name in self._parts(".jsonl") if name not in self._known]
        found = self._objects.get_all(names)
        self._known.update(found)
        return list(found.values())

    def _parts(self, ending: str) -> list[str]:
        return sorted(name for name in self._objects.sizes_below(PARTS) if name.endswith(ending))

    def _parsed(self, files: Iterable[bytes]) -> list[Entry]:
        """The lines of files that are of images of the plan."""
        entries = [entry for data in files for line in split(data) if (entry := parse(line)) is not None]
        return [entry for entry in entries if self._is_of_plan(entry)]

    def _is_of_plan(self, entry: Entry) -> bool:
        index = entry.get("index")
        return (
            type(index) is int
            and 0 <= index < self.n_prompts
            and entry.get("file_name") == self._lines.name(index)
            and isinstance(entry.get("size"), int)
        )

    def _take(self, entry: Entry) -> None:
        """Take a line; of two that say different bytes, which two runs have written, the one that its image has."""
        index = entry["index"]
        known = self.entries.setdefault(index, entry)
        if known.get("digest") != entry.get("digest"):
            data = self._objects.get(entry["file_name"]) or b""
            if entry.get("digest") == digest_of(data):
                self.entries[index] = entry

    def _canonical(self) -> bytes:
        return b"".join(encode(self.entries[index]) for index in sorted(self.entries))
