"""Which networks a model has: a digest that is cheap to make, so that a calibration is used for its own model only."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from ..calibration.identity import Identity
from .base import Adapter

_LATER = ("vae", "movq", "safety", "image_encoder", "super_res", "watermark")
"""Beginnings of the names of networks that run after the denoiser, or not at all."""

_TENSORS, _VALUES = 32, 4
"""How many weights of each network are compared: so many values of so many tensors."""


def family_and_networks(adapter: Adapter) -> Identity:
    """The identity without values of weights: what is known without reading from the device.

    Of configurations and of the weights' names nothing enters: both change with the versions of the libraries.
    """
    digest = hashlib.sha256()
    for name, network in _networks(adapter):
        shapes = sorted(tuple(weight.shape) for weight in network.parameters())
        digest.update(f"{name} {shapes}\n".encode())
    return Identity(type(adapter).__name__, digest.hexdigest(), ())


@torch.no_grad()
def identity_of(adapter: Adapter) -> Identity:
    """The identity of the networks that encode prompts and denoise; active LoRA layers belong to them."""
    base = family_and_networks(adapter)
    return Identity(base.family, base.networks, tuple(v for _, network in _networks(adapter) for v in _some(network)))


def _networks(adapter: Adapter) -> list[tuple[str, nn.Module]]:
    parts = [item for pipe in adapter.pipes() for item in pipe.components.items()]
    return sorted(
        {name: part for name, part in parts if isinstance(part, nn.Module) and not name.startswith(_LATER)}.items()
    )


def _some(network: nn.Module) -> list[float]:
    """Values of matrices, at fixed places. Weights that are not in memory (offloaded to a file) count as 0."""
    matrices = [weight for weight in network.parameters() if weight.ndim > 1 and weight.is_floating_point()]
    if not matrices:
        return []
    picked = [matrices[i * (len(matrices) - 1) // max(1, _TENSORS - 1)] for i in range(_TENSORS)]
    out: list[float] = []
    for weight in picked:
        if weight.is_meta:
            out += [0.0] * _VALUES
            continue
        flat = weight.detach().reshape(-1)
        places = [flat.numel() * (2 * j + 1) // (2 * _VALUES) for j in range(_VALUES)]
        out += flat[torch.tensor(places, device=flat.device)].float().cpu().tolist()
    return out
