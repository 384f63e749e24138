"""The files of images: encoded with their text, and written so that each is complete or absent."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image

from ..work import files
from .image_text import Text, Texts
from .lines import FORMATS, Entry, Lines


class ImageFiles:
    """Writes the images of a plan.

    Parameters
    ----------
    lines
        What their lines of metadata say.
    texts
        What the files say of themselves.
    image_format
        The ending of their names.
    """

    def __init__(self, lines: Lines, texts: Texts, image_format: str) -> None:
        self._lines, self._texts = lines, texts
        self._format = image_format

    def encoded(self, index: int, image: PIL.Image.Image, extra: dict[str, Any]) -> tuple[bytes, Entry]:
        """The bytes of an image's file, and its line of metadata."""
        entry = {**self._lines.expected(index), **extra}
        data = encoded(image, self._format, self._texts.of(index, image.size))
        return data, {**entry, "size": len(data), "digest": files.digest_of(data)}


def encoded(image: PIL.Image.Image, image_format: str, text: Text | None) -> bytes:
    """The bytes of a file of a format, by its ending."""
    pil_format, options = FORMATS[image_format]
    if pil_format == "JPEG":  # which has no transparency
        image = on_white(image)
    buffer = BytesIO()
    image.save(buffer, pil_format, **options, **({} if text is None else text.options(pil_format)))
    return buffer.getvalue()


def on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image itself; if a part of it is transparent, in RGB on white."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    image = image.convert("RGBA")
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image).convert("RGB")


def put(path: Path, data: bytes) -> None:
    """Write an image's file. Its name is on the disk when its folder is synced next.

    Raises
    ------
    FileNotFoundError
        If its folder is removed at this moment.
    """
    temporary = files.write_temporary(path, data)
    if path.is_dir() and not path.is_symlink():
        files.set_aside(path)
    files.rename(temporary, path)
