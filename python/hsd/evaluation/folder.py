"""Folders of images with a ``metadata.jsonl``: reading, checking (before any expensive work) and pairing them."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ..errors import Error
from ..generation.image_files import on_white
from ..generation.union import Line, lines_of
from ..planning.plan import PLAN_FILE, Plan
from ..work.files import METADATA, digest_of
from ..work.paths import user_path
from ..work.reading import parse_json, read_file

_MOST_IMAGE = 1 << 30


class FolderError(Error, ValueError):
    """A folder that cannot be evaluated, or not be compared with another. Names the file and the line."""


@dataclass(frozen=True)
class Entry:
    """One image, with the fields of its line of metadata."""

    path: Path
    file_name: str
    text: str
    index: int | None
    seed: int | None
    line: int
    digest: str
    """Digest of the file's bytes: a score belongs to these bytes, not to the file's name."""
    file: str = METADATA
    """The file of the line, below the folder: not that one while a run of several writers lasts."""

    @property
    def where(self) -> str:
        """The line of metadata, for messages."""
        return f"{self.path.parent / self.file}, line {self.line}"


@dataclass(frozen=True)
class Folder:
    """A folder's images, in an order that does not depend on the order of the lines."""

    path: Path
    entries: tuple[Entry, ...]

    @property
    def prompts(self) -> list[str]:
        """One per image."""
        return [entry.text for entry in self.entries]


def read_folder(path: str | os.PathLike[str]) -> Folder:
    """Read a folder that :func:`hsd.generate` wrote, or any ``imagefolder`` data set with texts.

    Every line of ``metadata.jsonl`` has a ``file_name`` and a ``text``, and may have an ``index`` and a ``seed``. The
    images are sorted by index where all have one, else by text, seed and name: runs that are interrupted leave lines
    in the order in which images finished.

    Raises
    ------
    FolderError
        If there is no such folder or it has no metadata, if a line is not such an object, or if an image is missing
        or is not an image. Names the file and the line.
    """
    path = user_path(path)
    if not path.is_dir():
        raise FolderError(f"{path} is not a folder: name one with images and {METADATA}")
    entries = list(_entries(path))
    if not entries:
        raise FolderError(f"{path / METADATA} has no images: nothing to evaluate")
    _no_repeats(entries)
    if all(entry.index is not None for entry in entries):
        entries.sort(key=lambda entry: entry.index or 0)
    else:
        entries.sort(key=lambda entry: (entry.text, entry.seed or 0, entry.file_name))
    return Folder(path, tuple(entries))


def root_clusters(folder: Folder) -> NDArray[np.int64] | None:
    """(n,) the root cluster of each image by the folder's plan: the segment that is active at step 0.

    None if the folder has no plan: then nothing is known about what its images share.

    Raises
    ------
    FolderError
        If the plan is not that of the images. Names the line of the first that it does not fit.
    Error
        If the file is not a valid plan.
    """
    path = folder.path / PLAN_FILE
    if not path.is_file():
        return None
    try:
        plan = Plan.load(path).whole()
    except OSError as error:
        raise FolderError(f"cannot read {path}: {error.strerror or error}") from None
    indices: list[int] = []
    for entry in folder.entries:
        index = entry.index
        if index is None or not 0 <= index < plan.n_prompts or plan.prompts[index] != entry.text:
            found = "no image" if index is None or not 0 <= index < plan.n_prompts else repr(plan.prompts[index])
            raise FolderError(
                f"{path} is not the plan of these images: for {_identity(entry)} ({entry.where}) it has {found}; "
                "if they share no steps, or if only prompts should be resampled, move the plan away"
            )
        indices.append(index)
    return plan.active(0)[indices]


def load_image(entry: Entry) -> PIL.Image.Image:
    """The image in RGB, on white where it is transparent."""
    try:
        with PIL.Image.open(entry.path) as image:
            return on_white(image).convert("RGB")
    except Exception as error:  # as in _digest
        raise FolderError(f"{entry.path} cannot be decoded ({error}): {entry.where}") from None


def pair(a: Folder, b: Folder) -> list[int]:
    """Return for each image of ``a`` the position in ``b`` of the image it is compared with.

    Images are matched by index if all have one, else by text and seed if all have a seed, else by text. Images that are
    equal in these are paired in order.

    Raises
    ------
    FolderError
        If the folders do not have the same prompts. Names the first that differs.
    """
    ours, theirs = _positions(a, b)
    # Only the first unmatched image is reported; entries are sorted, so it is the lowest index or text.
    unmatched = [(ours[key], a, b) for key in ours if key not in theirs]
    unmatched += [(theirs[key], b, a) for key in theirs if key not in ours]
    for i, has, lacks in sorted(unmatched, key=lambda one: one[0])[:1]:
        entry = has.entries[i]
        raise FolderError(
            f"{a.path} and {b.path} do not have the same prompts: {lacks.path} has no image for {_identity(entry)} "
            f"({entry.where})"
        )
    for key, i in ours.items():
        mine, other = a.entries[i], b.entries[theirs[key]]
        if mine.text != other.text:
            raise FolderError(
                f"{a.path} and {b.path} do not have the same prompts: at index {mine.index} one has {mine.text!r} "
                f"({mine.where}), the other {other.text!r} ({other.where})"
            )
    return [theirs[key] for key in ours]


def partners(a: Folder, b: Folder) -> list[int | None]:
    """As :func:`pair`, for folders that may have different prompts: None for an image of ``a`` without one in ``b``.

    An image that has no partner by index gets one by text and seed, else by text. Partners always have the same text.
    """
    out: list[int | None] = [None] * len(a.entries)
    left = set(range(len(b.entries)))
    for key_of in (_index_and_text, _text_and_seed, lambda entry: entry.text):
        ours = _keyed(key_of, a, [i for i, j in enumerate(out) if j is None])
        theirs = _keyed(key_of, b, sorted(left))
        for key in ours.keys() & theirs.keys():
            out[ours[key]] = theirs[key]
            left.remove(theirs[key])
    return out


