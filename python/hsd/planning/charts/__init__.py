"""Pictures of a plan: what it saves, how many clusters run at each step, and its tree. Drawn by matplotlib."""

from __future__ import annotations

import os
from typing import Any

from .figure import draw
from .file import file_for
from .subject import Subject

__all__ = ["file_for", "plot"]


def plot(plan: Any, path: str | os.PathLike[str] | None = None) -> Any:
    """What :meth:`hsd.Plan.plot` does."""
    target = None if path is None else file_for(path)
    page = draw(Subject.of(plan))
    if target is not None:
        target.write(page)
    return page
