"""A terminal for tests: runs a program in a pseudo-terminal, and keeps the screen as it would look.

It knows the few codes that rich sends; others are an error, so that a test cannot pass by overlooking one.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

CODES = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])")


@dataclass
class Terminal:
    """The lines of a screen that never scrolls, where the cursor is, and whether it can be seen."""

    columns: int
    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0
    cursor: bool = True
    colours: bool = False

    def feed(self, text: str) -> None:
        at = 0
        while at < len(text):
            if text[at] == "\x1b":
                found = CODES.match(text, at)
                assert found, f"an unknown code: {text[at : at + 12]!r}"
                self._code(*found.groups())
                at = found.end()
                continue
            self._character(text[at])
            at += 1

    def _character(self, c: str) -> None:
        if c == "\n":
            self.row += 1
        elif c == "\r":
            self.column = 0
        else:
            assert c.isprintable(), f"an unknown character: {c!r}"
            if self.column == self.columns:
                self.row, self.column = self.row + 1, 0
            self._extend()
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + c + line[self.column + 1 :]
            self.column += 1
        self._extend()

    def _extend(self) -> None:
        self.lines += [""] * (self.row + 1 - len(self.lines))

    def _code(self, number: str, kind: str) -> None:
        if kind == "A":
            self.row = max(0, self.row - int(number or 1))
        elif kind == "K":
            assert number == "2", f"an unknown way to erase: {number}"
            self.lines[self.row] = ""
        elif kind == "m":
            self.colours = self.colours or any(30 <= int(part) <= 49 for part in number.split(";") if part)
        elif kind in "hl" and number == "?25":
            self.cursor = kind == "h"
        else:
            raise AssertionError(f"an unknown code: {number}{kind}")

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip()


@dataclass
class Ended:
    """What became of a program: its exit code, the last screen, and all that it wrote."""

    code: int
    screen: Terminal
    output: str


QUIET = 0.1
"""Seconds without output after which a screen is whole: one drawing of it may come in several parts."""


def in_terminal(
    command: Sequence[str],
    *,
    columns: int = 100,
    environment: dict[str, str] | None = None,
    act: Callable[[str, subprocess.Popen[bytes]], object] = lambda screen, process: None,
    limit: float = 120.0,
    **options: object,
) -> Ended:
    """Run ``command`` with standard output and error in a terminal. ``act`` is called with each new screen.

    A screen is whole where nothing was written for :data:`QUIET` seconds; a program that never waits for so long, or
    ends, shows the others too, ten times later.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    unset = ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "HSD_PROGRESS")
    own = {name: value for name, value in os.environ.items() if name not in unset}
    own |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **(environment or {})}
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=own, start_new_session=True, **options
    )
    os.close(slave)
    terminal, shown, end = Terminal(columns), None, time.monotonic() + limit
    acted = time.monotonic()
    decoder, parts, rest = codecs.getincrementaldecoder("utf-8")("ignore"), [], ""
    try:
        while True:
            assert time.monotonic() < end, f"it did not end: {terminal.text}"
            if not select.select([master], [], [], 1.0)[0]:
                continue
            try:
                new = os.read(master, 65536)
            except OSError:  # on Linux: the program has closed the other end
                break
            if not new:
                break
            parts.append(decoder.decode(new))
            text = rest + parts[-1]
            whole = text.rfind("\x1b") if "\x1b" in text[-8:] else len(text)  # a code may come in two parts
            terminal.feed(text[:whole])
            rest = text[whole:]
            whole_screen = not select.select([master], [], [], QUIET)[0] or time.monotonic() > acted + 10 * QUIET
            if whole_screen and shown != terminal.text:
                shown, acted = terminal.text, time.monotonic()
                act(shown, process)
        terminal.feed(rest)
        return Ended(process.wait(timeout=30), terminal, "".join(parts))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(master)
