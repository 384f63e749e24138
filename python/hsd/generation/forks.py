"""Pictures of forks: what the images of a cluster were heading for when it split.

They are in a folder of their own beside the images, with one line each. A picture that is missing or damaged is no
error: it is written by the next run that computes its segment.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ..errors import Notice
from ..planning.plan import Plan
from ..work import files

if TYPE_CHECKING:
    from ..sampler import Predictions

FORKS = "__forks__"
"""The folder's name. ``datasets`` passes over names that begin with two underscores."""

LINES = "forks.jsonl"

MOST_PIXELS = 256
"""Largest width and height of a picture."""

Key = tuple[int, int, int]
"""What a fork is known by: its end step and its range of the leaf order."""


@dataclass(frozen=True)
class Fork:
    """The picture of a segment that forks: its last step's prediction of the image, decoded."""

    end_step: int
    leaf_begin: int
    leaf_end: int
    """Its range of the leaf order of the folder's plan."""
    representative: int
    first_step: int
    file_name: str
    """Of the picture, in the folder ``__forks__``."""
    size: int
    digest: str
    """Bytes of the picture, and their digest."""

    @property
    def key(self) -> Key:
        """What it is known by."""
        return self.end_step, self.leaf_begin, self.leaf_end


def read_forks(folder: str | os.PathLike[str]) -> list[Fork]:
    """The forks whose pictures a folder of images holds, by end step and leaf range.

    A line that does not hold, or whose picture is missing or has other bytes, is passed over.
    """
    found: dict[Key, Fork] = {}
    for fork in _lines(Path(folder) / FORKS):
        # Two shards may have made the same picture: one line of the two is that of the file.
        if _holds(Path(folder) / FORKS / fork.file_name, fork):
            found[fork.key] = fork
    return [found[key] for key in sorted(found)]


def forking(plan: Plan) -> NDArray[np.bool_]:
    """(segments,) whether a segment has children, so that it ends in a fork."""
    return np.asarray(plan.segments["end_step"] < plan.n_steps)


class ForkFolder:
    """Writes the pictures of forks to a folder of images.

    Parameters
    ----------
    out
        The folder of images.
    plan
        Its plan, whose leaf order names the forks. Runs may run others: images of equal conditioning are set apart.
    submit
        Called with a task and its arguments for each picture to be written: :meth:`Writers.submit`.

    Raises
    ------
    OutputError
        If the folder ``__forks__`` cannot be made.
    """

    def __init__(self, out: Path, plan: Plan, submit: Callable[..., object]) -> None:
        self.written = 0
        self._path, self._submit = out / FORKS, submit
        self._place = np.argsort(plan.tree.leaf_order)  # of each prompt in the leaf order
        self._mutex = threading.Lock()
        self._lost: list[str] = []
        self._present: set[Key] = set()
        if forking(plan).any():
            self._open()

    def _open(self) -> None:
        if self._path.is_symlink() or (self._path.exists() and not self._path.is_dir()):
            files.set_aside(self._path)
        files.make_folder(self._path)
        path = self._path / LINES
        if os.path.lexists(path) and files.regular(path) is None:
            files.set_aside(path)
        data = files.read_own(path)
        if data and not data.endswith(b"\n"):  # a run was killed while it wrote this line
            files.append(path, b"\n")
        self._present = {fork.key for fork in read_forks(self._path.parent)}

    def wanted(self, plan: Plan, predictions: Predictions) -> NDArray[np.bool_]:
        """(segments,) of a plan that runs: which of them fork, have a prediction and have no picture yet."""
        wanted = forking(plan)
        if plan.extensions:  # its leaf order, which names the forks, has changed
            return np.zeros_like(wanted)
        for segment in np.flatnonzero(wanted).tolist():
            key = self._key(plan, segment)
            wanted[segment] = key is not None and key not in self._present
        without = wanted & ~np.asarray(predictions.defined)[plan.segments["end_step"] - 1]
        if without.any():
            warnings.warn(
                f"no picture of {int(without.sum()):,} of {int(wanted.sum()):,} forks is kept: the scheduler does not "
                "say what image its steps predict, or says next to nothing yet",
                Notice,
                stacklevel=2,
            )
        return wanted & ~without

    def keep(self, plan: Plan, segment: int, picture: PIL.Image.Image) -> None:
        """Write the picture of a segment of the plan that runs."""
        self._submit(self._write, self._fields(plan, segment), picture)

    def leave_out(self, reason: str) -> None:
        """There is no picture of a fork that was wanted."""
        with self._mutex:
            self._lost.append(reason)

    def close(self) -> None:
        """Say what was left out."""
        if self._lost:
            warnings.warn(f"{len(self._lost):,} pictures of forks are left out: {self._lost[0]}", Notice, stacklevel=2)

    def _key(self, plan: Plan, segment: int) -> Key | None:
        """None if the members of the segment do not stand side by side in the folder's plan."""
        begin, end = plan.segments["leaf_begin"][segment], plan.segments["leaf_end"][segment]
        places = self._place[plan.tree.leaf_order[begin:end]]
        first, last = int(places.min()), int(places.max()) + 1
        return (int(plan.segments["end_step"][segment]), first, last) if last - first == len(places) else None

    def _fields(self, plan: Plan, segment: int) -> dict[str, Any]:
        key = self._key(plan, segment)
        assert key is not None, "it was not wanted"
        end_step, begin, end = key
        return {
            "end_step": end_step,
            "leaf_begin": begin,
            "leaf_end": end,
            "representative": int(plan.segments["representative"][segment]),
            "first_step": int(plan.segments["first_step"][segment]),
            "file_name": _name(key),
        }

    def _write(self, known: dict[str, Any], picture: PIL.Image.Image) -> None:
        """Write a picture and its line. A disk that takes none of it fails an image soon enough."""
        try:
            data, path = _encoded(picture), self._path / known["file_name"]
            if path.is_dir() and not path.is_symlink():
                files.set_aside(path)
            files.write_atomically(path, data)
            fork = Fork(**known, size=len(data), digest=files.digest_of(data))
            with self._mutex:
                files.append(self._path / LINES, json.dumps(asdict(fork)).encode() + b"\n")
                self.written += 1
        except Exception as error:
            from ..work.faults import described  # needs torch, which a reader of forks does not

            self.leave_out(described(error))


def _encoded(picture: PIL.Image.Image) -> bytes:
    small = picture.convert("RGBA" if "A" in picture.getbands() else "RGB")
    small.thumbnail((MOST_PIXELS, MOST_PIXELS))
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=90)
    return buffer.getvalue()


def _name(key: Key) -> str:
    return f"s{key[0]:03d}-{key[1]:06d}-{key[2]:06d}.webp"


def _lines(folder: Path) -> Iterator[Fork]:
    if folder.is_symlink():
        return
    for line in (files.read_own(folder / LINES) or b"").split(b"\n"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        kinds = {field.name: str if field.type == "str" else int for field in fields(Fork)}
        if not isinstance(entry, dict) or any(type(entry.get(name)) is not kind for name, kind in kinds.items()):
            continue
        fork = Fork(**{name: entry[name] for name in kinds})
        if fork.file_name == _name(fork.key):  # no other name, which may lead anywhere
            yield fork


def _holds(path: Path, fork: Fork) -> bool:
    status = files.regular(path)
    if status is None or status.st_size != fork.size:
        return False
    return files.digest_of(files.read_own(path) or b"") == fork.digest