def _index_and_text(entry: Entry) -> Hashable:
    return None if entry.index is None else (entry.index, entry.text)


def _text_and_seed(entry: Entry) -> Hashable:
    return None if entry.seed is None else (entry.text, entry.seed)


def _keyed(key_of: Callable[[Entry], Hashable], folder: Folder, positions: Sequence[int]) -> dict[Hashable, int]:
    """These positions by the key of their image, those that have one; equal ones are numbered."""
    keyed = [(key, i) for i in positions if (key := key_of(folder.entries[i])) is not None]
    numbered = _numbered([(key,) for key, _ in keyed])
    return {key: keyed[at][1] for key, at in numbered.items()}


def _positions(a: Folder, b: Folder) -> tuple[dict[Hashable, int], dict[Hashable, int]]:
    """Positions of the images of both folders by what they are matched by."""
    entries = [*a.entries, *b.entries]
    if all(entry.index is not None for entry in entries):
        return _by_index(a), _by_index(b)
    if all(entry.seed is not None for entry in entries):
        return _by_text_and_seed(a), _by_text_and_seed(b)
    return _by_text(a), _by_text(b)


def _identity(entry: Entry) -> str:
    index = "" if entry.index is None else f"index {entry.index}, "
    seed = "" if entry.seed is None else f", seed {entry.seed}"
    return f"{index}{entry.text!r}{seed}"


def _by_index(folder: Folder) -> dict[Hashable, int]:
    return {entry.index: i for i, entry in enumerate(folder.entries)}


def _by_text_and_seed(folder: Folder) -> dict[Hashable, int]:
    return _numbered([(entry.text, entry.seed) for entry in folder.entries])


def _by_text(folder: Folder) -> dict[Hashable, int]:
    return _numbered([(entry.text,) for entry in folder.entries])


def _numbered(keys: Sequence[tuple[Any, ...]]) -> dict[Hashable, int]:
    """Positions by key; each key is made unique by appending how often it has occurred before."""
    seen: dict[Any, int] = {}
    out: dict[Hashable, int] = {}
    for i, key in enumerate(keys):
        out[key + (seen.get(key, 0),)] = i  # noqa: RUF005
        seen[key] = seen.get(key, 0) + 1
    return out


def _entries(folder: Path) -> Iterator[Entry]:
    try:
        lines = lines_of(folder, follow=True)
    except OSError as error:
        raise FolderError(f"cannot read {folder / METADATA}: {error.strerror or error}") from None
    if not lines and not os.path.lexists(folder / METADATA):
        raise FolderError(f"{folder} has no {METADATA}: each line of that file has to name an image and its text")
    for line in lines:
        yield _entry(folder, line)


def _entry(folder: Path, line: Line) -> Entry:
    where = f"{folder / line.file}, line {line.number}"
    try:
        fields = parse_json(line.data)
    except ValueError as error:
        raise FolderError(
            f"{where} is not JSON ({error}): if hsd generate made the folder, run the same command again"
        ) from None
    name = fields.get("file_name") if isinstance(fields, dict) else None
    if not isinstance(name, str) or not name:
        raise FolderError(f'{where} names no image: write an object such as {{"file_name": "0.png", "text": "a cat"}}')
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise FolderError(f"{where} names {name!r}, which is outside the folder: move the image into the folder")
    text = fields.get("text")
    if not isinstance(text, str) or not text.strip():
        raise FolderError(f'{where} has no text for {name}: write the prompt of the image under "text"')
    integers = {}
    for field in ("index", "seed"):
        value = fields.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise FolderError(f"{where}: the {field} is {value!r}, which is not an integer")
        integers[field] = value
    path = folder / name
    digest = _digest(path, where, (fields.get("size"), fields.get("digest")))
    return Entry(path, name, text, integers["index"], integers["seed"], line.number, digest, line.file)


def _digest(path: Path, where: str, written: tuple[Any, Any]) -> str:
    """The digest of the file. Also checks that it is a complete image, as far as its format can tell.

    Where the line says what was ``written``, a size and a digest as :func:`hsd.generate` gives them, it has to be that.
    """
    try:
        data = read_file(path, _MOST_IMAGE)
    except FileNotFoundError:
        raise FolderError(f"{path} is missing: {where}") from None
    except OSError as error:
        raise FolderError(f"cannot read {path} ({error.strerror or error}): {where}") from None
    digest = digest_of(data)
    size, known = written
    ours = isinstance(size, int) and isinstance(known, str) and len(known) == len(digest)
    if ours and (len(data), digest) != written:
        raise FolderError(
            f"{path} is not the image that was written ({len(data):,} of {size:,} bytes, with digest {digest} instead "
            f"of {known!r}): {where}; to have it made again, run the same command of hsd generate again"
        )
    try:
        PIL.Image.open(BytesIO(data)).verify()
    except Exception as error:  # readers of damaged images fail in many ways
        reason = "its format is not known" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise FolderError(f"{path} is not an image ({reason}): {where}") from None
    return digest


def _no_repeats(entries: list[Entry]) -> None:
    for field in ("file_name", "index"):
        seen: dict[Any, Entry] = {}
        for entry in entries:
            value = getattr(entry, field)
            if value is not None and value in seen:
                raise FolderError(f"{entry.where}: the {field} {value!r} is already in line {seen[value].line}")
            seen[value] = entry
