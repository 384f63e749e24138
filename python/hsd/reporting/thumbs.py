"""Thumbnails, and how large and how coloured each image is. What is known of an image is kept, so that the next report
of a folder reads only what is new.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from ..work.files import digest_of, read_own, rename, write_atomically
from ..work.progress import Progress
from ..work.reading import read_file
from .read import Picture

SIDE = 256
"""The longer side of a thumbnail. An image that is not larger is its own thumbnail."""

_GRID = 8
"""Images are compared by their colours in a grid of this many fields on each side."""

_INDEX = "index.jsonl"
_MOST_IMAGE = 1 << 30
_QUALITY = {"quality": 80, "method": 1}  # half of the time of the default method, for 5 % more bytes


@dataclass(frozen=True)
class Look:
    """What a report has to know of one image. Without a size it cannot be shown, and ``problem`` says why."""

    digest: str = ""
    """Of the file's bytes, as they are now."""
    width: int = 0
    height: int = 0
    grid: bytes = b""
    """``_GRID`` x ``_GRID`` colours, three bytes each, row by row."""
    problem: str | None = None

    @property
    def has_thumbnail(self) -> bool:
        """Whether there is a file; else the image is shown itself."""
        return max(self.width, self.height) > SIDE

    @property
    def colour(self) -> str:
        """The mean colour, as in CSS without the ``#``."""
        return "".join(f"{round(value):02x}" for value in self._colours().mean(axis=(0, 1))) if self.grid else ""

    def difference(self, other: Look) -> float | None:
        """The mean difference of the colours of two images, 0 to 1; None if one of them cannot be shown."""
        if not (self.grid and other.grid):
            return None
        return float(np.abs(self._colours() - other._colours()).mean() / 255)

    def _colours(self) -> NDArray[np.float64]:
        return np.frombuffer(self.grid, dtype=np.uint8).reshape(_GRID, _GRID, 3).astype(np.float64)


class Thumbs:
    """The thumbnails of a report.

    Parameters
    ----------
    folder
        Where they are; created if it does not exist. A thumbnail has the digest of its image as its name, so that it
        serves every folder that has the image.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {entry.name for entry in os.scandir(folder) if entry.stat().st_size}
        self._by_digest: dict[str, Look] = {}
        self._by_file: dict[tuple[str, int, int], Look] = {}
        self._seen: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        for line in (read_own(folder / _INDEX) or b"").split(b"\n"):
            self._learn(line)

    def looks(self, pictures: Sequence[Picture], progress: Progress) -> list[Look]:
        """What is to know of each image; makes the thumbnails that are missing, several at once."""
        looks = []
        with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="hsd-thumbnails") as pool:
            for count, look in enumerate(pool.map(self._look, pictures), start=1):
                looks.append(look)
                progress(count / len(pictures))
        return looks

    def save(self, *, finished: bool) -> None:
        """Keep what is known. If all images were looked at, thumbnails that no image has any more are removed."""
        kept = {(one["file"], one["size"], one["time"]): one for one in self._seen}
        if not finished:
            kept = {key: _record(key, look) for key, look in self._by_file.items()} | kept
        write_atomically(self._folder / _INDEX, b"".join(json.dumps(one).encode() + b"\n" for one in kept.values()))
        if finished:
            for name in self._files - {_INDEX, *(_name(one["digest"]) for one in self._seen)}:
                with contextlib.suppress(OSError):
                    (self._folder / name).unlink()

    def _look(self, picture: Picture) -> Look:
        path = picture.entry.path
        try:
            status = path.stat()
            key = str(path), status.st_size, status.st_mtime_ns
            look = self._by_file.get(_private(key))
            if look is None or not self._is_there(look):
                look = self._read(path)
        except Exception as error:  # readers of damaged images fail in many ways
            return Look(problem=_reason(error))
        self._seen.append(_record(_private(key), look))
        return look

    def _read(self, path: Path) -> Look:
        data = read_file(path, _MOST_IMAGE)
        digest = digest_of(data)
        with self._lock:
            known = self._by_digest.get(digest)
            if known is not None and self._is_there(known):
                return known
        look = self._decode(data, digest)
        with self._lock:
            self._by_digest[digest] = look
            if look.has_thumbnail:
                self._files.add(_name(digest))
        return look

    def _decode(self, data: bytes, digest: str) -> Look:
        """Look at the bytes of an image, of which nothing is known, and write its thumbnail."""
        with PIL.Image.open(BytesIO(data)) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # orientation: on its side
            width, height = image.size[::-1] if turned else image.size
            # reducing_gap: a JPEG is decoded at the size that is needed
            image.thumbnail((SIDE, SIDE), PIL.Image.Resampling.LANCZOS, reducing_gap=2.0)
            small = PIL.ImageOps.exif_transpose(image)
            clear = "A" in small.getbands() or "transparency" in small.info
            small = small.convert("RGBA" if clear else "RGB")
        field = small.convert("RGB").resize((_GRID, _GRID), PIL.Image.Resampling.BOX)
        look = Look(digest, width, height, field.tobytes())
        if look.has_thumbnail:
            self._write(_name(digest), small)
        return look

    def _write(self, name: str, image: PIL.Image.Image) -> None:
        """Not synced, which would take longer than all the rest: one that a power cut empties is made again."""
        # Not work.files.replacing, which syncs; but its names, so that make_folder removes what a kill leaves.
        temporary = self._folder / f".{name}.{secrets.token_hex(8)}.tmp"
        try:
            image.save(temporary, "WEBP", **_QUALITY)
            rename(temporary, self._folder / name)
        finally:
            temporary.unlink(missing_ok=True)

    def _is_there(self, look: Look) -> bool:
        return not look.has_thumbnail or _name(look.digest) in self._files

    def _learn(self, line: bytes) -> None:
        """A line of the index. One that does not hold is left out, and its image read again."""
        try:
            one = json.loads(line)
            key = str(one["file"]), int(one["size"]), int(one["time"])
            grid = base64.b64decode(one["grid"], validate=True)
            look = Look(str(one["digest"]), int(one["width"]), int(one["height"]), grid)
        except (ValueError, KeyError, TypeError):
            return
        if len(grid) == _GRID * _GRID * 3 and look.width > 0 and look.height > 0 and look.digest.isalnum():
            self._by_file[key] = self._by_digest[look.digest] = look


def _name(digest: str) -> str:
    return f"{digest}.webp"


def _private(key: tuple[str, int, int]) -> tuple[str, int, int]:
    """The path is kept as its digest: a report may be given to others."""
    return digest_of(os.fsencode(key[0])), *key[1:]


def _record(key: tuple[str, int, int], look: Look) -> dict[str, Any]:
    file, size, time = key
    grid = base64.b64encode(look.grid).decode()
    return {
        "file": file,
        "size": size,
        "time": time,
        "digest": look.digest,
        "width": look.width,
        "height": look.height,
        "grid": grid,
    }


def _reason(error: Exception) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):
        return "this is not an image that can be read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
