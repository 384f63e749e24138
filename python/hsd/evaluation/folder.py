"""Folders of images with a ``metadata.jsonl``: read, checked before anything expensive, and paired with each other."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image

from ..errors import Error
from ..generation.folder import METADATA


class FolderError(Error, ValueError):
    """A folder that cannot be evaluated, or compared with another. Names the file and the line."""


@dataclass(frozen=True)
class Entry:
    """One image and what its line of metadata says."""

    path: Path
    file_name: str
    text: str
    index: int | None
    seed: int | None
    line: int
    digest: str
    """Of the file's bytes: what a score belongs to."""

    @property
    def where(self) -> str:
        """The line of metadata, for messages."""
        return f"{self.path.parent / METADATA}, line {self.line}"


@dataclass(frozen=True)
class Folder:
    """A folder's images, in an order that does not depend on that of the lines."""

    path: Path
    entries: tuple[Entry, ...]

    @property
    def prompts(self) -> list[str]:
        """One an image."""
        return [entry.text for entry in self.entries]


def read_folder(path: str | os.PathLike[str]) -> Folder:
    """Read a folder that :func:`hsd.generate` wrote, or any ``imagefolder`` data set with texts.

    Every line of ``metadata.jsonl`` has a ``file_name`` and a ``text``, and may have an ``index`` and a ``seed``. The
    images are sorted by index where all have one, else by text, seed and name: runs write lines as images finish.

    Raises
    ------
    FolderError
        If there is no such folder or it has no metadata, if a line is not such an object, or if an image is missing
        or is not an image. Names the file and the line.
    """
    path = Path(path)
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


def load_image(entry: Entry) -> PIL.Image.Image:
    """The image in RGB, on white where it is transparent."""
    try:
        with PIL.Image.open(entry.path) as image:
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise FolderError(f"{entry.path} cannot be decoded ({error}): {entry.where}") from None


def pair(a: Folder, b: Folder) -> list[int]:
    """For each image of ``a`` the position in ``b`` of the one it is compared with.

    By index where all images have one; else by text and seed; else by text. Images that these do not tell apart are
    paired in order.

    Raises
    ------
    FolderError
        If the folders do not have the same prompts. Names the first that differs.
    """
    entries = [*a.entries, *b.entries]
    if all(entry.index is not None for entry in entries):
        keys: Callable[[Folder], dict[Hashable, int]] = _by_index
    elif all(entry.seed is not None for entry in entries):
        keys = _by_text_and_seed
    else:
        keys = _by_text
    ours, theirs = keys(a), keys(b)
    # The first by its place, which is by index or by text: entries are sorted.
    alone = [(ours[key], a, b) for key in ours if key not in theirs]
    alone += [(theirs[key], b, a) for key in theirs if key not in ours]
    for i, has, lacks in sorted(alone, key=lambda one: one[0])[:1]:
        entry = has.entries[i]
        raise FolderError(
            f"{a.path} and {b.path} do not have the same prompts: {lacks.path} has no image for {_name(entry)} "
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


def _name(entry: Entry) -> str:
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
    """Keys made unique by how often each has occurred before."""
    seen: dict[Any, int] = {}
    out: dict[Hashable, int] = {}
    for i, key in enumerate(keys):
        out[key + (seen.get(key, 0),)] = i  # noqa: RUF005
        seen[key] = seen.get(key, 0) + 1
    return out


def _entries(folder: Path) -> Iterator[Entry]:
    metadata = folder / METADATA
    try:
        data = metadata.read_bytes()
    except FileNotFoundError:
        raise FolderError(f"{folder} has no {METADATA}: each of its lines names an image and its text") from None
    except OSError as error:
        raise FolderError(f"cannot read {metadata}: {error.strerror or error}") from None
    # By "\n" alone: other separators that Unicode knows may stand inside a text.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield _entry(folder, line, number)


def _entry(folder: Path, line: bytes, number: int) -> Entry:
    where = f"{folder / METADATA}, line {number}"
    try:
        fields = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise FolderError(f"{where} is not JSON ({error}): if a run was interrupted, run it again to the end") from None
    name = fields.get("file_name") if isinstance(fields, dict) else None
    if not isinstance(name, str) or not name:
        raise FolderError(f'{where} names no image: write an object such as {{"file_name": "0.png", "text": "a cat"}}')
    text = fields.get("text")
    if not isinstance(text, str) or not text.strip():
        raise FolderError(f'{where} has no text for {name}: what was the image to show? Write it under "text"')
    whole = {}
    for field in ("index", "seed"):
        value = fields.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise FolderError(f"{where}: the {field} is {value!r}, which is not an integer")
        whole[field] = value
    path = folder / name
    return Entry(path, name, text, whole["index"], whole["seed"], number, _digest(path, where))


def _digest(path: Path, where: str) -> str:
    """Of the file, which is also looked at: whether it is an image that is whole, as far as its format tells."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FolderError(f"{path} is missing: {where}") from None
    except OSError as error:
        raise FolderError(f"cannot read {path} ({error.strerror or error}): {where}") from None
    try:
        PIL.Image.open(BytesIO(data)).verify()
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        reason = "no format that is known" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise FolderError(f"{path} is not an image ({reason}): {where}") from None
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _no_repeats(entries: list[Entry]) -> None:
    for field in ("file_name", "index"):
        seen: dict[Any, Entry] = {}
        for entry in entries:
            value = getattr(entry, field)
            if value is not None and value in seen:
                raise FolderError(f"{entry.where}: the {field} {value!r} stands in line {seen[value].line} already")
            seen[value] = entry
