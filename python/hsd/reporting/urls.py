"""URLs of files, for pages on a disk: relative, and percent-encoded."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote


def folder_url(folder: Path, page_folder: Path) -> str:
    """The URL of a folder, to put before a name in it, for pages in another: relative, percent-encoded."""
    try:
        path = os.path.relpath(os.path.abspath(folder), os.path.abspath(page_folder))
    except ValueError:  # on another drive
        return Path(os.path.abspath(folder)).as_uri() + "/"
    return "" if path == "." else url_of(path) + "/"


def url_of(name: str) -> str:
    """The URL of a path relative to a folder. Every character that has a meaning in URLs is percent-encoded."""
    return quote(os.fsencode(name.replace(os.sep, "/")))
