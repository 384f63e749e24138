"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path with ``~`` and ``~name`` as the home folder; as it is, if there is no such user.

    A shell leaves ``~`` alone inside quotes and in ``--out=~/images``, and so does Python.
    """
    path = Path(path)
    try:
        return path.expanduser()
    except RuntimeError:
        return path
