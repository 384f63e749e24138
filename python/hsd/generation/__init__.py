"""Plans to images: streamed as they finish, or written to a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..tuning.passes import cost
    from .results import Failure, Image, Run
    from .run import generate
    from .shards import write_shards
    from .streaming import stream

__all__ = ["Failure", "Image", "Run", "cost", "generate", "stream", "write_shards"]

# Imported at first use: what reads a folder of images needs no torch.
_LAZY = {
    "Failure": ".results",
    "Image": ".results",
    "Run": ".results",
    "cost": "..tuning.passes",
    "generate": ".run",
    "stream": ".streaming",
    "write_shards": ".shards",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value
