"""Paths as users write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import Error
from .urls import is_url

_WAS_URL = re.compile(r"([a-z][a-z0-9+.-]+:)/[^/]", re.IGNORECASE)
"""What ``Path`` makes of a URL."""


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path with ``~`` and ``~name`` as the home folder; as it is, if there is no such user.

    A shell leaves ``~`` alone inside quotes and in ``--out=~/images``, and so does Python.

    Raises
    ------
    Error
        If it is a URL. What can use one has taken it before.
    """
    refuse_url(path)
    path = Path(path)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def refuse_url(path: str | os.PathLike[str]) -> None:
    """Raise ``Error`` for a URL, where a file or folder of this machine is needed."""
    text = os.fspath(path)
    found = None if isinstance(path, str) else _WAS_URL.match(text)
    if found is not None and not os.path.lexists(found[1]):
        text = text.replace(":/", "://", 1)
    if is_url(text):
        raise Error(
            f"{text} is a URL, and this needs a file or folder of this machine: copy it to a disk first. Images are "
            "generated to URLs, and plans are saved there; everything else works on copies"
        )
