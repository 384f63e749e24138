"""Broadcasting: one number per lane against tensors of lanes."""

from __future__ import annotations

from torch import Tensor


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """View values (B,) so that they broadcast against ``like`` (B, ...)."""
    return values.view(-1, *(1,) * (like.ndim - 1))
