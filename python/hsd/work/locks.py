"""Locks between processes and threads that end with the process that holds them, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from .reading import NOFOLLOW, NONBLOCK

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_FAR = 1 << 30
"""Windows locks bytes, and others cannot read them: one far behind the end of the file, so that it can be read."""

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)

_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()


class Unsupported(OSError):
    """The file system has no locks."""


class Lock:
    """An exclusive lock on a file. It belongs to this object: another one in the same process has to wait too.

    The file stays when the lock is released. Folders are not created, and a link is not followed.

    Parameters
    ----------
    path
        The file; created if it does not exist, unless ``create`` is false.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        self._create = os.O_CREAT if create else 0
        self.handle: int | None = None
        """The open file, while the lock is held."""

    def acquire(self, seconds: float = 0.0) -> bool:
        """Wait for the lock; False if another process or object still holds it after ``seconds``.

        Raises
        ------
        Unsupported
            If the file system has no locks.
        OSError
            If the file cannot be opened.
        """
        end = time.monotonic() + seconds
        while True:
            handle = self._try()
            if handle is not None:
                self.handle = handle
                _HELD.add(self)
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)

    def release(self) -> None:
        """Let others have it. Does nothing if it is not held."""
        handle, self.handle = self.handle, None
        if handle is not None:
            os.close(handle)  # ends the lock: no other descriptor refers to this opening of the file

    def _try(self) -> int | None:
        flags = os.O_RDWR | self._create | NOFOLLOW | NONBLOCK
        while True:
            handle = os.open(self.path, flags, 0o666)
            kept = False
            try:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EINVAL, "it is not a file", str(self.path))
                if not _lock(handle):
                    return None
                # The file may have been removed since it was opened, and another one be in its place.
                with contextlib.suppress(FileNotFoundError):
                    now = os.lstat(self.path)
                    kept = (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino)
                if kept:
                    return handle
            finally:
                if not kept:
                    os.close(handle)

    def __del__(self) -> None:
        self.release()


def is_locked(path: Path) -> bool:
    """Whether a process or an object holds the lock on a file.

    Where locks can be shared, asking disturbs no one else who asks.

    Raises
    ------
    Unsupported
        If the file system has no locks.
    OSError
        If the file cannot be opened.
    """
    handle = os.open(path, os.O_RDWR | NOFOLLOW | NONBLOCK)
    try:
        return not _lock(handle, shared=True)
    finally:
        os.close(handle)


def _lock(handle: int, *, shared: bool = False) -> bool:
    """Lock an open file, without waiting; False if it is locked."""
    try:
        if sys.platform == "win32":
            os.lseek(handle, _FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        if error.errno in _NO_LOCKS:
            raise Unsupported(error.errno, error.strerror) from None
        raise
    return True


@contextlib.contextmanager
def locked(path: Path, seconds: float, otherwise: Callable[[], Exception]) -> Iterator[bool]:
    """Hold the lock on ``path``; raises what ``otherwise`` returns if it is not free after ``seconds``.

    Gives whether it is held: where a file system has no locks, nothing is, and one process alone works there as
    anywhere.
    """
    lock = Lock(path)
    try:
        if not lock.acquire(seconds):
            raise otherwise()
    except Unsupported:
        pass
    try:
        yield lock.handle is not None
    finally:
        lock.release()


def _forked() -> None:
    """Close inherited locks in a forked process: else they would outlive the process that took them."""
    for lock in list(_HELD):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
