"""Joining parts: what their writers have recorded goes to ``run.json`` and ``failed.jsonl``, and parts are removed.

Why nothing is lost. Only a run with a claim replaces ``metadata.jsonl``, by a file with all lines that it knows, and it
has read the parts before that file. A part is removed only under a lock, if all parts are of this host, if no other
claim lives, and if ``metadata.jsonl`` still has all lines after that look. So another run, on a host that the lock does
not reach, either has ended before, and what it wrote is what was looked at; or it has begun after, and finds in that
file what it does not find in parts. In every other case the parts stay, and every reader finds the lines there. What is
joined twice is there once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ..work import files
from ..work.files import FAILED
from ..work.hosts import host_in_names
from ..work.locks import Lock
from .belonging import Belonging
from .claims import Held
from .failures import failure_of, updated
from .metadata import Metadata
from .results import Failure


def join_records(own: Belonging, metadata: Metadata) -> None:
    """Add the runs of parts to ``run.json``, each once, and their failures to ``failed.jsonl``."""
    found = metadata.parts.records()
    if not found:
        return
    document = own.document()
    runs, failures = new_runs(document, found, metadata.entries)
    if not runs:
        return
    # Failures first: a run that is in run.json is not looked at again.
    record_failures(own.folder, metadata, failures)
    own.write({**document, "runs": [*document["runs"], *runs]})


def new_runs(
    document: dict[str, Any], found: dict[str, dict[str, Any]], made: Collection[int]
) -> tuple[list[dict[str, Any]], list[Failure]]:
    """The runs of parts that ``run.json`` does not have yet, by their end, and their failures that still are.

    Parameters
    ----------
    document
        What ``run.json`` says.
    found
        What writers have said at their end, by the name of the part.
    made
        Indices of images that exist.
    """
    known = joined_parts(document)
    new = {name: one for name, one in found.items() if name not in known}
    runs = sorted(({"part": name, **one["run"]} for name, one in new.items()), key=lambda run: str(run.get("finished")))
    told = [failure_of(entry) for one in new.values() for entry in _list(one.get("failures"))]
    return runs, [one for one in told if one is not None and one.index not in made]


def record_failures(folder: Path, metadata: Metadata, failures: Iterable[Failure]) -> None:
    """Bring ``failed.jsonl`` up to date; a file without entries is removed."""
    path = folder / FAILED
    data = updated(files.read_own(path) or b"", metadata.n_prompts, metadata.entries, failures)
    if data:
        files.write_atomically(files.cleared(folder, FAILED), data)
    elif os.path.lexists(path):
        files.cleared(folder, FAILED).unlink(missing_ok=True)


def remove_joined(own: Belonging, metadata: Metadata, held: Held) -> None:
    """Remove the parts whose lines and records are joined, if nothing can be lost; while the folder's lock is held."""
    parts = metadata.parts
    names = parts.names()
    if not names or not all(name.startswith(f"{host_in_names()}-") for name in names) or held.others():
        return
    if not metadata.is_joined():  # after the look at the claims: a run that has ended since may have replaced it
        return
    unrecorded = parts.records().keys() - joined_parts(own.document())
    for name in names:
        if name not in unrecorded:
            _remove(metadata, name)
    with contextlib.suppress(OSError):  # it is not empty, or not there
        os.rmdir(parts.folder)


def _remove(metadata: Metadata, name: str) -> None:
    """Remove a part, unless its writer lives: workers of another process claim nothing."""
    path = metadata.parts.folder / f"{name}.jsonl"
    lock = Lock(path, create=False)
    try:
        if not lock.acquire() or not metadata.parts.is_read(name):
            return
        if os.name == "nt":
            lock.release()  # an open file cannot be removed there
        path.unlink()
    except FileNotFoundError:
        pass  # a run without images has a record alone
    except OSError:  # no locks, or it is no file: it stays
        return
    finally:
        lock.release()
    path.with_suffix(".json").unlink(missing_ok=True)


def joined_parts(document: dict[str, Any]) -> set[str]:
    """The parts whose runs are in ``run.json``."""
    return {str(run["part"]) for run in document["runs"] if isinstance(run, dict) and "part" in run}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
