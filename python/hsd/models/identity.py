"""Which model it is: all that its images depend on, and, for calibrations, a few values of some networks."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .. import _core
from ..calibration.identity import Identity
from ..sampler import SamplerTable
from .base import Adapter
from .configuration import as_json, scheduler_of
from .quantised import packages_of
from .state import AFTER_DENOISER, pipeline_state, sampler_state

_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "peft")
"""Packages whose versions may change an image. One that is not loaded takes no part."""

_NO_PART = (*AFTER_DENOISER, "image_encoder")
"""Beginnings of the names of networks that a calibration does not depend on: it is made from text alone."""

_TENSORS, _VALUES = 32, 4
"""How many weights of each network are compared: so many values of so many tensors."""


def image_identity(
    adapter: Adapter, samplers: Iterable[SamplerTable] = (), catch_up: float | None = None
) -> dict[str, Any]:
    """Everything that an image depends on besides its plan, as JSON.

    Not in it: where the networks are and how they are called (batch size, memory layout, attention kernels, compiled or
    not), since that changes rounding only.  ``versions`` and ``device`` are in it, but are no reason to refuse: see
    :func:`hsd.generation.differences.model_differences`. Names are for people; the digests of all weights
    say which networks they are, whatever folder or revision they come from.

    Parameters
    ----------
    adapter
        The model.
    samplers
        The tables with which it is run, if they are known.
    catch_up
        The gamma with which it is run, which may be the model's default.
    """
    prior = adapter.prior()
    identity: dict[str, Any] = {
        **image_description(adapter, catch_up),
        "defaults": as_json({f.name: f.default for f in dataclasses.fields(adapter) if f.name in adapter.settings}),
        "tables": [sampler_state(table) for table in samplers],
        **pipeline_state(adapter.pipes(), adapter.own_scheduler()),
        "device": adapter.device.type,
        "versions": {**versions(), **packages_of(_all_networks(adapter))},
    }
    if prior is not None:
        identity["prior_table"] = sampler_state(prior.sampler(prior.steps))
    return identity


def image_description(adapter: Adapter, catch_up: float | None = None) -> dict[str, Any]:
    """The part of :func:`image_identity` that people read, and an image file says of itself: no weights are read."""
    pipe = adapter.pipe
    described: dict[str, Any] = {
        "name": adapter.name,
        "settings": as_json(adapter.settings),
        "pipeline": [type(part).__name__ for part in (pipe if isinstance(pipe, tuple) else (pipe,))],
        "scheduler": {**scheduler_of(adapter.scheduler()), "given": adapter.other_scheduler is not None},
    }
    return {**described, "catch_up": catch_up} if catch_up else described


def versions() -> dict[str, str]:
    """The versions of HSD and of the packages that make the images."""
    found = {"hsd": _core.__version__}
    for name in _PACKAGES:
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], "__version__", None) or importlib.metadata.version(name))
    return found


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


def _all_networks(adapter: Adapter) -> list[nn.Module]:
    parts = [part for pipe in adapter.pipes() for part in pipe.components.values()]
    return [part for part in parts if isinstance(part, nn.Module)]


def _networks(adapter: Adapter) -> list[tuple[str, nn.Module]]:
    parts = [item for pipe in adapter.pipes() for item in pipe.components.items()]
    return sorted(
        {name: part for name, part in parts if isinstance(part, nn.Module) and not name.startswith(_NO_PART)}.items()
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
