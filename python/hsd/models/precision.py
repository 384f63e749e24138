"""Networks whose weights are float32 for a while, and then again exactly what they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


def in_half_precision(networks: Sequence[nn.Module]) -> bool:
    """Whether some weights are in half precision, so that a network may give more in float32."""
    return any(tensor.dtype in HALF for network in networks for _, tensor in _named(network))


@contextlib.contextmanager
def in_float32(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, weights in half precision are float32; the others keep their dtype.

    Nothing is rounded, and no memory that another stream of a GPU may still read is given back: the tensors in half
    precision are kept, and are the weights again afterwards. The copies in float32 belong to the stream that is current
    at the start. Work on other streams may use them if it waits for that stream first, and is done before the end.

    Networks whose weights hooks move meanwhile (offloading) are converted back instead, where their weights are then.
    """
    kept = {(n, name): tensor.data for n, name, tensor in _numbered(networks) if tensor.dtype in HALF}
    try:
        for n, name, tensor in _numbered(networks):
            if (n, name) in kept:
                tensor.data = tensor.data.float()
        yield
    finally:
        for n, name, tensor in _numbered(networks):  # found again: hooks replace the parameters too
            if (n, name) in kept:
                original = kept[n, name]
                same_place = tensor.device == original.device
                tensor.data = original if same_place else tensor.data.to(original.dtype)


def _numbered(networks: Sequence[nn.Module]) -> Iterator[tuple[int, str, Tensor]]:
    for n, network in enumerate(networks):
        for name, tensor in _named(network):
            yield n, name, tensor


def _named(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(network.named_parameters(), network.named_buffers())
