"""From a file, a pipe or standard input to text: what is no text, or has no end, is refused."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import PromptError
from ..work.paths import user_path
from ..work.reading import BINARY, NONBLOCK
from .characters import MARK

MAX_BYTES = 2**30
"""A gigabyte: more than ten million prompts. What is larger is no list of prompts, or never ends."""

MAX_LINE = 2**20
"""Characters of one line. A model reads some hundred words."""

_WAIT = 5.0
"""Seconds until something has to write to a named pipe."""

TAKEN = (
    "write a text file with one prompt per line, a table with a column prompt (CSV, TSV, Parquet), or JSON lines: "
    'one object per line such as {"prompt": "a cat", "seed": 3}'
)
"""What is taken, for messages about files that are not."""

_MAGIC = {
    b"PK\x03\x04": "a ZIP archive or an Office document (xlsx, ods, docx)",
    b"\xd0\xcf\x11\xe0": "an Office document (xls, doc)",
    b"%PDF-": "a PDF",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"RIFF": "an image or a sound",
    b"PAR1": "a Parquet file, which needs a name that ends in .parquet",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "a SQLite database",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"(\xb5/\xfd": "compressed by zstd",
    b"7z\xbc\xaf'\x1c": "a 7z archive",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"{\\rtf": "a rich-text document",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself (run git lfs pull)",
}
"""Beginnings of files that are no lists of prompts."""

_AS_UTF8 = 'save the file as UTF-8 (a spreadsheet: as "CSV UTF-8")'

_PAGE = re.compile(rb"(?i)\s*<(!doctype html|html|\?xml)")

_LINE_BREAK = re.compile("\r\n|\r|\n")


def source_name(path: str | Path) -> str:
    """How messages call it."""
    return "standard input" if str(path) == "-" else str(path)


def read_text(path: str | Path) -> str:
    """The text of a file, of a pipe, or of standard input for ``-``.

    UTF-8, or what a byte order mark at the beginning says.

    Raises
    ------
    PromptError
        If it cannot be read, is a device, is larger than ``MAX_BYTES``, or is not text.
    """
    name = source_name(path)
    try:
        data = _standard_input() if str(path) == "-" else _read(user_path(path))
    except _NoFile as error:
        raise PromptError(f"cannot read prompts from {name}: {error}") from None
    except OSError as error:
        raise PromptError(f"cannot read prompts from {name}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the name
        raise PromptError(f"cannot read prompts from {name!r}: {error}") from None
    return _decoded(data, name)


def lines(text: str, name: str) -> Iterator[tuple[str, str]]:
    """Lines that are not empty, stripped, each with its place for error messages.

    A byte order mark at the beginning of a line is removed: files with marks were joined.
    """
    for number, line in enumerate(_LINE_BREAK.split(text), start=1):
        stripped = line.strip().lstrip(MARK).lstrip()
        if len(stripped) > MAX_LINE:
            raise PromptError(
                f"{name}, line {number} has {len(stripped):,} characters, which is no prompt: write one prompt per line"
            )
        if stripped:
            yield f"{name}, line {number}", stripped


# ------------------------------------------------------------------------------- reading


class _NoFile(Exception):
    """Something that is no file with an end. The text says what it is and what to do."""


def _read(path: Path) -> bytes:
    status = os.stat(path)
    _check_kind(status, on_terminal=True)  # that is known only when it is open
    if stat.S_ISSOCK(status.st_mode):
        raise _NoFile("it is a socket, not a file")
    # Without O_NONBLOCK, opening a pipe that nothing writes to would wait for ever.
    handle = os.open(path, os.O_RDONLY | NONBLOCK | BINARY)
    with open(handle, "rb", buffering=0) as file:
        kind = os.fstat(handle)
        _check_kind(kind, os.isatty(handle))
        first = _first_of_pipe(handle) if stat.S_ISFIFO(kind.st_mode) else b""
        if not stat.S_ISREG(kind.st_mode):
            os.set_blocking(handle, True)
        return first + _bounded(file, len(first))


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise _NoFile("it is closed")
    with contextlib.suppress(AttributeError, OSError, ValueError):  # no file of the system, as in a notebook
        _check_kind(os.fstat(sys.stdin.fileno()), sys.stdin.isatty())
    return _bounded(sys.stdin.buffer, 0)


def _check_kind(status: os.stat_result, on_terminal: bool) -> None:
    """Files, pipes and sockets have an end, and so have terminals and ``/dev/null``; other devices do not."""
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        raise _NoFile("it is a directory, not a file")
    if stat.S_ISBLK(mode):
        raise _NoFile("it is a disk, not a file")
    if stat.S_ISCHR(mode) and not on_terminal and status.st_rdev != os.stat(os.devnull).st_rdev:
        raise _NoFile("it is a device, which has no end, not a file")
    if stat.S_ISREG(mode) and status.st_size > MAX_BYTES:
        raise _NoFile(_too_large(f"{status.st_size:,} bytes"))


def _first_of_pipe(handle: int) -> bytes:
    """What is in the pipe already; waits until something writes to it, which may take long once it is open."""
    end = time.monotonic() + _WAIT
    while True:
        try:
            data = os.read(handle, 2**16)
        except BlockingIOError:  # it is open for writing, and nothing was written yet
            return b""
        if data:
            return data
        if time.monotonic() > end:
            raise _NoFile("it is a pipe that nothing writes to: start what writes to it first")
        time.sleep(0.02)


def _bounded(file: object, have: int) -> bytes:
    """The rest of ``file``, at most ``MAX_BYTES``."""
    parts: list[bytes] = []
    while part := file.read(2**20):  # type: ignore[attr-defined]
        have += len(part)
        if have > MAX_BYTES:
            raise _NoFile(_too_large(f"more than {MAX_BYTES:,} bytes"))
        parts.append(part)
    return b"".join(parts)


def _too_large(size: str) -> str:
    return f"it has {size}, which is no list of prompts; {TAKEN}"


# ------------------------------------------------------------------------------- decoding


def _decoded(data: bytes, name: str) -> str:
    for begin, what in _MAGIC.items():
        if data.startswith(begin):
            raise PromptError(f"{name} is {what}: {TAKEN}")
    if _PAGE.match(data[:4096]):
        raise PromptError(f"{name} is a web page or XML, not its text: {TAKEN}")
    for mark, encoding in (
        (b"\xff\xfe\0\0", "utf-32"),
        (b"\0\0\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as error:
                number = len(_LINE_BREAK.split(data[: error.start].decode(encoding, "replace")))
                raise PromptError(
                    f"{name}, line {number}: byte {error.start + 1} of the file is not {encoding.upper()}, which its "
                    "first bytes say it is; save it as UTF-8 and try again"
                ) from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    _refuse_nul(data, name)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        number, column = _place(data, error.start)
        raise PromptError(
            f"{name}, line {number}: byte {column} (0x{data[error.start]:02x}) is not UTF-8; {_AS_UTF8} and try again"
        ) from None


def _refuse_nul(data: bytes, name: str) -> None:
    """UTF-16 without a mark has a NUL in every other byte of ASCII; other text has none."""
    at = data.find(b"\0")
    if at < 0:
        return
    sample = data[:4096]
    odd, even = sample[1::2].count(0), sample[::2].count(0)
    if max(odd, even) > 1 and max(odd, even) > len(sample) / 8 and min(odd, even) < max(odd, even) / 4:
        raise PromptError(f"{name} looks like UTF-16 without a byte order mark: save it as UTF-8 and try again")
    number, column = _place(data, at)
    raise PromptError(f"{name}, line {number}: byte {column} is NUL, which no text contains: {TAKEN}")


def _place(data: bytes, at: int) -> tuple[int, int]:
    """Line and byte of the line, from 1, of a position in ``data``."""
    before = data[:at].splitlines(keepends=True)
    if not before or before[-1].endswith((b"\n", b"\r")):
        return len(before) + 1, 1
    return len(before), len(before[-1]) + 1
