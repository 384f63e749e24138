"""What processes tell each other besides results: errors, warnings and log records, as values.

An exception that Ray sends may not be readable where it arrives, and hides where it happened.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import DeviceFailed, Error, Notice, OutOfMemory, OutputError, PlanMismatch
from ..work.faults import described

_LOG = logging.getLogger("hsd")


@dataclass(frozen=True)
class Fault:
    """An error, as a value."""

    error: Exception
    breaks: bool = False
    """Whether its process is of no more use."""
    ends: bool = False
    """Whether it would be the same for every unit."""


@dataclass(frozen=True)
class Said:
    """A message of a worker: a warning for the user, or a log record."""

    text: str
    level: int = logging.WARNING
    notice: bool = False


def say(said: Said) -> None:
    """Pass a message of another process on, as a warning or a log record of this one."""
    if said.notice:
        warnings.warn(said.text, Notice, stacklevel=2)
    else:
        _LOG.log(said.level, "%s", said.text)


@contextlib.contextmanager
def listening(keep: Callable[[Said], object]) -> Iterator[None]:
    """Inside, warnings and log records of HSD are kept for another process."""
    handler, level = _Kept(keep), _LOG.level
    with warnings.catch_warnings():
        elsewhere = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *args: Any, **options: Any) -> None:
            if issubclass(category, Notice):
                keep(Said(str(message), notice=True))
            else:
                elsewhere(message, category, *args, **options)

        warnings.filterwarnings("always", category=Notice)
        warnings.showwarning = show
        _LOG.addHandler(handler)
        _LOG.setLevel(logging.INFO)
        try:
            yield
        finally:
            _LOG.removeHandler(handler)
            _LOG.setLevel(level)


class _Kept(logging.Handler):
    """Keeps log records."""

    def __init__(self, keep: Callable[[Said], object]) -> None:
        super().__init__()
        self._keep = keep

    def emit(self, record: logging.LogRecord) -> None:
        self._keep(Said(record.getMessage(), record.levelno))


def fault_of(error: Exception, *, running: bool = False) -> Fault:
    """The error, if the driver can read it; else one that says the same."""
    breaks = isinstance(error, (DeviceFailed, OutOfMemory, MemoryError))
    # While a unit runs, an argument that is wrong may be wrong in one of its prompts alone.
    same = (OutputError, PlanMismatch) if running else (Error, TypeError, ValueError)
    ends = isinstance(error, same) and not breaks
    try:
        if type(error).__module__.partition(".")[0] in ("builtins", "hsd"):
            pickle.loads(pickle.dumps(error))
            return Fault(error, breaks, ends)
    except Exception:
        pass
    return Fault(Error(described(error)), breaks, ends)
