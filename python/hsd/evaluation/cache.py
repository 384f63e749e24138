"""Scores on disk: ``scores-<scorer>.jsonl``, one line per image, appended batch by batch. Nothing is scored twice."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from ..work.files import advice, append, make_folder, read_own, write_atomically
from ..work.locks import locked
from ..work.reading import is_number, parse_json
from .folder import Entry

_Key = tuple[str, str]
"""The digest of the image's file, and the prompt."""


class ScoreCache:
    """The stored scores of one scorer.

    A score belongs to the bytes of an image, its prompt and the scorer's version. File times and names are not part of
    the key: they change when a folder is copied, and scoring again costs far more than reading a file. Several folders
    can use one cache.

    Parameters
    ----------
    folder
        Where the file is; created if it does not exist.
    name, version
        Name and version of the scorer. Lines of other versions are kept in the file, but not used.

    Raises
    ------
    OutputError
        If the folder cannot be written to, or something else has the file's name.
    """

    def __init__(self, folder: Path, name: str, version: str):
        self.path = make_folder(folder) / f"scores-{name}.jsonl"
        self._version = version
        with self._locked():
            self._scores = self._read()

    def missing(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries without a score; of entries with the same image and prompt only the first."""
        wanted = {_key(entry): entry for entry in reversed(entries)}  # the first of equal ones
        return [entry for key, entry in reversed(wanted.items()) if key not in self._scores]

    def scores(self, entries: Sequence[Entry]) -> NDArray[np.float64]:
        """(n,) scores; nan for images that the scorer gave no score."""
        return np.array([self._scores[_key(entry)] for entry in entries], dtype=np.float64)

    def add(self, entries: Sequence[Entry], scores: NDArray[np.float64]) -> None:
        """Append the scores (n,) of a batch to the file: they are on the disk when this returns."""
        lines = []
        for entry, score in zip(entries, scores.tolist(), strict=True):
            self._scores[_key(entry)] = score
            line: dict[str, Any] = {
                "file_name": entry.file_name,
                "text": entry.text,
                "score": None if math.isnan(score) else score,  # JSON has no nan
                "version": self._version,
                "digest": entry.digest,
            }
            lines.append(json.dumps(line) + "\n")
        try:
            with self._locked():
                append(self.path, "".join(lines).encode())
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path}: {error.strerror or error}. Scores that are written are kept: "
                f"{advice(error)}"
            ) from error

    def _locked(self) -> AbstractContextManager[bool]:
        busy = f"{self.path} has been locked by another process for a minute: end a process that hangs, and try again"
        return locked(self.path.parent / f".{self.path.stem}.lock", 60, lambda: OutputError(busy))

    def _read(self) -> dict[_Key, float]:
        """The scores of this version. Incomplete lines, as interrupted runs leave them, are removed from the file."""
        try:
            data = read_own(self.path)
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror or error}") from None
        if data is None:
            if os.path.lexists(self.path):
                raise OutputError(f"{self.path} is a link, a folder or a pipe, not a file: remove it")
            data = b""
        scores: dict[_Key, float] = {}
        valid = []
        for line in data.split(b"\n"):
            if (parsed := _parsed(line)) is None:
                continue  # it is scored again
            key, version, score = parsed
            valid.append(line + b"\n")
            if version == self._version:
                scores[key] = score
        if b"".join(valid) != data:
            write_atomically(self.path, b"".join(valid))
        return scores


def stored_scores(folder: Path) -> dict[str, dict[_Key, float]]:
    """The scores that a folder holds, by scorer: those of the version that scored last. Reads only.

    A score belongs to the digest of an image and its text; nan for an image that the scorer gave no score.
    """
    found: dict[str, dict[_Key, float]] = {}
    for path in sorted(folder.glob("scores-*.jsonl")):
        by_version: dict[Any, dict[_Key, float]] = {}
        version: Any = None
        for line in (read_own(path) or b"").split(b"\n"):
            if (parsed := _parsed(line)) is not None:
                key, version, score = parsed
                by_version.setdefault(version, {})[key] = score
        if by_version:
            found[path.stem.removeprefix("scores-")] = by_version[version]
    return found


def _parsed(line: bytes) -> tuple[_Key, Any, float] | None:
    """What a line says: key, version and score; None if it is not a line of scores."""
    try:
        fields = parse_json(line)
        key = str(fields["digest"]), str(fields["text"])
        version, score = fields["version"], fields["score"]
    except (ValueError, KeyError, TypeError):
        return None
    if not (isinstance(version, str) and (score is None or is_number(score))):
        return None
    return key, version, math.nan if score is None else float(score)


def _key(entry: Entry) -> _Key:
    return entry.digest, entry.text
