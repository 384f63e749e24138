"""Which networks a model has: a digest that is cheap to make, so that a calibration is used for its own model only."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from ..calibration.identity import Identity
from .base import Adapter

_LATER = ("vae", "movq", "safety", "image_encoder", "super_res", "watermark")
"""Beginnings of the names of networks that run after the denoiser, or not at all."""

_TENSORS, _VALUES = 32, 4
"""How many weights of each network are compared: so many values of so many tensors."""


def family_and_networks(adapter: Adapter) -> Identity:
    """The identity without values of weights: configurations, names and shapes are on the host already."""
    digest = hashlib.sha256()
    for name, network in _networks(adapter):
        config = getattr(network, "config", None)
        values = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
        # Names that begin with an underscore are paths and versions.
        kept = {key: value for key, value in values.items() if not key.startswith("_") and "version" not in key}
        digest.update(json.dumps([name, _plain(kept)], sort_keys=True, default=str).encode())
        for key, weight in network.named_parameters():
            digest.update(f"{key.replace('_orig_mod.', '')} {tuple(weight.shape)}\n".encode())
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


def _plain(value: Any) -> Any:
    """A configuration without what depends on how it was loaded."""
    if isinstance(value, dict):
        skipped = ("dtype", "torch_dtype", "name_or_path")
        return {str(k): _plain(v) for k, v in value.items() if k not in skipped and not str(k).startswith("_")}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


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
