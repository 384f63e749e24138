"""One plan on many workers, on Ray: its units run where there is a GPU, and their images go to one folder."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .units import recomputed, units  # now: later, the module would have the name of the function

if TYPE_CHECKING:
    from .data import UnitRows, unit_rows
    from .run import generate

__all__ = ["UnitRows", "generate", "recomputed", "unit_rows", "units"]

# These import torch, and some of them Ray.
_LAZY = {"generate": ".run", "UnitRows": ".data", "unit_rows": ".data"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
