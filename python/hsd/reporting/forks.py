"""Pictures of forks, as the folder ``__forks__`` holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..work.files import read_own
from ..work.reading import parse_json


@dataclass(frozen=True)
class Fork:
    """The picture that a segment was heading for when it forked."""

    end_step: int
    leaf_begin: int
    leaf_end: int
    file_name: str


def read_forks(folder: Path) -> list[Fork]:
    """The forks whose pictures a folder holds; what does not hold is left out."""
    found = []
    for line in (read_own(folder / "__forks__" / "forks.jsonl") or b"").split(b"\n"):
        try:
            one = parse_json(line)
            fork = Fork(int(one["end_step"]), int(one["leaf_begin"]), int(one["leaf_end"]), str(one["file_name"]))
        except (ValueError, KeyError, TypeError):
            continue
        if (folder / "__forks__" / Path(fork.file_name).name).is_file():
            found.append(fork)
    return found
