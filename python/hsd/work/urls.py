"""stub"""

from __future__ import annotations

import re
from typing import Any


def is_url(text: Any) -> bool:
    """X."""
    return isinstance(text, str) and re.match(r"[a-z][a-z0-9+.-]+://", text) is not None


def filesystem_of(url: str) -> tuple[Any, str]:
    """X."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(url)
    return fs, path
