"""Which machine this is, as other machines that share a folder with it see it."""

from __future__ import annotations

import re
import socket
from functools import cache
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def host() -> str:
    """The name of this host. Containers on one machine may have several, and two machines the same one."""
    return socket.gethostname()


def host_in_names() -> str:
    """The name of this host, as a part of a file's name: without a hyphen, a dot or anything that has a meaning."""
    return re.sub(r"[^0-9A-Za-z_]+", "_", host())[:40] or "_"


@cache
def boot() -> str:
    """What tells this start of this machine from others that have the same name; empty where nothing does."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
