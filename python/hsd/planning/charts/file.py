"""The file of a picture: checked before anything is drawn."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ...work.drawing import FigureFormat, encoded, matplotlib_for, style
from ...work.files import write_atomically
from ...work.paths import user_path


@dataclass(frozen=True)
class ChartFile:
    """A file that can be written, and its format."""

    path: Path
    kind: FigureFormat

    def write(self, page: Any) -> None:
        """Write a figure, by atomic rename."""
        with matplotlib_for("plot").rc_context(style()):
            data = small(encoded(page, "png", 150)) if self.kind == "png" else encoded(page, self.kind)
        write_atomically(self.path, data)


def file_for(path: str | os.PathLike[str]) -> ChartFile:
    """``path`` as a file for a picture.

    Raises
    ------
    ValueError
        If its ending is none of png, svg and pdf, if its folder does not exist, or if it is a folder itself.
    Error
        If matplotlib is missing.
    """
    found = user_path(path)
    kinds: dict[str, FigureFormat] = {f".{kind}": kind for kind in get_args(FigureFormat)}
    kind = kinds.get(found.suffix.lower())
    if kind is None:
        raise ValueError(f"cannot plot to {path}: its name has to end in {', '.join(kinds)}")
    if not found.parent.is_dir():
        raise ValueError(f"cannot plot to {path}: there is no folder {found.parent}")
    if found.is_dir():
        raise ValueError(f"cannot plot to {path}: it is a folder")
    matplotlib_for("plot")
    return ChartFile(found, kind)


def small(png: bytes) -> bytes:
    """The picture in 128 colours, which takes a third of the bytes."""
    import PIL.Image  # here, with matplotlib, which needs it

    out = io.BytesIO()
    PIL.Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(out, "png", optimize=True)
    return out.getvalue()
