"""What is in a folder, and how it is named, before any of it is believed."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from ..names import IMAGE_FILE


def folder_id(path: Path) -> tuple[int, int] | None:
    """What a folder is known by: one that was removed and made again is another one."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def holds_images(path: Path) -> bool:
    """Whether there are images with names as HSD gives them. Files of 0 bytes, as power cuts leave them, are none."""
    with os.scandir(path) as entries:
        named = (entry for entry in entries if IMAGE_FILE.fullmatch(entry.name))
        return any(not entry.is_file() or entry.stat().st_size for entry in named)


def notes_on_name(path: Path) -> list[str]:
    """What to know of a folder with such a name, to open it as a data set."""
    whole = str(path.absolute())
    if glob.has_magic(whole) and glob.escape(whole) != whole:
        return [
            f'datasets.load_dataset("imagefolder", data_dir=...) reads the characters [ ] * ? in {whole!r} as a '
            f"pattern: give it data_dir={glob.escape(whole)!r}"
        ]
    if "::" in whole:
        return [f"datasets.load_dataset cannot open a folder with '::' in its name: rename {whole!r} before you use it"]
    return []
