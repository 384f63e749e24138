"""Text in messages: long values and long lists, shortened."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 60
"""Characters of a value, and of a prompt, that a message shows."""


def shortened(text: str, most: int = LONGEST) -> str:
    """``text``, or its beginning and dots: at most ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def listed(items: Sequence[str], most: int = 5) -> str:
    """The first ``most`` items, and how many there are besides: ``a; b; and 3 more``."""
    rest = len(items) - most
    return "; ".join([*items[:most], f"and {rest:,} more"] if rest > 0 else items)
