"""Images and runs as HTML, for notebooks: no scripts, no colours of its own, so that light and dark both work."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Collection, Iterable
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image

from ..work.text import shortened
from .lines import Entry
from .union import entries_of

THUMBNAILS = 12
"""Largest number of pictures that a run shows."""

_THUMBNAIL, _PICTURE = 96, 512
"""Largest width and height in pixels: of a run's pictures, and of a single one."""

_PROMPT = 200
"""Characters of a prompt in a caption."""


def png(picture: PIL.Image.Image) -> bytes:
    """A picture as a PNG file."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def figure(picture: PIL.Image.Image, prompt: str, note: str) -> str:
    """A picture, at most 512 pixels wide or high, with its prompt and a note below."""
    caption = f"{escape(shortened(prompt, _PROMPT))}<br>{escape(note)}"
    return f'<figure style="margin: 0">{_picture(picture, _PICTURE, prompt)}<figcaption>{caption}</figcaption></figure>'


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values, without those that are empty."""
    cells = "".join(
        f'<tr><th style="text-align: left">{escape(name)}</th><td style="text-align: left">{escape(value)}</td></tr>'
        for name, value in rows
        if value
    )
    return f"<table>{cells}</table>"


def thumbnails(folder: Path, kept: Collection[int]) -> str:
    """Some of the ``kept`` images of a folder. What cannot be read is left out: this is only a look at them."""
    pictures = []
    for entry in _entries(folder, kept):
        with (
            contextlib.suppress(OSError, ValueError, PIL.Image.DecompressionBombError),
            PIL.Image.open(folder / entry["file_name"]) as picture,
        ):
            picture.draft("RGB", (_THUMBNAIL * 2, _THUMBNAIL * 2))
            pictures.append(_picture(picture, _THUMBNAIL, str(entry.get("text", ""))))
    return f"<div>{''.join(pictures)}</div>" if pictures else ""


def _picture(picture: PIL.Image.Image, size: int, text: str) -> str:
    small = picture.convert("RGB")
    small.thumbnail((size, size))
    data = base64.b64encode(png(small)).decode("ascii")
    what = escape(shortened(text, _PROMPT))
    return f'<img src="data:image/png;base64,{data}" alt="{what}" title="{what}" style="margin: 2px">'


def _entries(folder: Path, kept: Collection[int]) -> list[Entry]:
    """Lines of some images, evenly chosen."""
    entries = []
    for entry in entries_of(folder):
        name = str(entry["file_name"])
        if type(entry.get("index")) is int and entry["index"] in kept and Path(name).name == name:
            entries.append(entry)
    entries.sort(key=lambda entry: int(entry["index"]))
    if len(entries) <= THUMBNAILS:
        return entries
    return [entries[i] for i in np.linspace(0, len(entries) - 1, THUMBNAILS).round().astype(int).tolist()]
