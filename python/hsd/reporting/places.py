"""Where the files of a report are, and how its pages name each other and the images."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..work.files import make_folder, read_own, write_atomically
from .data import script

FIRST = "report.html"
"""The first page."""

BESIDE = "__report__"
"""The folder of all other files. ``datasets`` passes over names that begin with two underscores."""

MARK = b'<meta name="generator" content="hsd report">'
"""In each page: a file without it is not overwritten."""


@dataclass(frozen=True)
class Places:
    """The files of one report."""

    out: Path
    """The folder of the first page, absolute."""

    @property
    def beside(self) -> Path:
        """The folder of all other files."""
        return self.out / BESIDE

    def prepare(self) -> None:
        """Make the folders.

        Raises
        ------
        OutputError
            If they cannot be made or written to, or hold a file of someone else where one of the report has to be.
        """
        make_folder(self.out)
        first = self.out / FIRST
        if os.path.lexists(first) and MARK not in (read_own(first) or b""):
            raise OutputError(f"{first} is not a report of HSD: rename it, or give another folder with --out")
        for path in (self.beside, self.beside / "data", self.beside / "thumbs"):
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise OutputError(f"{path} is a link or a file, and has to be a folder: remove it")
            make_folder(path)

    def write_data(self, name: str, value: Any) -> None:
        """Write a file of data, which gives pages the ``value`` under its ``name``."""
        write_atomically(self.beside / "data" / f"{name}.js", script(name, value))

    def write_page(self, name: str, text: str) -> None:
        """Write a page."""
        folder = self.out if name == FIRST else self.beside
        write_atomically(folder / name, text.encode("utf-8", "replace"))

    def keep_only(self, pages: set[str], data: set[str]) -> None:
        """Remove pages and data of an earlier report that this one does not have."""
        for folder, ending, kept in ((self.beside, ".html", pages), (self.beside / "data", ".js", data)):
            for path in folder.iterdir():
                if path.suffix == ending and path.name.removesuffix(ending) not in kept:
                    path.unlink(missing_ok=True)

    def write_asset(self, name: str, content: bytes) -> None:
        """Write a style or a script."""
        write_atomically(self.beside / name, content)
