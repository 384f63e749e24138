"""Files and folders: a file is complete or absent."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

from ..errors import Error, OutputError
from .paths import user_path
from .reading import read_object

STUDY = "study.json"
"""In a folder of several sets of images: what all of them depend on, see :func:`claim`."""

METADATA = "metadata.jsonl"
"""In a folder of images: one JSON object per image, with its file and its text. Evaluation reads it without torch."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either absent or complete."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        # mkstemp makes files that only their owner can read; set the mode that open() would set.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


_UMASK_LOCK = threading.Lock()


def _umask() -> int:
    with _UMASK_LOCK:
        mask = os.umask(0)
        os.umask(mask)
    return mask


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, created if it does not exist; ``OutputError`` if it cannot be created or written to."""
    path = user_path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / ".hsd-write-test", b"")
        (path / ".hsd-write-test").unlink()
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {error.strerror or error}; choose another folder") from None
    return path


def claim(path: Path, study: dict[str, Any]) -> tuple[str, Any] | None:
    """Record in the JSON file ``path`` what a folder depends on, unless something else is recorded already.

    Returns the first name of ``study`` whose recorded value is another, and that value; None if it is recorded now.

    Raises
    ------
    Error
        If there is such a file, and it cannot be read.
    """
    if path.exists():
        try:
            stored = read_object(path)
        except (OSError, ValueError) as error:
            raise Error(f"{path} cannot be read ({error}): choose another folder") from None
        for name, value in study.items():
            if stored.get(name) != value:
                return name, stored.get(name)
    write_atomically(path, (json.dumps(study, indent=1) + "\n").encode())
    return None
