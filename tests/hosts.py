"""Several hosts in one process or in its children: names of their own, and locks that do not reach each other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import threading

from hsd.work import locks

_NOW = threading.local()
_SET = 37
"""F_OFD_SETLK of Linux: a lock that belongs to an open file, as that of flock, on a range of bytes."""


def install(monkeypatch):
    """From here on a thread is on the host that :func:`on` says, and a lock on one is none on the others."""
    monkeypatch.setattr(socket, "gethostname", _name)
    monkeypatch.setattr(locks, "_lock", _lock)


def install_without_locks(monkeypatch):
    """As on a file system that has no locks."""
    monkeypatch.setattr(socket, "gethostname", _name)
    monkeypatch.setattr(locks, "_lock", _none)


class Child:
    """Stands for ``monkeypatch`` in a process that ends soon."""

    def setattr(self, target, name, value):
        setattr(target, name, value)


def become(host):
    """The calling thread is on this host for good."""
    _NOW.host = host


@contextlib.contextmanager
def on(host):
    """The calling thread is on this host for a while."""
    before = _name()
    become(host)
    try:
        yield
    finally:
        become(before)


def _name():
    return getattr(_NOW, "host", "here")


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
