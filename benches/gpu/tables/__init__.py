"""The tables of docs/gpu.md, one function each."""

from __future__ import annotations

from collections.abc import Callable

from . import answers, cost, plans, speed
from .common import Paper

TABLES: dict[str, Callable[[Paper], str]] = {**answers.TABLES, **cost.TABLES, **speed.TABLES, **plans.TABLES}
"""By the name that the page gives."""

__all__ = ["TABLES", "Paper"]
