"""How much host memory may be used."""

from __future__ import annotations

from pathlib import Path

import psutil

MEMORY_SHARE = 0.6
"""Share of the free memory that clustering takes by default."""

_CGROUP = Path("/sys/fs/cgroup")


def memory_budget() -> int:
    """Bytes that clustering may take: a share of what is free, of the machine or of the container."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            free = min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):
        pass  # not in a container, or not on Linux
    return max(1, int(free * MEMORY_SHARE))
