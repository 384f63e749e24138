"""What the denoiser is conditioned on: one row a prompt, and the mean of rows for a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK = 256
"""Rows brought to float32 at once when a large cluster is averaged: bounds the extra memory, not the result."""


@dataclass(frozen=True)
class Conditioning:
    """Conditioning tensors of N prompts, on the host.

    Attributes
    ----------
    rows
        Tensors (R, ...) in the model's dtype; a cluster's row is the mean of its members' rows.
    shared
        Tensors (1, ...) that are the same for every prompt, such as the unconditional embedding.
    vectors
        (N, D) float32, one vector a prompt: what the prompts are clustered by.
    index
        (N,) int64, the row of each prompt: prompts with equal conditioning may share one.
    """

    rows: dict[str, Tensor]
    shared: dict[str, Tensor]
    vectors: NDArray[np.float32]
    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        n = len(self.vectors)
        if not len(self.index):
            object.__setattr__(self, "index", torch.arange(n))
        assert self.vectors.ndim == 2, self.vectors.shape
        assert self.index.shape == (n,), (self.index.shape, n)
        for name, tensor in self.rows.items():
            assert len(tensor) > int(self.index.max()), (name, tensor.shape)
        for name, tensor in self.shared.items():
            assert len(tensor) == 1, (name, tensor.shape)

    def mean(self, prompts: Tensor) -> dict[str, Tensor]:
        """The arithmetic mean of the rows of ``prompts`` (n,) int64, accumulated in float32, each (...).

        A cluster of one gives the row itself, bit for bit, and so does a cluster of equal rows.
        """
        index, counts = torch.unique(self.index[prompts], return_counts=True)
        if len(index) == 1:
            return {name: tensor[int(index)] for name, tensor in self.rows.items()}
        weights = counts.to(torch.float32) / counts.sum()
        return {name: _weighted_sum(tensor, index, weights) for name, tensor in self.rows.items()}


def _weighted_sum(tensor: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sum of ``weights[j] * tensor[index[j]]`` in float32, back in the tensor's dtype."""
    total = torch.zeros(tensor.shape[1:], dtype=torch.float32)
    for part, weight in zip(index.split(_CHUNK), weights.split(_CHUNK), strict=True):
        total += torch.tensordot(weight, tensor[part].to(torch.float32), dims=1)
    return total.to(tensor.dtype)
