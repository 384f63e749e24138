"""Files that are written unless they exist: of several processes, on any hosts, one is first. No lock is needed."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from .files import sync_folder, write_temporary
from .reading import BINARY, NOFOLLOW

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL)
"""What a file system without links answers."""


def create(path: Path, data: bytes) -> bool:
    """Write a new file; False, and nothing is changed, if there is something of that name.

    It has its name when it is complete. Where there are no links, others may see it while it is written.
    """
    temporary = write_temporary(path, data)
    try:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | BINARY, 0o666), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    sync_folder(path.parent)
    return True
