"""Files from anywhere, read with care: what is no file, too large or no JSON is an error, never a hang or a traceback.

``OSError`` says that a file cannot be read, ``ValueError`` that what it holds cannot be used. Callers add the file's
name and what to do.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import Any, BinaryIO

from .paths import user_path

MOST_JSON = 1 << 28
"""The largest file, in bytes, that is read as JSON: the record of a very large run is far smaller."""

MOST_LEVELS = 100
"""How deep lists and objects may be nested. Python can neither write nor print what is nested some hundred deep."""

NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
"""A flag of ``os.open``: a link is an error. Not on Windows."""

NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)
"""A flag of ``os.open``: opening a pipe does not wait for its other end. Not on Windows."""

BINARY: int = getattr(os, "O_BINARY", 0)
"""A flag of ``os.open``: bytes are not changed. On Windows only."""


def open_file(path: str | os.PathLike[str], *, follow: bool = True) -> BinaryIO:
    """Open a file for reading.

    Parameters
    ----------
    follow
        Whether a link is followed; else it is an error.

    Raises
    ------
    OSError
        If it cannot be opened, or is a folder, a device or a pipe: those may have no end.
    """
    try:
        handle = os.open(user_path(path), os.O_RDONLY | NONBLOCK | BINARY | (0 if follow else NOFOLLOW))
    except ValueError as error:  # a name with a zero byte, or with half a character
        raise OSError(errno.EINVAL, f"this is not the name of a file ({error})", os.fspath(path)) from None
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "this is a device or a pipe, not a file", os.fspath(path))
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: str | os.PathLike[str], most: int) -> bytes:
    """The bytes of a file.

    Raises
    ------
    OSError
        As :func:`open_file`, and if it has more than ``most`` bytes.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, and at most {most:,} are read", os.fspath(path))
        return file.read(most)  # it may grow meanwhile


def read_object(path: str | os.PathLike[str], most: int = MOST_JSON) -> dict[str, Any]:
    """The JSON object in a file.

    Raises
    ------
    OSError
        As :func:`read_file`.
    ValueError
        As :func:`parse_json`, and if it is JSON, but not an object.
    """
    document = parse_json(read_file(path, most))
    if not isinstance(document, dict):
        raise ValueError(f"it holds {type(document).__name__}, not a JSON object")
    return document


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text that may come from anywhere.

    Whatever it returns can be printed and written as JSON again. ``NaN`` and ``Infinity`` are taken, because Python
    writes them: who uses a number has to look whether it is finite.

    Raises
    ------
    ValueError
        If it is not JSON in UTF-8; if it is nested deeper than ``MOST_LEVELS``, has an integer of thousands of digits,
        or half of a surrogate pair. Says which.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if text.count("[") + text.count("{") > MOST_LEVELS and not _shallow(value):
        raise ValueError(_TOO_DEEP)
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("it holds half of a character (a lone surrogate such as \\ud800)") from None
    return value


_TOO_DEEP = f"it is nested deeper than {MOST_LEVELS} levels"


def _shallow(value: Any) -> bool:
    level: list[Any] = [value]
    for _ in range(MOST_LEVELS):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level = [value for values in inner for value in values]
        if not level:
            return True
    return not any(isinstance(value, (dict, list)) for value in level)


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that a float holds: not a truth value, not NaN, not infinite."""
    largest = 1.7976931348623157e308
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -largest <= value <= largest


def read_array(path: str | os.PathLike[str]) -> Any:
    """The array of a ``.npy`` file, mapped into memory and not read; nothing in the file is run.

    Raises
    ------
    OSError
        As :func:`open_file`.
    ValueError
        If it is not a whole ``.npy`` file, or holds objects.
    """
    import numpy as np

    with open_file(path) as file:
        begin = file.read(6)
    if begin != b"\x93NUMPY":
        zipped = begin[:2] == b"PK"
        raise ValueError("it is an .npz file: save one array with numpy.save" if zipped else "it is not a .npy file")
    try:
        return np.load(user_path(path), mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # NumPy evaluates the header as Python literals: that fails in many ways
        raise ValueError(str(error) or type(error).__name__) from None
