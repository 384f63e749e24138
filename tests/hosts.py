"""Several hosts in one process or in its children: names of their own, and locks that do not reach each other."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading

from hsd.work import locks

if sys.platform != "win32":
    import fcntl

_NOW = threading.local()
_PROCESS = ["here"]
"""The host of threads that are on no other."""
_SET = 37
"""F_OFD_SETLK of Linux: a lock that belongs to an open file, as that of flock, on a range of bytes."""


def install(monkeypatch, *, with_locks=True):
    """From here on a thread is on the host that :func:`on` says, and a lock on one is none on the others.

    Without locks it is as on a file system that has none.
    """
    monkeypatch.setattr(socket, "gethostname", _name)
    monkeypatch.setattr(locks, "_lock", _lock if with_locks else _none)


def move_to(host, *, with_locks):
    """This process is on another host for good."""
    _PROCESS[0], socket.gethostname = host, _name
    locks._lock = _lock if with_locks else _none


@contextlib.contextmanager
def on(host):
    """The calling thread is on this host for a while."""
    before, _NOW.host = _name(), host
    try:
        yield
    finally:
        _NOW.host = before


def _name():
    return getattr(_NOW, "host", _PROCESS[0])


def _lock(handle, *, shared=False):
    place = sum(_name().encode()) % 1000 + 1
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(handle, _SET, struct.pack("hhqqi", kind, os.SEEK_SET, (1 << 40) + place, 1, 0))
    except OSError:
        return False
    return True


def _none(handle, *, shared=False):
    raise locks.Unsupported(38, "Function not implemented")
